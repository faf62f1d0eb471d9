"""An evaluation on disk: where it lies, what vouches for it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wsi_idc.core.files import ensure_writable, parse_json, write_json, write_text
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint_files import bundled_checkpoint

PAGE = "report.html"
_METRICS, _PATIENTS, _PREDICTIONS = "metrics.json", "patients.csv", "predictions.csv"


def check_evaluation_folder(folder: Path) -> None:
    """Raise where an evaluation cannot be written into ``folder``, or not without a loss.

    Raises:
        WsiIdcError: With the reason.
    """
    writes = (_METRICS, _PATIENTS, _PREDICTIONS, PAGE, "figures")
    ensure_writable(folder, writes=writes, marks=(_PREDICTIONS,))


def evaluation_folder(method: Predictor, split: str) -> Path:
    """Return where an evaluation is written by default: in the run, or in eval/."""
    way = way_of(split, tta=method.tta, smooth=method.smooth)
    first = method.checkpoints[0].source
    assert first is not None
    if len(method.checkpoints) > 1:
        prints = json.dumps([one.fingerprint for one in method.checkpoints])
        return Path("eval", f"ensemble-{hashlib.sha256(prints.encode()).hexdigest()[:8]}-{way}")
    if first == bundled_checkpoint():
        return Path("eval", f"bundled-{way}")
    return folder_beside(first, way)


def way_of(split: str, *, tta: bool, smooth: bool) -> str:
    """Return what stands in the name of an evaluation's folder, such as test-tta."""
    return split + "-tta" * tta + "-smooth" * smooth


def folder_beside(run: Path, way: str) -> Path:
    """Return where the evaluation of a run, or of a .pt file, is written by default."""
    if run.suffix != ".pt":
        return run / f"eval-{way}"
    # Checkpoints that lie in one folder must not share one evaluation.
    name = "eval" if run.name == "best.pt" else f"{run.name.removesuffix('.pt')}-eval"
    return run.parent / f"{name}-{way}"


def folders_of(runs: Sequence[Path], out: Path) -> list[Path]:
    """Return where the evaluation of each of some runs is written in ``out``."""
    if len(runs) < 2:
        return [out]
    names = enumerate((run.name.removesuffix(".pt") for run in runs), start=1)
    return [out / f"{number}-{name}" for number, name in names]


def is_evaluation(folder: Path) -> bool:
    """Return whether a folder holds a whole evaluation, of whatever."""
    return (folder / _METRICS).exists()


def is_evaluated(folder: Path, method: Predictor, pack: Pack) -> bool:
    """Return whether a folder holds the evaluation of just this method on just this data."""
    try:
        record = parse_json((folder / _METRICS).read_text(encoding="utf-8"))["provenance"]
        return bool(
            record["method"] == json.loads(json.dumps(method.summary()))
            and record["data_fingerprint"] == pack.info.source_fingerprint
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.json, patients.csv and predictions.csv into the folder ``out``."""
    # An old one must not vouch for new tables if this is interrupted.
    (out / _METRICS).unlink(missing_ok=True)
    # First: the folder is an evaluation's from here on.
    write_text(out / _PREDICTIONS, evaluation.predictions.to_csv(index=False))
    write_text(out / _PATIENTS, evaluation.patients.to_csv(index=False))
    # Last: it vouches for the tables beside it.
    write_json(out / _METRICS, evaluation.as_dict())

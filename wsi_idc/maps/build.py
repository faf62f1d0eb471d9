"""Make the maps of a cohort: one pass over all patches, batches across patients."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.config import PREDICT_BATCH_SIZE
from wsi_idc.data.pack import Pack
from wsi_idc.errors import MapError, StoppedError, WsiIdcError
from wsi_idc.hpc.preempt import StopRequest
from wsi_idc.learn.method import Method
from wsi_idc.learn.predict import Predicted
from wsi_idc.maps.grid import cells_of
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.store import (
    FORMAT_VERSION,
    map_path,
    read_identity,
    write_map,
)
from wsi_idc.models.device import Compute
from wsi_idc.progress import progress
from wsi_idc.provenance import provenance

logger = logging.getLogger(__name__)

_WRITERS = 2


@dataclass
class MapReport:
    """What became of each patient.

    Attributes:
        made: Patient to its map file, newly made.
        kept: Patient to its map file that was there, made by the same checkpoint, settings, data.
        failed: Patient to the reason why it has no map.
        patches: Patient to number of patches in its map, for those made.
        idc_fraction: Patient to share of patches called IDC, for those made.
    """

    made: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    idc_fraction: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """What every map of one call shares."""

    method: Method
    pack: Pack
    compute: Compute
    identity: dict[str, Any]
    with_image: bool


def build_maps(
    method: Method,
    pack: Pack,
    patients: Sequence[str],
    out: Path,
    *,
    compute: Compute,
    batch_size: int = PREDICT_BATCH_SIZE,
    with_image: bool = True,
    overwrite: bool = False,
    stop: StopRequest | None = None,
) -> MapReport:
    """Write the map of each patient into the folder ``out``, unless it is there already.

    A map is kept only where the same method, settings and data made it; ``overwrite`` makes
    all of them anew. A patient whose map cannot be made is set aside with the reason.

    Raises:
        CheckpointError: A checkpoint does not fit the data.
        DataError: The pack has no such patient, or its id cannot be a file name.
        StoppedError: ``stop`` was set; the finished maps are there, and the same call goes on.
    """
    method.check_fits(pack)
    for patient in patients:
        pack.rows_of(patient)
        map_path(out, patient)
    seen = sorted(method.patients("train").intersection(patients))
    if seen:
        logger.info(
            "the model was trained on %d of these patients (%s first): their maps flatter it",
            len(seen),
            seen[0],
        )
    identity = _identity(method, pack, precision=compute.precision, with_image=with_image)
    job = _Job(method, pack, compute, identity, with_image)
    report = MapReport()
    due = [p for p in patients if _is_due(p, job, out, overwrite=overwrite, report=report)]
    if due:
        out.mkdir(parents=True, exist_ok=True)
        _make(job, due, out, batch_size=batch_size, stop=stop, report=report)
    return report


def _identity(method: Method, pack: Pack, *, precision: str, with_image: bool) -> dict[str, Any]:
    """Return all that decides what stands in a map, JSON-ready."""
    return {
        **method.identity(),
        "data": pack.info.source_fingerprint,
        "mpp": pack.info.mpp,
        "mpp_source": pack.info.mpp_source,
        "precision": precision,
        "image": with_image,
        "cam_method": "gradcam",
        "cam_layer": method.checkpoints[0].cam_layer,
        "format_version": FORMAT_VERSION,
    }


def _is_due(patient: str, job: _Job, out: Path, *, overwrite: bool, report: MapReport) -> bool:
    """Return whether to make a map, and note in the report why not."""
    path = map_path(out, patient)
    try:
        found = read_identity(path)
    except MapError as error:
        if overwrite:
            return True
        report.failed[patient] = f"{error}, with --overwrite"
        return False
    if found is None or overwrite:
        return True
    if found == job.identity:
        report.kept[patient] = path
        return False
    changed = sorted(key for key in job.identity if found.get(key) != job.identity[key])
    logger.info("%s: made with another %s; making it anew", path, ", ".join(changed))
    return True


def _make(
    job: _Job,
    patients: list[str],
    out: Path,
    *,
    batch_size: int,
    stop: StopRequest | None,
    report: MapReport,
) -> None:
    rows = {patient: job.pack.rows_of(patient) for patient in patients}
    everything = np.concatenate(list(rows.values()))
    found = job.method.predict(
        job.pack,
        everything,
        compute=job.compute,
        batch_size=batch_size,
        with_cam=True,
    )
    writing: deque[tuple[str, Future[PatientMap]]] = deque()
    with (
        progress(len(everything), what="mapping") as bar,
        ThreadPoolExecutor(_WRITERS) as writers,
    ):
        counted = _count(found, bar, stop)
        for patient, prediction in _by_patient(counted, rows):
            writing.append(
                (patient, writers.submit(_write, job, patient, rows[patient], prediction, out))
            )
            # A bounded number in memory: a slow disk makes the network wait.
            if len(writing) > 2 * _WRITERS:
                _settle(*writing.popleft(), out=out, report=report)
        while writing:
            _settle(*writing.popleft(), out=out, report=report)
    if stop:
        raise StoppedError(
            f"Stopped by {stop.signal_name} with {len(report.made)} of {len(patients)} maps made; "
            "the same command goes on"
        )


def _count(found: Iterator[Predicted], bar: Any, stop: StopRequest | None) -> Iterator[Predicted]:
    """Pass predictions on, counted on the bar, until a stop is asked for."""
    for part in found:
        if stop:
            return
        bar.update(len(part.logit))
        yield part


def _by_patient(
    found: Iterator[Predicted], rows: dict[str, NDArray[np.int64]]
) -> Iterator[tuple[str, Predicted]]:
    """Cut a stream of batches, which knows no patients, into one prediction a patient."""
    logits: list[NDArray[np.float32]] = []
    cams: list[NDArray[np.float32]] = []
    waiting = iter(rows.items())
    patient, members = next(waiting)
    have = 0
    for part in found:
        assert part.cam is not None
        start = 0
        while start < len(part.logit):
            end = min(len(part.logit), start + len(members) - have)
            logits.append(part.logit[start:end])
            cams.append(part.cam[start:end])
            have += end - start
            start = end
            if have == len(members):
                yield patient, Predicted(np.concatenate(logits), np.concatenate(cams))
                patient, members = next(waiting, (patient, members))
                logits, cams, have = [], [], 0


def _write(
    job: _Job, patient: str, rows: NDArray[np.int64], prediction: Predicted, out: Path
) -> PatientMap:
    """Write one map; return it without its pixels."""
    method, info = job.method, job.pack.info
    columns = job.pack.index.iloc[rows]
    coords = columns[["x", "y"]].to_numpy(np.int32)
    row_col = cells_of(coords, patch_px=info.patch_px)
    said, smoothing = method.combine(prediction.logit), method.smoothing
    content = PatientMap(
        patient=patient,
        source="pack",
        class_names=method.checkpoints[0].class_names,
        patch_px=info.patch_px,
        mpp=info.mpp,
        mpp_source=info.mpp_source,
        threshold=method.threshold,
        temperature=method.temperature,
        model={**method.summary(), "role_of_patient": _role(method, patient)},
        provenance=provenance(data=str(job.pack.path), identity=job.identity),
        coords=coords,
        row_col=row_col,
        logit=said.logit,
        probability=said.probability,
        label=columns["label"].to_numpy(np.int8),
        cam=prediction.cam,
        cam_layer=method.checkpoints[0].cam_layer,
        uncertainty=said.uncertainty,
        smoothed=method.smoothed(
            said.probability,
            columns["patient"].to_numpy(),
            row_col,
            patch_um=info.patch_px * info.mpp,
        ),
        smoothing=None if smoothing is None else asdict(smoothing),
        patches=job.pack.patches[rows] if job.with_image else None,
    )
    write_map(map_path(out, patient), content)
    return content


def _role(method: Method, patient: str) -> str:
    """Return what the patient was in the split; of several checkpoints, the worst that it was."""
    roles = {one.split.get(patient, "in no split") for one in method.checkpoints}
    return next(role for role in ("train", "val", "test", "in no split") if role in roles)


def _settle(patient: str, future: "Future[PatientMap]", *, out: Path, report: MapReport) -> None:
    """Wait for a map to be written and note what became of it."""
    try:
        content = future.result()
    except (WsiIdcError, OSError) as error:
        report.failed[patient] = str(error)
        logger.warning("%s: %s", patient, error)
        return
    report.made[patient] = map_path(out, patient)
    report.patches[patient] = len(content.probability)
    report.idc_fraction[patient] = content.idc_fraction()

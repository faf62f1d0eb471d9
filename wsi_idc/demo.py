"""The command ``wsi-idc demo``: all steps from synthetic tissue to the report of the maps."""

import logging
from dataclasses import dataclass
from pathlib import Path

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.progress import progress
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.data.splits import make_split
from wsi_idc.evaluation.report import evaluate_into
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_paths
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.render.render import render_map
from wsi_idc.report.report import build_report
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.synthetic.cohort import write_cohort
from wsi_idc.training.config import TrainConfig, resolved_config
from wsi_idc.training.runs import Run, default_run
from wsi_idc.training.train import train

logger = logging.getLogger(__name__)

NUM_PATIENTS = 12
PATCHES_PER_PATIENT = 110
EPOCHS = 4


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        pack: Path of the pack of the synthetic patches.
        checkpoint: Path of the best checkpoint of the training.
        evaluation: Results of the evaluation on the test patients.
        evaluation_folder: Folder with the files of the evaluation.
        maps: Folder of the maps and their pictures.
        report: Start page of the report, ``index.html``.
    """

    pack: Path
    checkpoint: Path
    evaluation: Evaluation
    evaluation_folder: Path
    maps: Path
    report: Path


def run_demo(out: Path, *, seed: int = 0, stop: StopRequest | None = None) -> DemoResult:
    """Run the demo in the folder ``out``; reuse the pack, the run and the maps that exist already.

    Raises:
        StoppedError: ``stop`` has received a stop signal. The same call resumes the demo.
    """
    device_config = select_device()
    sizes = {"num_patients": NUM_PATIENTS, "patches_per_patient": PATCHES_PER_PATIENT}
    pack = synthetic_pack(out, **sizes, seed=seed, stop=stop)
    split = make_split(pack, "auto", seed=seed)
    config = TrainConfig(seed=seed, epochs=EPOCHS)
    logger.info("training %s on %d synthetic patches", config.model, len(pack))
    run = Run(out / "runs" / f"{config.model}-{seed}")
    training_device = select_device(training=True)
    checkpoint = train(config, pack, split, run=run, device_config=training_device, stop=stop)
    predictor = Predictor((checkpoint,))
    logger.info("evaluating on the test patients")
    evaluation, folder = evaluate_into(
        run.folder / "eval-test",
        predictor,
        pack,
        split="test",
        device_config=device_config,
        batch_size=PREDICT_BATCH_SIZE,
        seed=seed,
    )
    logger.info("mapping %s", count(len(pack.patients), "patient"))
    maps, pages = out / "maps", out / "report"
    MapBuilder(predictor, device_config, maps, stop=stop).build(PackSource(pack, pack.patients))
    with progress(len(pack.patients), what="drawing maps", unit="map") as bar:
        for patient in pack.patients:
            raise_if_stopped(stop)
            render_map(maps / f"{patient}.h5", maps / f"{patient}.png")
            bar.update(1)
    raise_if_stopped(stop)
    build_report(map_paths(maps), pages, tables=maps)
    return DemoResult(pack.path, run.best, evaluation, folder, maps, pages / "index.html")


def synthetic_pack(
    out: Path,
    *,
    num_patients: int = 12,
    patches_per_patient: int = 45,
    seed: int = 0,
    stop: StopRequest | None = None,
) -> Pack:
    """Open the pack of a synthetic cohort; if it does not exist, first draw and pack the cohort.

    Args:
        out: Folder of the patch tree and the pack.
        num_patients: Number of patients.
        patches_per_patient: Approximate number of patches of each patient.
        seed: Seed of the cohort.
        stop: Flag of the stop signals; it is checked before the packing.

    Raises:
        StoppedError: ``stop`` has received a stop signal. The same call resumes with the packing.
    """
    tree, pack = out / f"cohort-{seed}", out / "data" / f"synthetic-{seed}.h5"
    if not tree.exists():
        logger.info("drawing %d synthetic patients", num_patients)
        sizes = {"num_patients": num_patients, "patches_per_patient": patches_per_patient}
        write_cohort(tree, **sizes, seed=seed)
    if not pack.exists():
        raise_if_stopped(stop)
        prepare(tree, pack)
    return Pack(pack)


def small_checkpoint(out: Path, pack: Pack, *, seed: int = 0) -> Checkpoint:
    """Return a small checkpoint for examples; if it does not exist, train it for some seconds."""
    # The training has only about 100 steps, so the running average of the weights is short.
    config = TrainConfig(seed=seed, epochs=6, batch_size=16, input_size=32, ema=0.9)
    split = make_split(pack, "ratio:50/25/25", seed=seed)
    run = default_run(out / "runs", "small", resolved_config(config, pack, split))
    return train(config, pack, split, run=run, device_config=select_device(training=True))

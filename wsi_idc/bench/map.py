"""``bench map``: compare the speed of mapping, of the bare network and of a plain script."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.bench import timing
from wsi_idc.bench.baseline import baseline_map
from wsi_idc.bench.fixtures import BenchmarkData, choose_patients, make_checkpoint, write_pngs
from wsi_idc.bench.forward_only import BareForward, best_batch_size
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.inference.predictor import Predictor
from wsi_idc.inference.probability import idc_probability
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_path, read_map
from wsi_idc.runtime.device import DeviceConfig

# Each call first builds the network and fuses its batch norms. In a long round, the fraction of
# this time is small.
SECONDS_PER_ROUND = 15.0


def bench_map(
    data: BenchmarkData,
    *,
    device_config: DeviceConfig,
    model: str = "cnn-bn",
    input_size: int = 0,
    batch_size: int = 64,
    num_patches: int = 0,
    plain_patches: int = 0,
    num_rounds: int = 5,
) -> timing.BenchmarkResult:
    """Measure the speed of making maps; the time includes CAMs and the writing of files.

    Args:
        data: Pack of the patients to map, and folder for maps and PNG files.
        device_config: Device and precision.
        model: Name of an architecture, or "bundled" for the bundled model.
        input_size: Side of the network's input in px; 0 means the default of the model.
        batch_size: Patches per batch.
        num_patches: Patches per round; 0 means the number that the bare network processes in 15 s.
        plain_patches: Patches per round of the plain script; 0 means a quarter of the patches
            that one round maps, and -1 means that the plain script is not measured.
        num_rounds: Number of measurements of each variant.
    """
    pack, folder = data.pack, data.folder
    checkpoint, name = make_checkpoint(model, input_size=input_size, pack=pack)
    batch = pack.patches[np.arange(batch_size) % len(pack)]
    bare = BareForward(checkpoint, batch, device_config)
    patients = choose_patients(pack, num_patches or round(bare.rate() * SECONDS_PER_ROUND))
    predictor = Predictor((checkpoint,))
    builder = MapBuilder(predictor, device_config, folder / "maps", batch_size=batch_size)

    def command() -> int:
        shutil.rmtree(builder.out, ignore_errors=True)
        report = builder.build(PackSource(pack, patients))
        if report.failed:
            raise WsiIdcError(f"a map could not be made: {next(iter(report.failed.values()))}")
        return sum(report.patches.values())

    patches_per_round = command()
    memory = timing.peak_memory(device_config)
    bare_variant = partial(bare, max(1, round(patches_per_round / batch_size)))
    variants: dict[str, timing.Variant] = {timing.BARE: bare_variant, timing.COMMAND: command}
    outputs: list[tuple[NDArray, NDArray]] = []
    if plain_patches >= 0:
        rows = np.concatenate([pack.rows_of(patient) for patient in patients])
        num_plain = plain_patches or max(1, patches_per_round // 4)
        files = write_pngs(pack, rows[:num_plain], folder / "png")
        classifier = checkpoint.build().to(device_config.device)
        (folder / "plain").mkdir()

        def plain() -> int:
            output = baseline_map(classifier, files, batch_size=batch_size, out=folder / "plain")
            outputs[:] = [output]
            return len(files)

        variants[timing.PLAIN] = plain
    rates = timing.interleave(
        variants, num_rounds=num_rounds, device_config=device_config, label=f"map, {name}"
    )
    return timing.BenchmarkResult(
        what="map",
        settings={
            "network": name,
            "machine": timing.machine(device_config),
            "data": data.about,
            "batch size": batch_size,
            "patches a round": patches_per_round,
            "patients a round": len(patients),
            "rounds": num_rounds,
        },
        rates=timing.medians(rates),
        ratios=timing.command_ratios(rates),
        differences=_differences(builder.out, patients, *outputs[-1]) if outputs else {},
        peak_memory_mb=memory,
        hints=(f"batch size: {best_batch_size(checkpoint, batch, device_config)}",),
    )


def _differences(
    folder: Path, patients: list[str], logit: NDArray[np.float32], cam: NDArray[np.float32]
) -> dict[str, float]:
    """Compute the largest differences between maps in ``folder`` and results of the plain script.

    Args:
        folder: Folder of the maps.
        patients: Patients of the maps.
        logit: Logits from the plain script for the first N patches, shape (N, num_classes).
        cam: CAMs from the plain script for the same patches, shape (N, h, w).
    """
    maps = [read_map(map_path(folder, patient)) for patient in patients]
    probability = np.concatenate([patient_map.probability for patient_map in maps])[: len(logit)]
    cams = [patient_map.cam for patient_map in maps if patient_map.cam is not None]
    cam_difference = np.abs(np.concatenate(cams)[: len(cam)] - cam).max()
    cam_scale = max(float(np.abs(cam).max()), float(np.finfo(np.float32).tiny))
    expected = idc_probability(logit, temperature=maps[0].temperature)
    return {
        "probability": float(np.abs(probability - expected).max()),
        "CAM over its maximum": float(cam_difference) / cam_scale,
    }

"""``bench map``: making maps, against the network alone and against the plain way."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.bench.baseline import BaselineOutput, plain_map
from wsi_idc.bench.fixtures import make_checkpoint, rows_of, some_patients, write_pngs
from wsi_idc.bench.forward_only import BareForward, best_batch_size
from wsi_idc.bench.stages import map_parts
from wsi_idc.bench.timing import (
    BARE,
    COMMAND,
    PLAIN,
    BenchmarkResult,
    Variant,
    interleave,
    machine,
    peak_memory,
)
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.calibration import idc_probability
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_path, read_map
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.resources import available_cores

# Longer than what each call does once: building the network, folding it.
SECONDS_A_ROUND = 15.0


@dataclass(frozen=True)
class MapBenchOptions:
    """What to measure.

    Attributes:
        model: Name of the architecture.
        input_size: Side to resize patches to; 0: the model's own.
        batch_size: Patches at a time.
        num_patches: Of a round; 0: about 15 seconds' worth.
        plain_patches: Of a round of the plain way; 0: a quarter of ``num_patches``; -1: leave the
            plain way out.
        num_rounds: How often each way is measured.
    """

    model: str = "cnn-bn"
    input_size: int = 0
    batch_size: int = 64
    num_patches: int = 0
    plain_patches: int = 0
    num_rounds: int = 5


def bench_map(
    options: MapBenchOptions, pack: Pack, *, about: str, compute: DeviceConfig, folder: Path
) -> BenchmarkResult:
    """Measure the making of maps, with CAM and everything written, into ``folder``.

    Args:
        options: What to measure.
        pack: The data.
        about: What they are, for the report.
        compute: Device and precision.
        folder: For maps and PNG files.
    """
    checkpoint, name = make_checkpoint(options.model, input_size=options.input_size, pack=pack)
    some = pack.patches[np.arange(options.batch_size) % len(pack)]
    bare = BareForward(checkpoint, some, compute)
    wanted = options.num_patches or round(bare.rate() * SECONDS_A_ROUND)
    patients = some_patients(pack, wanted)
    command = _Command(checkpoint, pack, patients, options.batch_size, compute, folder / "maps")
    num_patches = command()
    memory = peak_memory(compute)
    bare.num_batches = max(1, round(num_patches / options.batch_size))
    ways: dict[str, Variant] = {BARE: bare, COMMAND: command}
    plain = None
    if options.plain_patches >= 0:
        rows = rows_of(pack, patients)[: options.plain_patches or max(1, num_patches // 4)]
        ways[PLAIN] = plain = _Plain(checkpoint, pack, rows, options.batch_size, compute, folder)
    rates = interleave(ways, num_rounds=options.num_rounds, compute=compute, what=f"map, {name}")
    return BenchmarkResult(
        what="map",
        settings={
            "network": name,
            "machine": machine(compute),
            "data": about,
            "batch size": options.batch_size,
            "patches a round": num_patches,
            "patients a round": len(patients),
            "rounds": options.num_rounds,
        },
        rates=rates.medians(),
        ratios=rates.ratios_to(COMMAND),
        parts=map_parts(bare, pack, command.builder, patients),
        differences={} if plain is None else _differences(command, plain),
        peak_memory_mb=memory,
        hints=_hints(best_batch_size(checkpoint, some, compute), plain),
    )


class _Command:
    """``wsi-idc map`` on the same patients, each time into an empty folder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pack: Pack,
        patients: list[str],
        batch_size: int,
        compute: DeviceConfig,
        out: Path,
    ) -> None:
        self.builder = MapBuilder(Predictor((checkpoint,)), compute, out, batch_size=batch_size)
        self.patients, self._pack = patients, pack

    def __call__(self) -> int:
        shutil.rmtree(self.builder.out, ignore_errors=True)
        report = self.builder.build(PackSource(self._pack, self.patients))
        if report.failed:
            raise WsiIdcError(f"a map could not be made: {next(iter(report.failed.values()))}")
        return sum(report.patches.values())


class _Plain:
    """The plain way on patches ``rows``; ``said`` is what it said last."""

    said: BaselineOutput

    def __init__(
        self,
        checkpoint: Checkpoint,
        pack: Pack,
        rows: NDArray[np.int64],
        batch_size: int,
        compute: DeviceConfig,
        folder: Path,
    ) -> None:
        self._files = write_pngs(pack, rows, folder / "png")
        self._out, self._batch_size, self._device = folder / "plain", batch_size, compute.device
        self._classifier = checkpoint.build().to(compute.device)

    def __call__(self) -> int:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        self.said = plain_map(
            self._classifier,
            self._files,
            device=self._device,
            batch_size=self._batch_size,
            num_workers=available_cores(),
            out=self._out,
        )
        return len(self._files)


def _hints(batch_size: int, plain: _Plain | None) -> tuple[str, ...]:
    hint = f"batch size: {batch_size}"
    if plain is None or plain.said.cam is not None:
        return (hint,)
    return (hint, "torchcam is not installed: the plain way made no CAM, and none was compared")


def _differences(command: _Command, plain: _Plain) -> dict[str, float]:
    """Return how far what stands in the maps is from what the plain way said."""
    said, builder = plain.said, command.builder
    num, maps, have = len(said.logit), [], 0
    for patient in command.patients:
        if have < num:
            maps.append(read_map(map_path(builder.out, patient)))
            have += len(maps[-1].probability)
    theirs = idc_probability(said.logit, temperature=maps[0].temperature)
    mine = np.concatenate([one.probability for one in maps])[:num]
    differences = {"probability": float(np.abs(mine - theirs).max())}
    if said.cam is not None:
        cam = np.concatenate([one.cam for one in maps if one.cam is not None])[:num]
        scale = max(float(np.abs(said.cam).max()), float(np.finfo(np.float32).tiny))
        differences["CAM over its maximum"] = float(np.abs(cam - said.cam).max()) / scale
    return differences

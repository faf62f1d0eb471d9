"""Look at everything, one thing after another."""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path

from wsi_idc.doctor.check_result import Finding, Probe, without_names


def examine(*, data: Path | None, out: Path) -> Iterator[Finding]:
    """Yield what is found; nothing raises, and nothing is waited for for long.

    Args:
        data: What ``--data`` says.
        out: Folder that results would go into; it need not exist.
    """
    probes = (
        Probe("program", _later("program", "program")),
        Probe("python", _later("program", "python")),
        Probe("packages", _later("program", "packages")),
        Probe("OpenSlide", _later("program", "openslide")),
        # The first of them to load torch, which takes long from a cold network disk.
        Probe("processor", _later("machine", "processor"), seconds=120),
        Probe("cores", _later("machine", "cores")),
        Probe("memory", _later("machine", "memory")),
        Probe("/dev/shm", _later("machine", "shared_memory")),
        Probe("torch", _later("machine", "torch_build")),
        Probe("driver", _later("machine", "driver")),
        Probe("GPUs", _later("machine", "gpus"), seconds=60),
        Probe("SLURM", _later("machine", "slurm"), seconds=30),
        Probe("output disk", _later("disk", "room", out), seconds=60),
        Probe("writing", _later("disk", "writing", out), seconds=60),
        Probe("file locks", _later("disk", "locks", out)),
        Probe("HDF5 files", _later("disk", "hdf5", out)),
        Probe("scratch", _later("disk", "scratch")),
        Probe("ImageNet weights", _later("work", "weights"), seconds=60),
        Probe("data", _later("work", "data", data), seconds=60),
        Probe("runs", _later("work", "runs")),
    )
    for probe in probes:
        yield from map(without_names, probe.findings())


def _later(module: str, look: str, *arguments: object) -> Callable[[], Iterable[Finding]]:
    """Return a look that imports what it needs, which a broken installation may not have."""

    def found() -> Iterable[Finding]:
        whole: Iterable[Finding] = getattr(import_module(f"wsi_idc.hpc.doctor.{module}"), look)(
            *arguments
        )
        return whole

    return found

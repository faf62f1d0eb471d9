"""Look at everything, one thing after another."""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path

from wsi_idc.doctor.check_result import CheckResult, Probe, without_names


def run_checks(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
    """Yield what is found; nothing raises, and nothing is waited for for long.

    Args:
        data: What ``--data`` says.
        out: Folder that results would go into; it need not exist.
    """
    probes = (
        Probe("program", _lazy_check("program", "program")),
        Probe("python", _lazy_check("program", "python")),
        Probe("packages", _lazy_check("program", "packages")),
        Probe("OpenSlide", _lazy_check("program", "openslide")),
        # The first of them to load torch, which takes long from a cold network disk.
        Probe("processor", _lazy_check("machine", "processor"), seconds=120),
        Probe("cores", _lazy_check("machine", "cores")),
        Probe("memory", _lazy_check("machine", "memory")),
        Probe("/dev/shm", _lazy_check("machine", "shared_memory")),
        Probe("torch", _lazy_check("machine", "torch_build")),
        Probe("driver", _lazy_check("machine", "driver")),
        Probe("GPUs", _lazy_check("machine", "gpus"), seconds=60),
        Probe("SLURM", _lazy_check("machine", "slurm"), seconds=30),
        Probe("output disk", _lazy_check("disk", "room", out), seconds=60),
        Probe("writing", _lazy_check("disk", "writing", out), seconds=60),
        Probe("file locks", _lazy_check("disk", "locks", out)),
        Probe("HDF5 files", _lazy_check("disk", "hdf5", out)),
        Probe("scratch", _lazy_check("disk", "scratch")),
        Probe("ImageNet weights", _lazy_check("work", "weights"), seconds=60),
        Probe("data", _lazy_check("work", "data", data), seconds=60),
        Probe("runs", _lazy_check("work", "runs")),
    )
    for probe in probes:
        yield from map(without_names, probe.findings())


def _lazy_check(module: str, look: str, *arguments: object) -> Callable[[], Iterable[CheckResult]]:
    """Return a look that imports what it needs, which a broken installation may not have."""

    def found() -> Iterable[CheckResult]:
        whole: Iterable[CheckResult] = getattr(import_module(f"wsi_idc.hpc.doctor.{module}"), look)(
            *arguments
        )
        return whole

    return found

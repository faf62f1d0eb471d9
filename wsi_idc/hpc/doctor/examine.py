"""Look at everything, one thing after another."""

from collections.abc import Iterator
from pathlib import Path

from wsi_idc.hpc.doctor import disk, machine, program, work
from wsi_idc.hpc.doctor.finding import Finding, Probe, without_names


def examine(*, data: Path | None, out: Path) -> Iterator[Finding]:
    """Yield what is found; nothing raises, and nothing is waited for for long.

    Args:
        data: What ``--data`` says.
        out: Folder that results would go into; it need not exist.
    """
    probes = (
        Probe("program", program.program),
        Probe("python", program.python),
        Probe("packages", program.packages),
        Probe("OpenSlide", program.openslide),
        Probe("processor", machine.processor),
        Probe("cores", machine.cores),
        Probe("memory", machine.memory),
        Probe("/dev/shm", machine.shared_memory),
        Probe("torch", machine.torch_build),
        Probe("driver", machine.driver),
        Probe("GPUs", machine.gpus, seconds=60),
        Probe("SLURM", machine.slurm, seconds=30),
        Probe("output disk", lambda: disk.room(out)),
        Probe("writing", lambda: disk.writing(out), seconds=60),
        Probe("file locks", lambda: disk.locks(out)),
        Probe("HDF5 files", lambda: disk.hdf5(out)),
        Probe("scratch", disk.scratch),
        Probe("ImageNet weights", work.weights),
        Probe("data", lambda: work.data(data), seconds=60),
        Probe("runs", work.runs),
    )
    for probe in probes:
        yield from map(without_names, probe.findings())

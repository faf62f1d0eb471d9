"""Fuzzing: damage each kind of file that the program reads, and let the program read the files.

    python tools/fuzz.py [--mutations 1000] [--kind pack ...] [--seed 0] [--failures FOLDER]
    python tools/fuzz.py --kind pack --only 713     repeat one mutation, with its traceback

The program must read a damaged file, or refuse it with an error of one line. Every other outcome is
a bug: a traceback, more than 5 s of CPU time, more than 60 s without a result, more than 1 GB of
memory, or a crash. The script copies the files of bugs into the folder of failures, and prints a
Markdown table. It runs only on Linux, because it reads /proc.
"""

import argparse
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from fuzzing.kinds import Kind

OUTCOMES = {
    "valid": "read as valid",
    "refused": "refused in one line",
    "traceback": "tracebacks",
    "hang": "hangs over 5 s",
    "memory": "over 1 GB",
    "crash": "crashes",
}
BAD = ("traceback", "hang", "memory", "crash")
_MAX_CPU_SECONDS = 5.0  # per file
_MAX_SECONDS = 60.0  # per file
_POLL_SECONDS = 1.0
_BATCH = 50  # files per child process
_UNCHANGED = -1  # number of a mutation that changes no file
_MAX_BYTES = 2**30
_RESERVED_BYTES = 2**30  # address space that threads and heaps reserve but do not use


def main() -> int:
    """Fuzz, print the table, and return 1 if there is a bug."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mutations", type=int, default=1000, help="mutations of each kind of file"
    )
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="only the mutation with this number")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"HOME": scratch, "WSI_IDC_CACHE": f"{scratch}/cache"}
        from fuzzing.kinds import make_kinds

        logging.getLogger("wsi_idc").setLevel(logging.CRITICAL + 1)
        kinds = make_kinds(Path(scratch))
        if unknown := set(given.kind or ()) - set(kinds):
            parser.error(f"no kind {unknown.pop()}; there are {', '.join(kinds)}")
        numbers = range(given.mutations) if given.only is None else [given.only]
        sys.stdout.write(f"| reader | mutations | {' | '.join(OUTCOMES.values())} |\n")
        sys.stdout.write("|---|" + "---:|" * (len(OUTCOMES) + 1) + "\n")
        num_bad = 0
        for name in given.kind or kinds:
            counts = _fuzz(name, kinds[name], list(numbers), given.seed, given.failures)
            cells = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
            sys.stdout.write(f"| {name} | {counts.total()} | {cells} |\n")
            sys.stdout.flush()
            num_bad += sum(counts[outcome] for outcome in BAD)
    return 1 if num_bad else 0


def _fuzz(name: str, kind: "Kind", numbers: list[int], seed: int, failures: Path) -> Counter[str]:
    """Read all mutations of a kind of file in child processes; count the outcomes."""
    if _read_batch(name, kind, [_UNCHANGED], seed, failures)[0] != ["valid"]:
        raise RuntimeError(f"{name}: the program cannot even read the file without a mutation")
    counts: Counter[str] = Counter()
    waiting = numbers
    while waiting:
        batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
        outcomes, _ = _read_batch(name, kind, batch, seed, failures)
        counts.update(outcomes)
        if len(outcomes) < len(batch):  # the child ended early: a new child reads the next files
            counts[_outcome_of_end(name, kind, batch[len(outcomes)], seed, failures)] += 1
            waiting = batch[len(outcomes) + 1 :] + waiting
    return counts


def _outcome_of_end(name: str, kind: "Kind", number: int, seed: int, failures: Path) -> str:
    """Read a mutation again that has ended its child process; return "hang" or "crash"."""
    again, is_late = _read_batch(name, kind, [number], seed, failures)
    if again:  # an earlier mutation of the batch may be the cause
        sys.stderr.write(f"{name} {number}: ended its batch; in a separate child: {again[0]}\n")
    outcome = "hang" if is_late else "crash"
    _keep(name, kind, number, seed, failures, f"{outcome} of the process")
    return outcome


def _read_batch(
    name: str, kind: "Kind", batch: list[int], seed: int, failures: Path
) -> tuple[list[str], bool]:
    """Read mutations in a child process until one hangs or crashes.

    Returns:
        The outcomes before the hang or crash, and whether a mutation hangs.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _child(name, kind, batch, seed, failures, os.fdopen(writing, "wb", buffering=0))
        finally:
            os._exit(0)
    os.close(writing)
    output, is_late = b"", False
    start, cpu_start = time.monotonic(), 0.0  # when the child began to read the current file
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while output.count(b"\n") < len(batch) and not is_late:
            if select.select([pipe], [], [], _POLL_SECONDS)[0]:
                more = pipe.read(4096)
                if not more:
                    break
                output += more
                start, cpu_start = time.monotonic(), _cpu_seconds(child)
            is_late = (
                _cpu_seconds(child) - cpu_start > _MAX_CPU_SECONDS
                or time.monotonic() - start > _MAX_SECONDS
            )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return output.decode().split("\n")[:-1], is_late


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(
    name: str, kind: "Kind", batch: list[int], seed: int, failures: Path, pipe: BinaryIO
) -> None:
    warnings.simplefilter("ignore")
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = reserved + _MAX_BYTES + _RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if len(batch) > 1:  # hide the messages that C libraries write to standard error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in batch:
        with tempfile.TemporaryDirectory() as scratch:
            files = mutated_files(name, kind, number, seed)
            outcome, why = _outcome(kind, files, Path(scratch))
        if outcome in BAD:
            _keep(name, kind, number, seed, failures, f"{outcome}\n{why}")
        if len(batch) == 1:
            sys.stderr.write(f"{name} {number}: {outcome}\n{why}\n")
        pipe.write(f"{outcome}\n".encode())


def mutated_files(name: str, kind: "Kind", number: int, seed: int) -> dict[str, bytes]:
    """Return the files of a kind with a mutation in one file; equal arguments give equal bytes."""
    if number == _UNCHANGED:
        return dict(kind.files)
    rng = random.Random(f"{seed} {name} {number}")
    target = rng.choice(sorted(kind.mutate))
    try:
        return {**kind.files, target: kind.mutate[target](kind.files[target], rng)}
    except (MemoryError, RecursionError):  # the mutated values are nested too deeply
        return {**kind.files, target: kind.files[target][:-1]}


def _outcome(kind: "Kind", files: dict[str, bytes], folder: Path) -> tuple[str, str]:
    """Read files as the program does; return the outcome and the reason."""
    from wsi_idc.core.errors import WsiIdcError

    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    before = _peak_bytes(reset=True)
    outcome, why = "valid", ""
    try:
        kind.read(folder)
    except WsiIdcError as error:
        outcome, why = "refused", f"{type(error).__name__}: {error}"
        if _ran_out_of_memory(error):
            outcome, why = "memory", traceback.format_exc()
        elif "\n" in str(error):
            outcome = "traceback"
    except BaseException as error:  # noqa: BLE001
        why = traceback.format_exc()
        is_of_the_system = isinstance(error, OSError) and error.strerror is not None
        outcome = "refused" if is_of_the_system else "traceback"
    if (used := _peak_bytes() - before) > _MAX_BYTES:
        return "memory", f"{used / 1e9:.1f} GB\n{why}"
    return outcome, why


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Return whether a lack of memory caused an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "tried to allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _peak_bytes(*, reset: bool = False) -> int:
    """Return the peak memory of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _keep(name: str, kind: "Kind", number: int, seed: int, failures: Path, why: str) -> None:
    folder = failures / f"{name.replace(' ', '-')}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    for file, data in mutated_files(name, kind, number, seed).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    (folder / "why.txt").write_text(
        f"python tools/fuzz.py --kind '{name}' --seed {seed} --only {number}\n{why}\n"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Fuzz every file that the program reads: a damaged file is read, or refused in one line.

    python tools/fuzz.py [--mutations 1000] [--kind pack ...] [--seed 0] [--failures FOLDER]
    python tools/fuzz.py --kind pack --only 713     repeat one mutation, with its traceback

All other outcomes are bugs: a
traceback, more than 5 s of CPU time or a minute of waiting, more than 1 GB of memory, a dead
process. The script keeps the files of bugs in the folder of failures, and prints a Markdown table.
Linux only: it forks and reads /proc.
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
_SECONDS = 5.0  # CPU time
_SECONDS_WAITED = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0
_BATCH = 50
_UNCHANGED = -1  # number of the files without a mutation
_BYTES = 2**30
_SLACK_BYTES = 2**30  # addresses that threads and heaps reserve but do not use


def main() -> int:
    """Fuzz, print the table, and return 1 if there is any bug."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mutations", type=int, default=1000, help="mutations of each kind of file"
    )
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="only the mutation of this number")
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
            found = _fuzz(name, kinds[name], list(numbers), given.seed, given.failures)
            counts = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
            sys.stdout.write(f"| {name} | {found.total()} | {counts} |\n")
            sys.stdout.flush()
            num_bad += sum(found[outcome] for outcome in BAD)
    return 1 if num_bad else 0


def _fuzz(name: str, kind: "Kind", numbers: list[int], seed: int, failures: Path) -> Counter[str]:
    """Read every mutation in child processes, one batch in each; return the outcomes."""
    if _in_a_child(name, kind, [_UNCHANGED], seed, failures)[0] != ["valid"]:
        raise RuntimeError(f"the good {name} cannot be read, so there is nothing to find out")
    found: Counter[str] = Counter()
    waiting = numbers
    while waiting:
        batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
        outcomes, _ = _in_a_child(name, kind, batch, seed, failures)
        if len(outcomes) < len(batch):  # it died: of what, and the rest in another child
            guilty = batch[len(outcomes)]
            died, waiting = (
                _outcome_of_death(name, kind, guilty, seed, failures),
                (batch[len(outcomes) + 1 :] + waiting),
            )
            found[died] += 1
        found.update(outcomes)
    return found


def _outcome_of_death(name: str, kind: "Kind", number: int, seed: int, failures: Path) -> str:
    """Read the mutation that a child died of once more, by itself; return the outcome."""
    again, is_late = _in_a_child(name, kind, [number], seed, failures)
    if again:
        # It was the batch's: damage done before.
        sys.stderr.write(f"{name} {number}: died in its batch; run separately it is {again[0]}\n")
    outcome = "hang" if is_late else "crash"
    _keep(name, kind, number, seed, failures, f"{outcome} of the process")
    return outcome


def _in_a_child(
    name: str, kind: "Kind", batch: list[int], seed: int, failures: Path
) -> tuple[list[str], bool]:
    """Return the outcomes of a batch up to the first that took too long or killed the process.

    The other value is whether it took too long.
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
    said, is_late = b"", False
    since, worked = time.monotonic(), 0.0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while said.count(b"\n") < len(batch) and not is_late:
            if select.select([pipe], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
                more = pipe.read(4096)
                if not more:
                    break
                said += more
                since, worked = time.monotonic(), _cpu_seconds(child)
            is_late = (
                _cpu_seconds(child) - worked > _SECONDS
                or time.monotonic() - since > _SECONDS_WAITED
            )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said.decode().split("\n")[:-1], is_late


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(
    name: str, kind: "Kind", batch: list[int], seed: int, failures: Path, pipe: BinaryIO
) -> None:
    warnings.simplefilter("ignore")
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = reserved + _BYTES + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if len(batch) > 1:  # what C libraries complain of
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in batch:
        with tempfile.TemporaryDirectory() as scratch:
            files = spoilt(name, kind, number, seed)
            outcome, why = _outcome(kind, files, Path(scratch))
        if outcome in BAD:
            _keep(name, kind, number, seed, failures, f"{outcome}\n{why}")
        if len(batch) == 1:
            sys.stderr.write(f"{name} {number}: {outcome}\n{why}\n")
        pipe.write(f"{outcome}\n".encode())


def spoilt(name: str, kind: "Kind", number: int, seed: int) -> dict[str, bytes]:
    """Return the files of a kind, one of them spoilt; the same for the same arguments."""
    if number == _UNCHANGED:
        return dict(kind.files)
    rng = random.Random(f"{seed} {name} {number}")
    target = rng.choice(sorted(kind.spoil))
    try:
        return {**kind.files, target: kind.spoil[target](kind.files[target], rng)}
    except (MemoryError, RecursionError):  # too deep to be written
        return {**kind.files, target: kind.files[target][:-1]}


def _outcome(kind: "Kind", files: dict[str, bytes], folder: Path) -> tuple[str, str]:
    """Read files as the program does; return the outcome and its reason."""
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
    if (used := _peak_bytes() - before) > _BYTES:
        return "memory", f"{used / 1e9:.1f} GB\n{why}"
    return outcome, why


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Return whether what an error was made of is that memory was refused."""
    while error is not None:
        if isinstance(error, MemoryError) or "tried to allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory this process has held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _keep(name: str, kind: "Kind", number: int, seed: int, failures: Path, why: str) -> None:
    folder = failures / f"{name.replace(' ', '-')}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    for file, data in spoilt(name, kind, number, seed).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    (folder / "why.txt").write_text(
        f"python tools/fuzz.py --kind '{name}' --seed {seed} --only {number}\n{why}\n"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Decoding in threads and processes: stopped or killed, it resumes to the same pack."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests.packs import (
    add_bad_files,
    add_patch,
    file_name,
    make_tree,
    make_unreadable,
    names,
    pack_content,
    pixels_of,
    save_png,
)
from wsi_idc.core.errors import DataError, WorkerError, WsiIdcError
from wsi_idc.data.decode import DecodedTree
from wsi_idc.data.decode_cache import _WorkerProcess, create_worker_pool
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_index import index_tree
from wsi_idc.data.patch_store import FileIssue, FolderStore
from wsi_idc.data.prepare import prepare

NEVER, ALWAYS = 10**9, 1  # number of files from which processes decode instead of threads
# A patch of the second of the four chunks of `square_tree`: 400 files in chunks of 128.
ROW, PATH = 201, f"1/1/{file_name('1', 10, 1, 1)}"

# Each line on standard input is a run: tree, pack, log, number of files for processes. Without
# `if __name__ == "__main__"`, as in a user's script: worker processes must not run it again.
RUNNER = """
import os, signal, sys
from pathlib import Path
from wsi_idc.data import decode
from wsi_idc.data.prepare import prepare

for line in sys.stdin:
    tree, out, log, min_files = line.split()
    if (pid := os.fork()) == 0:
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        # A background job of a shell ignores Ctrl-C by default.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        decode._MIN_FILES_FOR_PROCESSES = int(min_files)
        prepare(Path(tree), Path(out), num_workers=2)
        sys.exit()
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Runner:
    """Runs ``prepare`` in processes that can be killed, without importing the program each time."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        (folder / "runner.py").write_text(RUNNER)
        self.process = subprocess.Popen(
            [sys.executable, folder / "runner.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, tree: Path, out: Path, min_files: int) -> int:
        """Start a run; return its process id, which is also that of its process group."""
        assert self.process.stdin and self.process.stdout
        print(tree, out, self.log, min_files, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self) -> str:
        """Wait for the end of the run; return its standard error."""
        assert self.process.stdout
        assert self.process.stdout.readline() == "ended\n"
        return self.log.read_text()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    with runner.process:
        yield runner
        runner.process.kill()


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in processes, however small the tree."""
    monkeypatch.setattr("wsi_idc.data.decode._MIN_FILES_FOR_PROCESSES", ALWAYS)


@pytest.fixture(scope="module")
def all_patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = [(row, col, col % 2) for row in range(20) for col in range(20)]
    return make_tree(tmp_path_factory.mktemp("square") / "tree", {"1": cells})


@pytest.fixture
def square_tree(all_patches: Path, tmp_path: Path) -> Path:
    """Return a tree of 20 rows of 20 different patches."""
    return shutil.copytree(all_patches, tmp_path / "tree")


@pytest.fixture(scope="module")
def long_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree of 6,000 links to a few patches, with one file that is no patch."""
    tree = tmp_path_factory.mktemp("long") / "tree"
    sources = [add_patch(tree, "1", 70, col, 0) for col in range(7)]
    for i in range(6_000):
        os.link(sources[i % 7], tree / "1" / "0" / file_name("1", i // 200, i % 200, 0))
    (tree / "1" / "0" / file_name("1", 60, 0, 0)).write_bytes(b"bad")
    return tree


@pytest.fixture(scope="module")
def undisturbed(long_tree: Path) -> Path:
    """Return the pack of that tree, made in one run."""
    return prepare(long_tree, long_tree.parent / "a.h5").pack


def assert_same_files(out: Path, expected: Path) -> None:
    assert pack_content(out) == pack_content(expected)
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]
    for name in ("rejected.csv", "flagged.csv"):
        assert out.with_name(name).read_bytes() == expected.with_name(name).read_bytes()


def cache_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.pixels.partial")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("min_files", [NEVER, ALWAYS])
def test_ctrl_c_ends_all_processes_and_the_next_run_resumes(
    runner, long_tree, undisturbed, tmp_path, caplog, min_files
):
    out = tmp_path / "out" / "a.h5"
    for _ in range(20):  # on a busy machine the run may end before the signal arrives
        pid = runner.start(long_tree, out, min_files)
        wait_until(lambda: size_of(cache_of(out)) > 0 or out.exists())
        start = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGINT)  # as a terminal does, to child processes too
        errors = runner.wait()
        if "KeyboardInterrupt" in errors:
            break
        shutil.rmtree(out.parent)
    assert time.monotonic() - start < 5
    assert errors.count("Traceback") == 1
    assert "resource_tracker" not in errors
    assert names(out.parent) == [cache_of(out).name]
    caplog.set_level("INFO", logger="wsi_idc")
    prepare(long_tree, out)
    (line,) = [line for line in caplog.messages if line.startswith("resuming after")]
    assert int(line.split()[2]) >= 128
    assert_same_files(out, undisturbed)


@pytest.mark.parametrize(("min_files", "num_kills"), [(NEVER, 10), (ALWAYS, 4)])
def test_a_run_killed_many_times_ends_in_the_same_bytes(
    runner, long_tree, undisturbed, tmp_path, min_files, num_kills
):
    out = tmp_path / "out" / "a.h5"
    rng = np.random.default_rng(0)
    step = 40 // num_kills * (2**18 + 128 * 7500)
    for kill in range(num_kills):
        pid = runner.start(long_tree, out, min_files)
        # In any state, from before the first of the 47 chunks to one of the last.
        enough = kill * step + rng.integers(step)
        wait_until(lambda enough=enough: size_of(cache_of(out)) >= enough or out.exists())
        os.kill(pid, signal.SIGKILL)
        runner.wait()
        assert not out.exists()
    prepare(long_tree, out)
    assert_same_files(out, undisturbed)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find processes in")
def test_no_process_outlives_a_killed_parent(runner, long_tree, tmp_path):
    out = tmp_path / "a.h5"
    pid = runner.start(long_tree, out, ALWAYS)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 3)  # workers and resource tracker
    processes = [int(child) for child in children.read_text().split()]
    os.kill(pid, signal.SIGKILL)
    runner.wait()
    wait_until(lambda: not any(map(is_running, processes)), 10)


def test_a_worker_imports_little_and_leaves_signals_to_its_parent():
    with create_worker_pool(1) as pool:
        modules = pool.submit(eval, "list(__import__('sys').modules)").result()
        blocked = pool.submit(eval, "__import__('signal').pthread_sigmask(0, [])").result()
    assert {"torch", "click", "pytest", "pandas"}.isdisjoint(modules)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} <= blocked


def stop_when_decoded(tree: Path, out: Path) -> Path:
    """Stop prepare when all is decoded; return the cache file that it leaves."""
    stopped = patch.object(DecodedTree, "table", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), stopped:
        prepare(tree, out)
    return cache_of(out)


def count_reads(tree: Path, out: Path) -> int:
    """Prepare and return how many files this process read."""
    with patch.object(FolderStore, "read", autospec=True, side_effect=FolderStore.read) as read:
        prepare(tree, out)
    return len(read.call_args_list)


def test_complete_chunks_are_not_decoded_again(square_tree, tmp_path):
    tree, out = square_tree, tmp_path / "a.h5"
    (tree / "1/0" / file_name("1", 0, 0, 0)).write_bytes(b"bad")
    expected = pack_content(prepare(tree, tmp_path / "b.h5").pack)
    cache = stop_when_decoded(tree, out)
    whole = cache.read_bytes()
    assert count_reads(tree, out) == 1  # the bad one
    assert pack_content(out) == expected
    second = 20 + 2**18 + 128 * 7500
    assert whole[second:].startswith(b"WSIchunk")

    def flipped(i: int) -> bytes:
        return whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]

    for damaged, expected_reads in [
        (whole[:-1], 400 - 3 * 128 + 1),
        (whole[: second + 500_000], 400 - 128 + 1),
        (whole[:second], 400 - 128 + 1),
        (flipped(127 * 7500), 400),  # in the pixels
        (flipped(second + 30), 400 - 128 + 1),  # in the text
        (flipped(second + 11), 400 - 128 + 1),  # in the length of the text
        (flipped(second + 19), 400 - 128 + 1),  # in the checksum
        (bytes(len(whole)), 400),
        (whole + b"more", 1),
        (b"", 400),
        (b"another program's", 400),
    ]:
        cache.write_bytes(damaged)
        assert count_reads(tree, out) == expected_reads
        assert pack_content(out) == expected
        assert not cache.exists()


@pytest.mark.parametrize("is_read_before", [True, False])
def test_a_changed_file_is_decoded_again(square_tree, tmp_path, monkeypatch, is_read_before):
    out, path, read, pixels = tmp_path / "a.h5", square_tree / PATH, os.read, pixels_of("2", 0, 0)

    def change_after_read(fd: int, num_bytes: int) -> bytes:
        data = read(fd, num_bytes)
        if os.path.samestat(os.fstat(fd), path.stat()):
            save_png(path, pixels)
        return data

    with monkeypatch.context() as context:
        if not is_read_before:
            context.setattr("wsi_idc.data.patch_store.os.read", change_after_read)
        stop_when_decoded(square_tree, out)
    if is_read_before:
        save_png(path, pixels)
    assert count_reads(square_tree, out) == 400 - 128
    assert np.array_equal(Pack(out).patches[ROW], pixels)
    assert pack_content(out) == pack_content(prepare(square_tree, tmp_path / "b.h5").pack)


def test_an_unreadable_file_is_tried_again(square_tree, tmp_path, monkeypatch):
    out, path = tmp_path / "a.h5", square_tree / PATH
    moved = path.rename(tmp_path / "x.png")
    path.symlink_to(tmp_path / "y.png")
    stop_when_decoded(square_tree, out)
    assert count_reads(square_tree, out) == 1
    assert len(Pack(out)) == 399
    stop_when_decoded(square_tree, out)
    moved.rename(tmp_path / "y.png")
    assert count_reads(square_tree, out) == 400 - 128
    assert np.array_equal(Pack(out).patches[ROW], pixels_of("1", 10, 1))
    # A disk error ends without a change of size and time.
    with monkeypatch.context() as context:
        make_unreadable(context, PATH)
        stop_when_decoded(square_tree, out)
    prepare(square_tree, out)
    assert len(Pack(out)) == 400


@pytest.mark.parametrize("as_processes", [False, True])
def test_a_folder_that_vanishes_is_an_error_and_the_next_run_resumes(
    square_tree, tmp_path, monkeypatch, as_processes
):
    if as_processes:
        monkeypatch.setattr("wsi_idc.data.decode._MIN_FILES_FOR_PROCESSES", ALWAYS)
    out, folder = tmp_path / "a.h5", square_tree / "1/1"
    first = prepare(square_tree, out).info

    def index_and_lose(*args: object, **options: object) -> object:
        index = index_tree(*args, **options)
        folder.rename(tmp_path / "away")
        return index

    with (
        patch("wsi_idc.data.prepare.index_tree", index_and_lose),
        pytest.raises(WorkerError, match="1/1: the folder vanished while it was read; run again"),
    ):
        prepare(square_tree, out, num_workers=2)
    assert (Pack(out).info, cache_of(out).exists()) == (first, True)
    (tmp_path / "away").rename(folder)
    assert (prepare(square_tree, out).info, cache_of(out).exists()) == (first, False)


def test_a_disk_that_fails_is_an_error_but_a_few_files_without_access_are_left_out(
    square_tree, tmp_path, monkeypatch
):
    out = tmp_path / "a.h5"
    with monkeypatch.context() as context:
        make_unreadable(context, "_y1_class0.png")  # 10 of 400 files
        report = prepare(square_tree, out)
        assert (report.num_patches, report.lost_patients) == (390, [])
        assert {issue.reason for issue in report.rejected} == {"no access"}
    with monkeypatch.context() as context:
        make_unreadable(context, "1_class1.png")  # 200 of 400 files
        with pytest.raises(
            WorkerError, match=r"files cannot be read, such as .*Input/output error"
        ):
            prepare(square_tree, out)
    assert len(Pack(out)) == 390
    assert prepare(square_tree, out).num_patches == 400


def test_files_without_access_whose_copies_are_packed_do_not_stop_the_run(
    square_tree, tmp_path, monkeypatch
):
    shutil.copytree(square_tree, tmp_path / "copies")
    (tmp_path / "copies").rename(square_tree / "copies")
    make_unreadable(monkeypatch, "1_class1.png", unless="copies/")  # 200 of 400 files
    report = prepare(square_tree, tmp_path / "a.h5")
    assert (report.num_patches, report.lost_patients) == (400, [])


def test_a_resumed_run_takes_copies_of_damaged_patches(square_tree, tmp_path):
    (square_tree / "copy" / PATH).parent.mkdir(parents=True)
    shutil.copy(square_tree / PATH, square_tree / "copy" / PATH)
    expected = pack_content(prepare(square_tree, tmp_path / "a.h5").pack)["patches"]
    (square_tree / PATH).write_bytes(bytes((square_tree / PATH).stat().st_size))
    out = tmp_path / "b.h5"
    stop_when_decoded(square_tree, out)
    report = prepare(square_tree, out)
    assert pack_content(out)["patches"] == expected
    detail = f"not a PNG file; its copy copy/{PATH} is packed"
    assert report.rejected == (FileIssue(PATH, "unreadable", detail),)


def test_another_patch_size_decodes_all_again(tree, tmp_path):
    out = tmp_path / "a.h5"
    stop_when_decoded(tree, out)
    assert prepare(tree, out, patch_px=50, mpp=2.0).info.mpp == 2.0
    stop_when_decoded(tree, out)
    with pytest.raises(DataError, match="no patch could be read"):
        prepare(tree, out, patch_px=25)


def test_the_number_of_workers_changes_nothing(all_patches, tmp_path):
    packs = [prepare(all_patches, tmp_path / f"{n}.h5", num_workers=n).pack for n in (1, 2, 7)]
    assert pack_content(packs[0]) == pack_content(packs[1]) == pack_content(packs[2])
    assert np.array_equal(Pack(packs[0]).patches[399], pixels_of("1", 19, 19))


@pytest.mark.usefixtures("in_processes")
def test_processes_decode_as_threads_do(square_tree, tmp_path, monkeypatch):
    tree, out = make_tree(square_tree), tmp_path / "b" / "a.h5"
    expected = add_bad_files(tree)
    threads = prepare(tree, tmp_path / "a" / "a.h5", num_workers=1)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert count_reads(tree, out) == 0
    assert_same_files(out, threads.pack)
    assert {issue.path for issue in threads.rejected} == set(expected)


@pytest.mark.usefixtures("in_processes")
def test_a_killed_worker_is_one_line_and_the_next_run_resumes(all_patches, tmp_path):
    out = tmp_path / "out" / "a.h5"

    def create_and_kill(num_workers: int) -> object:
        pool = create_worker_pool(num_workers)
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        return pool

    killed = patch("wsi_idc.data.decode.create_worker_pool", create_and_kill)
    with killed, pytest.raises(WorkerError) as caught:
        prepare(all_patches, out, num_workers=2)
    assert str(caught.value).startswith("a process that decodes patches was killed, perhaps ")
    assert len(str(caught.value).splitlines()) == 1
    assert names(out.parent) == [cache_of(out).name]
    prepare(all_patches, out, num_workers=2)
    assert_same_files(out, prepare(all_patches, tmp_path / "b.h5", num_workers=1).pack)


@pytest.mark.usefixtures("in_processes")
@pytest.mark.parametrize("is_early", [True, False])
def test_a_worker_that_starts_while_another_is_killed_does_not_hang(
    all_patches, tmp_path, is_early
):
    start = _WorkerProcess.start

    def start_beside_a_kill(process: _WorkerProcess) -> None:
        others = multiprocessing.active_children()
        if not is_early:
            start(process)
        for other in others:
            other.kill()
            time.sleep(1)
        if is_early:
            start(process)

    beside = patch.object(_WorkerProcess, "start", start_beside_a_kill)
    with beside, pytest.raises(WorkerError, match="a process that decodes patches was killed"):
        prepare(all_patches, tmp_path / "a.h5", num_workers=2)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("in_processes")
def test_a_full_disk_in_a_worker_is_one_line(all_patches, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(WsiIdcError, match="file too large; free some space and run again"):
            prepare(all_patches, tmp_path / "out" / "a.h5", num_workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "out") == []

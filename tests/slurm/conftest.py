"""A SLURM of two nodes on this machine, and a project's folder to submit from."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from wsi_idc.data.prepare import prepare
from wsi_idc.synthetic.cohort import write_cohort

REPOSITORY = Path(__file__).parents[2]
_NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare")


class Cluster:
    """Submits from a project's folder and waits for what comes of it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def run(self, *words: str) -> str:
        """Run a command in the folder and return what it says."""
        found = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    def sbatch(self, *words: str) -> str:
        """Submit and return the job's id."""
        return self.run("sbatch", "--parsable", *words)

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`, of an array's task or a job."""
        for word in self.run("scontrol", "show", "job", job).split():
            key, _, value = word.partition("=")
            if key == name:
                return value
        raise KeyError(name)

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def wait(self, what: Callable[[], object], *, seconds: float = 200, job: str = "") -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"not in {seconds} s\n{self.log(job)}\n{self.queue()}"
            time.sleep(0.3)

    def wait_for_end(self, job: str, state: str = "COMPLETED", *, seconds: float = 200) -> None:
        """Wait until a job is over, hurrying it out of the two minutes that a requeue waits."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.wait(lambda: self.hurry(job) or self.state(job) in over, seconds=seconds, job=job)
        assert self.state(job) == state, self.log(job)

    def hurry(self, job: str) -> None:
        """Let a requeued job begin soon; at once, a node may take it for the killed one."""
        if self.state(job) == "PENDING" and self.field(job, "Reason") == "BeginTime":
            start = self.field(job, "StartTime")
            soon = datetime.now() + timedelta(seconds=5)
            if start != "Unknown" and datetime.fromisoformat(start) > soon:
                self.run("scontrol", "update", f"jobid={job}", "StartTime=now+2")

    def queue(self) -> str:
        return self.run("squeue", "-o", "%i %j %T %R")

    def log(self, job: str) -> str:
        """Return what a job, or each task of an array, has said so far."""
        files = sorted(self.folder.rglob(f"*-{job}*.out"))
        return "\n".join(file.read_text() for file in files)


@contextmanager
def _slurm(number: int, **settings: str) -> Iterator[dict[str, str]]:
    """Start the cluster of this number, and return the environment that leads to it."""
    missing = [name for name in _NEEDED if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no SLURM to bring up here: {', '.join(missing) or 'only root can'}")
    lab = Path(f"/tmp/wsi-idc-slurm-{os.getpid()}-{number}")
    script = [str(Path(__file__).with_name("lab.sh"))]
    environment = {
        **os.environ,
        "SLURM_LAB": str(lab),
        # Other test runs on this machine need other ports. A cluster has three.
        "SLURM_LAB_PORT": str(26000 + os.getpid() % 1500 * 8 + number * 4),
        "SLURM_CONF": str(lab / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    for name in list(environment):
        if name.startswith(("COVERAGE_", "COV_", "PYTEST_", "WSI_IDC_", "SBATCH_")):
            del environment[name]
    try:
        up = subprocess.run([*script, "up"], env=environment, capture_output=True, timeout=100)
        if up.returncode:
            pytest.fail(f"SLURM is installed but does not come up: {up.stderr.decode()}")
        yield environment
    finally:
        subprocess.run([*script, "down"], env=environment, capture_output=True, timeout=100)
        shutil.rmtree(lab, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    with _slurm(0) as environment:
        yield environment


@pytest.fixture(scope="session")
def binding_slurm() -> Iterator[dict[str, str]]:
    """Cluster of two cores per node that binds each process to its cores."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("SLURM binds processes to two cores, and this machine has one")
    with _slurm(1, SLURM_LAB_TASK_PLUGIN="task/affinity", SLURM_LAB_CPUS="2") as environment:
        yield environment


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a patch tree of eight patients."""
    folder = tmp_path_factory.mktemp("cohort") / "tree"
    write_cohort(folder, num_patients=8, patches_per_patient=40, seed=0)
    return folder


@pytest.fixture(scope="session")
def pack(tree: Path) -> Path:
    """Return the pack of the tree."""
    return prepare(tree, tree.with_name("idc.h5")).pack


@pytest.fixture
def cluster(slurm: dict[str, str], pack: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Return a project's folder on the cluster: scripts, jobs and a pack."""
    for name in ("slurm", "jobs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "idc.h5").symlink_to(pack)
    yield Cluster(tmp_path, {**slurm, "WSI_IDC_CACHE": str(tmp_path / "cache")})
    subprocess.run(["scancel", "--user=root"], env=slurm, check=False, timeout=60)


PROGRAM = """#!/usr/bin/env bash
echo "rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $(hostname)"
echo "cores $(sed -n 's/^Cpus_allowed_list:\\t//p' /proc/self/status), $SLURM_CPUS_PER_TASK asked"
echo "restarts $SLURM_RESTART_COUNT, SITE ${SITE:-none}, MARK ${MARK:-none}, words $*"
"""


@pytest.fixture
def binding_cluster(binding_slurm: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    """Project's folder, whose virtual environment has a program that prints its resources."""
    for name in ("slurm", "jobs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    program = tmp_path / ".venv/bin/wsi-idc"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    program.with_name("activate").write_text(f"export PATH={program.parent}:$PATH MARK=venv\n")
    yield Cluster(tmp_path, binding_slurm)
    subprocess.run(["scancel", "--user=root"], env=binding_slurm, check=False, timeout=60)

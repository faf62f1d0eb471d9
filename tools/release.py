"""Check that the current commit can be released; print each step with its result.

    pip install '.[release]'
    python tools/release.py [--out build/release]

The script builds the sdist and the wheel from the commit, checks both, installs the wheel in a new
virtual environment (some minutes, several GB), and runs the demo there. It exits with 1 if a step
fails. It uploads nothing. CONTRIBUTING.md lists the steps before and after it.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_PLACEHOLDER = "OWNER"
_MAX_LINES = 15  # of the output of a failed command


class StepError(Exception):
    """A step of the release fails; the message has the reason and the remedy."""


def main() -> int:
    """Run all steps; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/release")
    out: Path = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory(prefix="wsi-idc-release-") as name:
        folder = Path(name)
        program = folder / "venv/bin/wsi-idc"
        steps: list[tuple[str, Callable[[], object]]] = [
            ("the working tree has no changes", check_tree),
            ("the version and its date are the same everywhere", check_versions),
            ("setup.py has the address of the repository", check_address),
            ("the sdist and the wheel are built", lambda: build(folder / "source", out)),
            ("their metadata are valid", lambda: run("twine", "check", "--strict", *dists(out))),
            ("they have every file", lambda: check_files(*dists(out))),
            ("the wheel is installed", lambda: install(program.parents[1], dists(out)[1])),
            ("wsi-idc --version", lambda: check_program(program)),
            ("wsi-idc demo", lambda: run(program, "demo", cwd=folder)),
        ]
        passed = [_passes(step, check) for step, check in steps]
    sys.stdout.write(f"{sum(passed)} of {len(passed)} steps passed; files are in {out}\n")
    return 0 if all(passed) else 1


def _passes(step: str, check: Callable[[], object]) -> bool:
    start = time.monotonic()
    try:
        check()
    except StepError as error:
        result, reason = "FAIL", f": {error}"
    else:
        result, reason = "pass", ""
    sys.stdout.write(f"{result}  {time.monotonic() - start:4.0f} s  {step}{reason}\n")
    sys.stdout.flush()
    return not reason


def run(program: str | Path, *arguments: str | Path, cwd: Path = REPOSITORY) -> str:
    """Run a program or a Python module; return its output.

    Raises:
        StepError: The program fails. The message ends with the last lines of its output.
    """
    command = [sys.executable, "-m", program] if program in ("build", "twine") else [program]
    done = subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-_MAX_LINES:])
        raise StepError(f"{program} ends with {done.returncode}\n{end}")
    return done.stdout


def check_tree() -> None:
    """Check that git reports no changed and no new file."""
    if changed := run("git", "status", "--porcelain").split():
        raise StepError(f"commit or remove {changed[1]}")


def versions() -> dict[str, tuple[str, str]]:
    """Return the version and its date, "" if it has none, in each file that has them."""
    patterns = {
        "wsi_idc/__init__.py": r'^__version__ = "(.+)"()$',
        "CITATION.cff": r"^version: (\S+)\n(?:date-released: (\S+)$)?",
        "CHANGELOG.md": r"^## ([\d.]+)(?: \((\d{4}-\d\d-\d\d)\))?",
    }
    found = {}
    for name, pattern in patterns.items():
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        first = re.search(pattern, text, re.MULTILINE)
        found[name] = (first[1], first[2] or "") if first else ("", "")
    return found


def check_versions() -> None:
    """Check that the version has a date, notes and golden files, and nothing is unreleased."""
    found = versions()
    version = found["wsi_idc/__init__.py"][0]
    for name, (other, _) in found.items():
        if other != version:
            raise StepError(f"{name} has version {other or 'none'}, the program has {version}")
    dates = {found[name][1] for name in ("CITATION.cff", "CHANGELOG.md")}
    if len(dates) > 1 or "" in dates:
        raise StepError(
            f"give CITATION.cff the line date-released after the version, and CHANGELOG.md the "
            f"heading '## {version} (date)', with the same date"
        )
    if "## Unreleased" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise StepError("CHANGELOG.md has a heading Unreleased: move its list to the version")
    if not (REPOSITORY / "tests/golden" / version).is_dir():
        raise StepError(f"tests/golden has no {version}: run python tools/golden.py and commit it")


def check_address() -> None:
    """Check that the address of the repository is not the placeholder."""
    text = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    address = re.findall(r'^ADDRESS = "(.+?)"', text, re.MULTILINE)[0]
    if _PLACEHOLDER in address:
        raise StepError(f"{address} is a placeholder: write the address of the repository")


def build(source: Path, out: Path) -> None:
    """Build the sdist, and from it the wheel, of the files in the commit."""
    source.mkdir()
    archive = source.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(source, filter="data")
    for old in out.glob("wsi_idc-*"):
        old.unlink()
    run("build", "--outdir", out, source)


def dists(out: Path) -> tuple[Path, Path]:
    """Return the paths of the sdist and of the wheel."""
    found = [*out.glob("wsi_idc-*.tar.gz"), *out.glob("wsi_idc-*.whl")]
    if len(found) != 2:
        raise StepError(f"{out} has no sdist and wheel")
    return found[0], found[1]


def check_files(sdist: Path, wheel: Path) -> None:
    """Check that the sdist has the files of the commit, and the wheel only those of the package."""
    commit = set(run("git", "ls-tree", "-r", "--name-only", "HEAD").splitlines()) - {".gitignore"}
    with tarfile.open(sdist) as files:
        in_sdist = {name.partition("/")[2] for name in files.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    if missing := commit - in_sdist:
        raise StepError(f"the sdist has no {min(missing)}: add it to MANIFEST.in")
    if other := in_wheel ^ {name for name in commit if name.startswith("wsi_idc/")}:
        raise StepError(f"only one of commit and wheel has {min(other)}: see package_data")


def install(environment: Path, wheel: Path) -> None:
    """Install a wheel and its dependencies in a new virtual environment."""
    run(sys.executable, "-m", "venv", environment)
    run(environment / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    run(environment / "bin/python", "-m", "pip", "check")


def check_program(program: Path) -> None:
    """Check that the installed program has the version of this commit."""
    expected = f"wsi-idc, version {versions()['wsi_idc/__init__.py'][0]}\n"
    if (printed := run(program, "--version")) != expected:
        raise StepError(f"it prints {printed!r}")


if __name__ == "__main__":
    sys.exit(main())

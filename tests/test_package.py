"""The metadata of the package: complete, and the same in all files."""

import configparser
import importlib.util
import re
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import wsi_idc

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the metadata that the build writes."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return folder / "wsi_idc.egg-info"


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    return Parser().parsestr((built / "PKG-INFO").read_text(encoding="utf-8"))


def test_the_version_is_the_same_in_all_files():
    spec = importlib.util.spec_from_file_location("release", REPOSITORY / "tools/release.py")
    assert spec is not None
    assert spec.loader is not None
    release = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(release)
    found = {name: version for name, (version, _) in release.versions().items()}
    assert found == dict.fromkeys(
        ("wsi_idc/__init__.py", "CITATION.cff", "CHANGELOG.md"), wsi_idc.__version__
    )


def test_the_metadata_are_complete(metadata: Message):
    assert metadata["Name"] == "wsi-idc"
    assert metadata["Version"] == wsi_idc.__version__
    assert metadata["Author"] == "The wsi-idc developers"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    links = dict(link.split(", ") for link in metadata.get_all("Project-URL", []))
    assert set(links) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(link.startswith(links["Homepage"]) for link in links.values())
    classifiers = set(metadata.get_all("Classifier", []))
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)}
    assert classifiers >= {*versions, "Operating System :: POSIX :: Linux"}
    assert not [one for one in classifiers if one.startswith("License ::")]  # see PEP 639


def test_links_of_the_readme_lead_to_the_files_of_the_version(metadata: Message):
    files = f"/v{wsi_idc.__version__}/"
    text = str(metadata.get_payload())
    address = metadata.get_all("Project-URL", [])[0].split(", ")[1]
    links = re.findall(r"\]\((.+?)\)", text)
    own = [link.partition(files)[2] for link in links if link.startswith(address)]
    assert len(own) > 20
    assert [name for name in own if not (REPOSITORY / name.partition("#")[0]).exists()] == []
    assert [link for link in links if not link.startswith(("https://", "http://", "#"))] == []
    assert f"]({address}/raw{files}docs/images/map.png)" in text


def test_the_sdist_has_every_file_of_the_repository(built: Path):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not in a clone of the repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = {name for name in listed if (REPOSITORY / name).exists()} - {".gitignore"}
    assert files - set((built / "SOURCES.txt").read_text().splitlines()) == set()


def test_the_wheel_has_every_data_file():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    packed = {
        path
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split(", ")
        for path in (REPOSITORY / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (REPOSITORY / "wsi_idc").rglob("*.*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == packed


def test_both_recipes_of_containers_copy_what_the_build_needs():
    oci = (REPOSITORY / "container/Containerfile").read_text()
    apptainer = (REPOSITORY / "container/wsi-idc.def").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) /src", oci, re.MULTILINE)
    files = {name for names in copied for name in names.split()}
    assert files == set(re.findall(r"^    (\S+) /src/\1$", apptainer, re.MULTILINE))
    ignore = (REPOSITORY / ".containerignore").read_text()
    assert files == set(re.findall(r"^!(.+)$", ignore, re.MULTILINE))
    assert " ".join(sorted(files)) == "LICENSE README.md pyproject.toml setup.cfg setup.py wsi_idc"
    defaults = r"(?:BASE|TORCH_INDEX)=\S+"
    assert re.findall(rf"^ARG ({defaults})", oci, re.MULTILINE) == re.findall(
        rf"^    ({defaults})$", apptainer, re.MULTILINE
    )

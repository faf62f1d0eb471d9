"""The site of the documents builds without a warning and loads nothing from other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# The address of a file that a page loads; links of `a` load nothing.
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)")


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    pages = sorted(tmp_path.rglob("*.html"))
    documents = [path for path in (REPOSITORY / "docs").rglob("*.md") if path.name != "README.md"]
    assert {str(path.relative_to(REPOSITORY / "docs")) for path in documents} <= {
        str(path.relative_to(tmp_path).with_suffix(".md")) for path in pages
    }
    for page in pages:
        loaded = LOADED.findall(page.read_text())
        assert "assets/" in "".join(loaded)
        assert [address for address in loaded if "//" in address] == [], page.name
    home = (tmp_path / "index.html").read_text()
    assert 'src="images/map.png"' in home
    assert 'href="reference/files.html#map"' in home
    assert re.search(r'href="https://github\.com/[^"]+/blob/main/LICENSE"', home)

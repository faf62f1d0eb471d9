"""Hooks of mkdocs: pages from outside docs/, and links that work on GitHub and in the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
# Place in the repository: place in the site. All other pages are in docs/.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "documents.md",
    "wsi_idc/models/bundled/idc.md": "reference/model-card.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


# The address of the repository is in setup.py only.
ADDRESS = re.findall(r'^ADDRESS = "(.+?)"', (REPOSITORY / "setup.py").read_text(), re.MULTILINE)[0]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the link to the repository."""
    icon = "fontawesome/brands/github"
    config.extra["social"] = [{"icon": icon, "link": ADDRESS, "name": "Repository"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links to pages into links of the site, and links to other files into addresses."""
    here = page.file.src_uri
    source = next((one for one, place in PAGES.items() if place == here), f"docs/{here}")

    def convert(link: re.Match[str]) -> str:
        path, mark, anchor = link[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = PAGES.get(target, target.removeprefix("docs/"))
        if not path or "://" in path or not (REPOSITORY / target).exists():
            return link[0]  # mkdocs checks it
        if target in PAGES or target.startswith("docs/"):
            return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{mark}{anchor})"
        return f"]({ADDRESS}/blob/main/{target}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", convert, markdown)

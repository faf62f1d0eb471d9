"""Self-contained HTML pages: what every one has, and figures inside of them."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from wsi_idc import NOTICE
from wsi_idc.core.files import write_text
from wsi_idc.core.progress import progress
from wsi_idc.plotting import number_format as wording
from wsi_idc.plotting.style import house_style, save_png_and_svg

FIGURES = "figures"
# The browser itself lets no request leave the page, and runs no script but the page's own.
_POLICY = (
    "default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_FORMS = (
    wording.number,
    wording.signed,
    wording.percent,
    wording.interval,
    wording.signed_interval,
)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page in one atomic step; every value in it is escaped.

    Args:
        path: Where to.
        template: Name of one of the package's templates.
        values: What it shows.
    """
    environment = Environment(
        loader=PackageLoader("wsi_idc.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {form.__name__: form for form in _FORMS}
    script = _read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template).render(
        policy=_POLICY.format(digest=digest),
        style=_read("page.css"),
        script=script,
        notice=NOTICE,
        titles=wording.TITLES,
        **values,
    )
    write_text(path, text)


def _read(name: str) -> str:
    file = resources.files("wsi_idc.evaluation") / "templates" / name
    return file.read_text(encoding="utf-8")


def write_figures(
    drawings: Mapping[str, Callable[[], Figure]], out: Path, *, what: str = "drawing"
) -> dict[str, str]:
    """Write each figure as PNG and SVG into ``out/figures``; return it as a data URI.

    Args:
        drawings: File name without suffix, and what draws it.
        out: The folder of the page.
        what: What the progress is called.
    """
    uris = {}
    with progress(len(drawings), what=what, unit="figure") as bar, house_style():
        for name, draw in drawings.items():
            path = out / FIGURES / name
            save_png_and_svg(draw(), path)
            uris[name] = data_uri(path.with_suffix(".svg").read_bytes(), "image/svg+xml")
            bar.update(1)
    return uris


def remove_figures(names: Mapping[str, Any], out: Path) -> None:
    """Remove figures that an earlier page had, so that none stands beside other numbers."""
    for name in names:
        for suffix in (".png", ".svg"):
            (out / FIGURES / f"{name}{suffix}").unlink(missing_ok=True)


def data_uri(content: bytes, kind: str) -> str:
    """Return the content of a picture as a URI that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

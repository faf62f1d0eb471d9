"""Write self-contained HTML pages: figures and pictures are data URIs in the page.

Functions take the name of a template, style or script as a path relative to ``wsi_idc/``.
"""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, features

from wsi_idc import NOTICE
from wsi_idc.core.files import write_text
from wsi_idc.core.metric_table import THRESHOLD_METRICS, TITLES
from wsi_idc.core.progress import progress
from wsi_idc.plotting import number_format, style
from wsi_idc.plotting.raster import Pixels, colorize, downscale

FIGURES = "figures"
# Largest side of a picture. Browsers draw at most 16,384 px per side, or 8192 px on some graphics
# cards.
MAX_SIDE_PX = 8192
_WEBP_QUALITY = 75
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)


def content_security_policy(
    script: str, *, is_bokeh: bool = False, has_script_file: bool = False
) -> str:
    """Return a content security policy that blocks all requests and foreign scripts.

    Args:
        script: Text of the script of the page.
        is_bokeh: Whether the page has a bokeh document. Bokeh needs inline scripts and eval.
        has_script_file: Whether a file beside the page has the code of bokeh.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = "'unsafe-inline' 'unsafe-eval'" if is_bokeh else f"'sha256-{digest}'"
    # In some browsers, 'self' does not include files of the same folder.
    scripts += " 'self' file:" if has_script_file else ""
    return _POLICY.format(scripts=scripts)


def read_text(name: str) -> str:
    """Read a style or script file of the package."""
    return (resources.files("wsi_idc") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("wsi_idc", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(number_format, name)
        for name in ("number", "signed", "percent", "area", "interval", "signed_interval")
    }
    environment.globals |= {
        "content_security_policy": content_security_policy,
        "notice": NOTICE,
        "read_text": read_text,
        "titles": TITLES,
        "threshold_metrics": THRESHOLD_METRICS,
    }
    return environment


def page_template(name: str) -> Template:
    """Return a page template of the package. The template escapes every value."""
    return _environment().get_template(name)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write an HTML page atomically; the template escapes every value of ``values``."""
    write_text(path, page_template(template).render(**values))


def write_figures(drawings: Mapping[str, Callable[[], Figure]], out: Path) -> dict[str, str]:
    """Write each figure as PNG and SVG into ``out/figures``; return the SVGs as data URIs.

    Args:
        drawings: For each file name without suffix, the function that draws the figure.
        out: Folder of the page.
    """
    uris = {}
    with progress(len(drawings), what="drawing", unit="figure") as bar, style.house_style():
        for name, draw in drawings.items():
            path = out / FIGURES / name
            style.save_png_and_svg(draw(), path)
            uris[name] = data_uri(path.with_suffix(".svg").read_bytes(), "image/svg+xml")
            bar.update(1)
    return uris


def remove_figures(names: Iterable[str], out: Path) -> None:
    """Remove the figures of an earlier page, so that no figure contradicts the new numbers."""
    for name in names:
        for suffix in (".png", ".svg"):
            (out / FIGURES / f"{name}{suffix}").unlink(missing_ok=True)


def data_uri(data: bytes, media_type: str) -> str:
    """Return a data URI that contains the bytes ``data`` of a picture."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def tissue_uri(
    image: Pixels, side_px: int = MAX_SIDE_PX, *, quality: int = 34
) -> tuple[str, float]:
    """Shrink a picture of tissue; return the result as a data URI, and the scale.

    The scale is the side of the result divided by the side of ``image``; it is at most 1.

    Args:
        image: Picture of the tissue, shape (h, w, 3), or (h, w, 4) with opacity.
        side_px: Largest side of the result in px.
        quality: Quality of the AVIF picture, up to 100. With the default, a patch of 50 px has
            about 300 bytes.
    """
    small, scale = _fit(image, side_px)
    if not features.check("avif"):  # a pillow that was built without libavif
        return _picture_uri(small, "WEBP", quality=_WEBP_QUALITY), scale
    # AVIF needs half the bytes of WebP. Colors at full resolution cost 2 % and keep small nuclei;
    # sharpness keeps the texture of the tissue.
    options = {"speed": 9, "subsampling": "4:4:4", "advanced": {"tune": "ssim", "sharpness": "3"}}
    return _picture_uri(small, "AVIF", quality=quality, **options), scale


def grid_uri(grid: NDArray[np.float32], table: Pixels) -> str:
    """Return a grid as a PNG data URI with one px per cell. NaN is transparent.

    Args:
        grid: Values from 0 to 1, shape (rows, cols).
        table: Result of ``color_table``: RGBA color of each value, shape (256, 4).
    """
    return _picture_uri(colorize(grid, table), "PNG", optimize=True)


def _fit(image: Pixels, side_px: int) -> tuple[Pixels, float]:
    scale = side_px / max(image.shape[:2])
    if scale >= 1:
        return image, 1.0
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return downscale(image, height=height, width=width), scale


def _picture_uri(picture: Pixels, image_format: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, image_format, **options)
    return data_uri(buffer.getvalue(), f"image/{image_format.lower()}")

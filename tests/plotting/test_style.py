import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from wsi_idc.plotting.style import (
    Page,
    house_style,
    page_style,
    printable,
    save_pdf,
    save_png_and_svg,
    to_px,
)


def test_page_is_measured_in_mm_from_the_top_left():
    page = Page(100, 50)
    assert page.figure.get_size_inches() * 25.4 == pytest.approx([100, 50])
    ax = page.axes(10, 5, 40, 20)
    assert ax.get_position().extents == pytest.approx([0.1, 0.5, 0.5, 0.9])
    page.text(10, 5, "here")
    assert page.figure.texts[0].get_position() == pytest.approx((0.1, 0.9))
    assert to_px(25.4, dpi=300) == pytest.approx(300)


def test_printable_text_is_one_short_line():
    for text, shown in (("8864", "8864"), ("a\tb\nc", "a?b?c"), (None, "None")):
        assert printable(text, longest=10) == shown
    assert printable("x" * 11, longest=10) == "xxxxxxxxx\N{HORIZONTAL ELLIPSIS}"


# Settings of a user that would turn, recolor, crop or break a figure.
MATPLOTLIBRC = {
    "axes.facecolor": "black",
    "axes.grid": True,
    "figure.autolayout": True,
    "font.family": "serif",
    "image.cmap": "jet",
    "image.origin": "lower",
    "lines.linewidth": 9,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "text.usetex": True,
    "xtick.direction": "in",
}


@pytest.mark.parametrize("style", [house_style, page_style])
def test_a_matplotlibrc_changes_no_figure(style, tmp_path):
    def draw(path):
        with style():
            figure = Figure(figsize=(2, 2))
            ax = figure.add_subplot()
            ax.imshow(np.arange(9).reshape(3, 3))
            ax.plot([0, 2], [0, 1])
            ax.set_title("10253_1 50%")
            save_png_and_svg(figure, path)
        return path.with_suffix(".png").read_bytes(), path.with_suffix(".svg").read_bytes()

    with mpl.rc_context(MATPLOTLIBRC):
        drawn = draw(tmp_path / "a")
        assert mpl.rcParams["image.origin"] == "lower"
    assert drawn == draw(tmp_path / "b")


def test_pdf_embeds_truetype_and_has_no_date(tmp_path):
    with page_style():
        page = Page(50, 20)
        page.text(1, 1, "$x^$")
        save_pdf(page.figure, tmp_path / "a.pdf")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf
    assert mpl.rcParams["pdf.fonttype"] == mpl.rcParamsDefault["pdf.fonttype"]

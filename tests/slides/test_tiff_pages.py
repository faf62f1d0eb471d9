from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_idc.core.errors import SlideError
from wsi_idc.slides.slide import open_slide

PICTURE = np.full((90, 130, 3), 240, np.uint8)
PICTURE[10:60, 20:100] = (200, 110, 170)
PICTURE[20:30, 70:90] = (110, 60, 150)
GREY = PICTURE[..., 1]
PLANES = PICTURE.transpose(2, 0, 1)
LABEL = np.full((40, 50, 3), (250, 200, 120), np.uint8)
RGB = {"photometric": "rgb"}
UM = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}


@pytest.fixture(params=[(64, 64), None], ids=["tiled", "striped"])
def tile(request: pytest.FixtureRequest) -> Any:
    return request.param


def write(path: Path, *pages: tuple[np.ndarray, dict[str, Any]], tile: Any = None) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for pixels, options in pages:
            writer.write(np.ascontiguousarray(pixels), tile=tile, metadata=None, **UM, **options)
    return path


def pixels_of(path: Path, **options: Any) -> np.ndarray:
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, 0, width=slide.width, height=slide.height)


def problem_of(path: Path) -> str:
    with pytest.raises(SlideError) as raised:
        open_slide(path, mpp=1.0)
    return str(raised.value).removeprefix(f"{path}: ")


def turned(orientation: int) -> np.ndarray:
    """Return the px that show PICTURE after the turn of an orientation."""
    transposed = PICTURE.swapaxes(0, 1)
    turns = [PICTURE, PICTURE[:, ::-1], PICTURE[::-1, ::-1], PICTURE[::-1], transposed]
    turns += [np.rot90(PICTURE), transposed[::-1, ::-1], np.rot90(PICTURE, -1)]
    return np.ascontiguousarray(turns[orientation - 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright_and_turned_tiles_are_refused(tmp_path: Path, orientation: int):
    page = (turned(orientation), RGB | {"extratags": [(274, 3, 1, orientation, True)]})
    assert np.array_equal(pixels_of(write(tmp_path / "striped.tif", page)), PICTURE)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(turned(orientation)).save(tmp_path / "a.png", exif=exif.tobytes())
    assert np.array_equal(pixels_of(tmp_path / "a.png", mpp=1.0), PICTURE)
    Image.fromarray(turned(orientation)).save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=95)
    difference = pixels_of(tmp_path / "a.jpg", mpp=1.0).astype(int) - PICTURE
    assert np.abs(difference).mean() < 3
    tiled = write(tmp_path / "tiled.tif", page, tile=(64, 64))
    if orientation == 1:
        assert np.array_equal(pixels_of(tiled), PICTURE)
    else:
        assert problem_of(tiled).startswith(f"has the orientation {orientation}, which would turn")


COLORMAP = np.zeros((3, 256), np.uint16)
COLORMAP[:, :3] = np.array([(240,) * 3, (200, 110, 170), (110, 60, 150)], np.uint16).T * 257
INDEX = (PICTURE == 110).any(axis=2) + (PICTURE == 60).any(axis=2).astype(np.uint8)
YCBCR, CMYK = (np.asarray(Image.fromarray(PICTURE).convert(mode)) for mode in ("YCbCr", "CMYK"))


@pytest.mark.parametrize(
    ("pixels", "options", "expected", "tolerance"),
    [
        (PLANES, RGB | {"planarconfig": "separate"}, PICTURE, 0),
        (YCBCR, {"photometric": "ycbcr", "subsampling": (1, 1)}, PICTURE, 3),
        (CMYK, {"photometric": "separated"}, PICTURE, 0),
        (INDEX, {"photometric": "palette", "colormap": COLORMAP}, PICTURE, 0),
        (255 - GREY, {"photometric": "miniswhite"}, np.dstack([GREY] * 3), 0),
    ],
    ids=["planar", "ycbcr", "cmyk", "palette", "inverted grey"],
)
def test_kinds_of_pixels_are_converted(tmp_path, tile, pixels, options, expected, tolerance):
    found = pixels_of(write(tmp_path / "S1.tif", (pixels, options), tile=tile))
    assert np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (PICTURE.astype(np.uint16) * 16, RGB, "its samples are uint16; save it with 8 bits"),
        (GREY.astype(np.uint16), {"photometric": "minisblack"}, "its samples are uint16"),
        (PICTURE.astype(np.float32), RGB, "its samples are float32"),
        (PICTURE.astype(np.int8), RGB, "its samples are int8"),
        (PICTURE, {"photometric": "cielab"}, "3 channels of type CIELAB are not supported"),
        (PICTURE, {"photometric": "minisblack", "planarconfig": "contig"}, "3 channels of type"),
        (PLANES, {"photometric": "minisblack", "planarconfig": "separate"}, "3 channels of type"),
    ],
)
def test_other_kinds_of_pixels_are_refused(tmp_path, tile, pixels, options, message):
    assert problem_of(write(tmp_path / "S1.tif", (pixels, options), tile=tile)).startswith(message)


@pytest.mark.parametrize("num", [1, 2])
def test_tiles_with_channels_that_are_no_color_are_refused(tmp_path: Path, num: int):
    pixels = np.dstack([PICTURE, *[GREY * 0] * num])
    options = RGB | {"extrasamples": ["unspecified"] * num}
    assert np.array_equal(pixels_of(write(tmp_path / "a.tif", (pixels, options))), PICTURE)
    tiled = write(tmp_path / "b.tif", (pixels, options), tile=(64, 64))
    assert problem_of(tiled).startswith(f"has {3 + num} channels, some are neither")


def test_slide_behind_its_label_is_refused(tmp_path: Path, tile: Any):
    label, slide, small = (LABEL, RGB), (PICTURE, RGB), (PICTURE[::2, ::2], RGB)
    first = write(tmp_path / "a.tif", label, slide, small, tile=tile)
    assert problem_of(first).startswith("page 2 of 130x90 px is larger than the first page")
    good = write(tmp_path / "b.tif", slide, small, label, tile=tile)
    assert np.array_equal(pixels_of(good), PICTURE)
    with_mask = write(
        tmp_path / "c.tif",
        slide,
        (GREY > 200, {"subfiletype": 4, "photometric": "minisblack"}),
        tile=tile,
    )
    assert np.array_equal(pixels_of(with_mask), PICTURE)


@pytest.mark.parametrize(
    ("pixels", "options", "num"),
    [
        (PLANES, {"ome": True, "metadata": {"axes": "CYX"}, "photometric": "minisblack"}, 3),
        (PLANES, {"imagej": True, "metadata": {"axes": "CYX"}, "photometric": "minisblack"}, 3),
        (np.stack([PICTURE] * 2), {"metadata": None, "photometric": "rgb"}, 2),
        (
            PLANES,
            {
                "photometric": "minisblack",
                "metadata": None,
                "description": "<OME><Pixels SizeC='x'/></OME>",
            },
            3,
        ),
        (np.stack([PICTURE] * 4), {"ome": True, "metadata": {"axes": "ZYXS"}, **RGB}, 4),
    ],
    ids=["channels of OME", "channels of ImageJ", "pages", "damaged OME", "depths of OME"],
)
def test_planes_on_several_pages_are_refused(tmp_path, tile, pixels, options, num):
    tifffile.imwrite(tmp_path / "S1.tif", pixels, tile=tile, **UM, **options)
    assert problem_of(tmp_path / "S1.tif").startswith(f"has {num} planes of 130x90 px, such as")


def test_odd_metadata_skip_no_check(tmp_path: Path, tile: Any):
    def open_changed(pixels: np.ndarray, old: bytes, new: bytes, **options: Any) -> None:
        tifffile.imwrite(path, pixels, imagej=True, tile=tile, **UM, **options)
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
        open_slide(path, mpp=1.0).close()

    path = tmp_path / "S1.tif"
    with pytest.raises(SlideError, match="pages of the TIFF cannot be checked"):
        open_changed(
            PLANES, b"images=3", b"images=x", metadata={"axes": "CYX"}, photometric="minisblack"
        )
    metadata = {"axes": "YXS", "unit": "um"}
    open_changed(PICTURE, b"unit=um", b"unit=77", metadata=metadata, photometric="rgb")


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        *((0.5, unit, 0.5) for unit in ("µm", "μm", None)),
        *((499.0, "nm", 0.499), (0.0005, "mm", 0.5), (1.0, "pixel", None), (0.5, "?", None)),
    ],
)
def test_mpp_of_ome_is_read(tmp_path: Path, tile: Any, size: float, unit: str | None, mpp: float):
    metadata = {f"PhysicalSize{axis}": size for axis in "XY"} | {"axes": "YXS"}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XY" if unit}
    # The resolution for a printer does not count: 300 dpi are 84.7 um per px.
    printer = {"resolution": (300, 300), "resolutionunit": "INCH"}
    path = tmp_path / "S1.ome.tif"
    tifffile.imwrite(path, PICTURE, ome=True, tile=tile, metadata=metadata, **printer, **RGB)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(mpp or 25_400 / 300)
        assert slide.mpp_source == "file"
    assert np.array_equal(pixels_of(path), PICTURE)


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [
        *((unit, 2, 0.5) for unit in ("um", "micron", "\\u00B5m")),
        *(("mm", 2000, 0.5), ("pixel", 2, None)),
    ],
)
def test_mpp_of_imagej_is_read(tmp_path, tile, unit: str, per_unit: int, mpp: float | None):
    metadata, path = {"unit": unit, "axes": "YXS"}, tmp_path / "S1.tif"
    resolution = (per_unit, per_unit)
    tifffile.imwrite(
        path, PICTURE, imagej=True, tile=tile, metadata=metadata, resolution=resolution, **RGB
    )
    if mpp is None:
        with pytest.raises(SlideError, match="does not state its microns per pixel"):
            open_slide(path)
    else:
        with open_slide(path) as slide:
            assert (slide.mpp, slide.mpp_source) == (pytest.approx(mpp), "file")

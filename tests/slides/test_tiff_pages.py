from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_idc.core.errors import SlideError
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiff_reader import TiffReader

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
def test_pictures_and_tiles_are_read_upright(tmp_path: Path, tile: Any, orientation: int):
    options = RGB | {"extratags": [(274, 3, 1, orientation, True)]}
    exact = write(tmp_path / "S1.tif", (turned(orientation), options), tile=tile)
    assert np.array_equal(pixels_of(exact), PICTURE)
    with open_slide(exact) as slide:
        part = slide.read(0, -3, 55, width=40, height=70)
    assert np.array_equal(part[:35, 3:], PICTURE[55:, :37])
    assert (part[35:] == 255).all()
    assert (part[:, :3] == 255).all()
    options |= {"compression": "jpeg", "compressionargs": {"level": 95}}
    jpeg = write(tmp_path / "S2.tif", (turned(orientation), options), tile=tile)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(turned(orientation)).save(tmp_path / "a.png", exif=exif.tobytes())
    assert np.array_equal(pixels_of(tmp_path / "a.png", mpp=1.0), PICTURE)
    Image.fromarray(turned(orientation)).save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=95)
    for path in (jpeg, tmp_path / "a.jpg"):
        difference = pixels_of(path, mpp=1.0).astype(int) - PICTURE
        assert np.abs(difference).mean() < 3


def test_mpp_of_turned_tiles_is_turned(tmp_path: Path):
    options = RGB | {"extratags": [(274, 3, 1, 6, True)], "tile": (64, 64), "metadata": None}
    resolution = {"resolution": (10_000, 10_100), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "S1.tif", turned(6), **options, **resolution)
    with closing(TiffReader(tmp_path / "S1.tif")) as reader:
        assert reader.file_mpp == pytest.approx((10 / 10.1, 1))


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
    ("compression", "tolerance"),
    [*((name, 0) for name in ("lzw", "zstd", "lzma", "packbits", "jpeg2000")), ("webp", 9)],
)
def test_compressions_are_decoded(tmp_path: Path, tile: Any, compression: str, tolerance: int):
    options = RGB | {"compression": compression}
    found = pixels_of(write(tmp_path / "S1.tif", (PICTURE, options), tile=tile))
    assert np.abs(found.astype(int) - PICTURE).max() <= tolerance


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (PICTURE.astype(np.uint16) * 16, RGB, "the samples are uint16; save the slide with 8 bits"),
        (GREY.astype(np.uint16), {"photometric": "minisblack"}, "the samples are uint16"),
        (PICTURE.astype(np.float32), RGB, "the samples are float32"),
        (PICTURE.astype(np.int8), RGB, "the samples are int8"),
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
    assert problem_of(tiled).startswith(f"has {3 + num} channels, of which some are neither")


def test_largest_page_is_the_slide(tmp_path: Path, tile: Any, caplog: pytest.LogCaptureFixture):
    label, slide, small = (LABEL, RGB), (PICTURE, RGB), (PICTURE[::2, ::2], RGB)
    first = write(tmp_path / "b.tif", slide, small, label, tile=tile)
    assert np.array_equal(pixels_of(first), PICTURE)
    mask = (GREY > 200, {"subfiletype": 4, "photometric": "minisblack"})
    assert np.array_equal(pixels_of(write(tmp_path / "c.tif", slide, mask, tile=tile)), PICTURE)
    assert caplog.messages == []
    reduced = (PICTURE[::2, ::2], RGB | {"subfiletype": 1})
    path = write(tmp_path / "a.tif", label, small, slide, reduced, tile=tile)
    assert np.array_equal(pixels_of(path), PICTURE)
    assert caplog.messages == [
        f"{path}: page 3 is read as the slide, because this page is the largest"
    ]
    with open_slide(path) as opened:
        assert opened.mpp == pytest.approx(1.0)
        sizes = [(level.width, level.height) for level in opened.levels]
        assert sizes == ([(130, 90), (65, 45)] if tile else [(130, 90)])
        if tile:
            found = opened.read(1, 0, 0, width=65, height=45)
            assert np.array_equal(found, PICTURE[::2, ::2])


def write_channels(path: Path, tile: Any, names: list[str] | None = None, **channel: Any) -> Path:
    """Write an OME-TIFF of three pages, with half the resolution as sub-images."""
    metadata = {"axes": "CYX", "Channel": {"Name": names, **channel} if names else channel}
    options = {"tile": tile, "compression": "lzw", **UM, "photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(PLANES, subifds=1, metadata=metadata, **options)
        small = np.ascontiguousarray(PLANES[:, ::2, ::2])
        writer.write(small, subfiletype=1, metadata=None, **options)
    return path


@pytest.mark.parametrize("names", [None, ["Red", "Green", "Blue"], ["R", "G", "B"]])
def test_red_green_and_blue_pages_of_ome_are_one_slide(tmp_path: Path, tile: Any, names: Any):
    path = write_channels(tmp_path / "S1.ome.tif", tile, names)
    assert np.array_equal(pixels_of(path), PICTURE)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(1.0)
        if tile:
            assert [level.mpp for level in slide.levels] == pytest.approx([1.0, 2.0])
            found = slide.read(1, 0, 0, width=65, height=45)
            assert np.array_equal(found, PICTURE[::2, ::2])


@pytest.mark.parametrize(
    ("names", "channel", "shown"),
    [
        (["DAPI", "FITC", "Cy3"], {}, "DAPI, FITC, Cy3"),
        (["R", "G", "B"], {"EmissionWavelength": [450, 520, 600]}, "R, G, B"),
        (None, {"Fluor": ["a", "b", "c"]}, "fluorescence"),
    ],
)
def test_fluorescence_is_refused(tmp_path: Path, tile: Any, names, channel, shown):
    path = write_channels(tmp_path / "S1.ome.tif", tile, names, **channel)
    assert problem_of(path).startswith(f"its channels ({shown}) are not red, green and blue")


@pytest.mark.parametrize(
    ("pixels", "options", "num"),
    [
        (PLANES[:2], {"ome": True, "metadata": {"axes": "CYX"}, "photometric": "minisblack"}, 2),
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


def test_damaged_tiles_are_errors_where_they_are_read(tmp_path: Path):
    options = RGB | {"compression": "zlib", "extratags": [(274, 3, 1, 3, True)]}
    path = write(tmp_path / "S1.tif", (turned(3), options), tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[first : first + 20] = bytes(20)
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(0, 0, 0, width=60, height=20), PICTURE[:20, :60])
        with pytest.raises(SlideError, match="tile 0 of level 0 cannot be read; damaged or cut"):
            slide.read(0, 100, 60, width=30, height=30)


def test_page_without_size_is_refused(tmp_path: Path, tile: Any):
    path = write(tmp_path / "S1.tif", (PICTURE, RGB), tile=tile)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(0)
    assert problem_of(path).startswith("the pages of the TIFF cannot be checked (a page has no")


RGBA = np.dstack([PICTURE, np.full_like(GREY, 255)])
RGBA[:20, :, 3] = 0


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (PLANES, RGB | {"planarconfig": "separate"}),
        (INDEX, {"photometric": "palette", "colormap": COLORMAP}),
        (255 - GREY, {"photometric": "miniswhite"}),
        (RGBA, RGB | {"extrasamples": ["unassalpha"]}),
    ],
    ids=["planar", "palette", "inverted grey", "alpha"],
)
def test_kinds_of_pixels_may_be_turned(tmp_path: Path, tile: Any, pixels, options):
    upright = pixels_of(write(tmp_path / "a.tif", (pixels, options), tile=tile))
    axes = (1, 2) if "planarconfig" in options else (0, 1)
    page = (np.flip(pixels, axes), options | {"extratags": [(274, 3, 1, 3, True)]})
    assert np.array_equal(pixels_of(write(tmp_path / "b.tif", page, tile=tile)), upright)

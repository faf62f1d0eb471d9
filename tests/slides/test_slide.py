import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.slides.dicoms import write_dicom
from tests.slides.tiffs import damage, halved, noise, spy_on, write_scn, write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.slides.reader import composite_on_white
from wsi_idc.slides.slide import companion_files, open_slide

PICTURE = noise(90, 130)
IMPOSSIBLE = "um/px is impossible; give 0.001 to 100$"


def whole(path: Path, **options) -> np.ndarray:
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, 0, width=slide.width, height=slide.height)


def test_pyramid_is_read_level_by_level(tmp_path):
    levels = [noise(400, 600), noise(200, 300, seed=1), noise(100, 150, seed=2)]
    path = write_tiff(tmp_path / "S1.tif", *levels, mpp=0.5)
    with open_slide(path) as slide:
        assert (slide.path, slide.width, slide.height) == (path, 600, 400)
        assert (slide.mpp, slide.mpp_source) == (0.5, "file")
        assert [level.mpp for level in slide.levels] == [0.5, 1.0, 2.0]
        sizes = [(level.width, level.height) for level in slide.levels]
        assert sizes == [(600, 400), (300, 200), (150, 100)]
        for at, pixels in enumerate(levels):
            found = slide.read(at, 11, 7, width=50, height=40)
            assert np.array_equal(found, pixels[7:47, 11:61])


def test_scanned_area_is_the_bounds(tmp_path):
    path = write_scn(tmp_path / "S1.scn", noise(90, 130), x=300, y=200, glass=(800, 600))
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (800, 600, 0.5)
        assert slide.bounds == Bounds(x=300, y=200, width=130, height=90)
        assert slide.properties["openslide.bounds-x"] == "300"
        assert np.array_equal(slide.read(0, 300, 200, width=130, height=90), noise(90, 130))
        assert (slide.read(0, 0, 0, width=300, height=600) == 255).all()
    with open_slide(write_tiff(tmp_path / "S2.tif", PICTURE, mpp=1.0)) as slide:
        assert slide.bounds is None


def test_dicom_files_of_a_folder_are_one_slide(tmp_path):
    picture = np.full((180, 260, 3), 240, np.uint8)
    picture[20:120, 40:200] = (200, 110, 170)
    folder = write_dicom(tmp_path / "S1", picture, picture[::2, ::2], mpp=0.5)
    for number in range(2):
        with open_slide(folder / f"{number}.dcm") as slide:
            assert (slide.width, slide.height, slide.mpp) == (260, 180, 0.5)
            assert [level.mpp for level in slide.levels] == [0.5, 1.0]
            found = slide.read(0, 0, 0, width=260, height=180)
            assert np.abs(found.astype(int) - picture).mean() < 1


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiled", "striped"])
def test_region_outside_is_white(tmp_path, tile):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=1.0, tile=tile)
    with open_slide(path) as slide:
        found = slide.read(0, 100, 80, width=50, height=30)
        assert np.array_equal(found[:10, :30], PICTURE[80:, 100:])
        assert (found[10:] == 255).all()
        assert (found[:, 30:] == 255).all()
        assert (slide.read(0, 500, 500, width=5, height=4) == np.full((4, 5, 3), 255)).all()


@pytest.mark.parametrize("unit", ["CENTIMETER", "INCH"])
@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiled", "striped"])
def test_mpp_comes_from_resolution_tags(tmp_path, tile, unit):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=0.499, tile=tile, unit=unit)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.499, rel=1e-6)
        assert slide.mpp_source == "file"
    assert np.array_equal(whole(path), PICTURE)


@pytest.mark.parametrize("name", ["S1.png", "S1.jpg", "S1.tif", "S1.tiff"])
def test_missing_mpp_is_not_guessed(tmp_path, name):
    path = tmp_path / name
    # A PNG or JPEG states dots per inch of a printer.
    options = {} if "tif" in name else {"dpi": (300, 300)}
    Image.fromarray(PICTURE).save(path, **options)
    with pytest.raises(SlideError) as raised:
        open_slide(path)
    message = "the file does not state its microns per pixel; give --mpp"
    assert str(raised.value) == f"{path}: {message}"
    with open_slide(path, mpp=4.0) as slide:
        assert (slide.mpp, slide.mpp_source) == (4.0, "given")
        assert len(slide.levels) == 1
        found = slide.read(0, 0, 0, width=130, height=90)
    with Image.open(path) as image:
        assert np.array_equal(found, np.asarray(image))


def test_given_mpp_replaces_the_mpp_of_the_file(tmp_path, caplog):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=0.5)
    with caplog.at_level(logging.WARNING), open_slide(path, mpp=0.52) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.52, "given")
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING), open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "given, but the file states 0.5")
    assert caplog.messages == [f"{path}: 0.25 um/px is given; the file states 0.5"]
    # Nearly square pixels have the mean mpp.
    with open_slide(write_tiff(tmp_path / "S2.tif", PICTURE, mpp=(0.5, 0.51))) as slide:
        assert slide.mpp == pytest.approx(0.505, rel=1e-6)


@pytest.mark.parametrize(
    ("mpp", "given", "message"),
    [
        *((0.5, given, IMPOSSIBLE) for given in (0.0, -1.0, np.nan, np.inf, 100.1)),
        (25_400 / 72, None, "states 352.778 x 352.778 um per pixel, which"),  # 72 dots per inch
        ((0.5, 0.4), None, r"not square \(0.5 x 0.4 um\)"),
    ],
)
def test_impossible_mpp_is_refused(tmp_path, mpp, given, message):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=mpp)
    with pytest.raises(SlideError, match=message):
        open_slide(path, mpp=given)
    with open_slide(path, mpp=4) as slide:
        assert slide.mpp == 4


@pytest.mark.parametrize("kind", ["tiled", "striped", "png"])
def test_transparent_pixels_are_composited_on_white(tmp_path, kind):
    rgba = noise(70, 80, channels=4)
    rgba[:20, :, 3], rgba[20:40, :, 3] = 0, 255
    if kind == "png":
        path = tmp_path / "S1.png"
        Image.fromarray(rgba).save(path)
    else:
        tile = (64, 64) if kind == "tiled" else None
        path = write_tiff(tmp_path / "S1.tif", rgba, tile=tile)
    found = whole(path, mpp=4.0)
    assert (found[:20] == 255).all()
    assert np.array_equal(found[20:40], rgba[20:40, :, :3])
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    # libtiff multiplies by alpha in 8 bits and OpenSlide's binding divides again.
    assert np.abs(found - expected).max() <= (2 if kind == "tiled" else 0.5)


def test_composite_rounds_to_nearest():
    rgba = np.array([[[0, 100, 255, 128], [0, 0, 0, 254], [9, 9, 9, 0]]], np.uint8)
    assert composite_on_white(rgba).tolist() == [[[127, 177, 255], [1, 1, 1], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(PICTURE).convert(mode)
    path = tmp_path / "S1.tif"
    image.save(path)
    assert np.array_equal(whole(path, mpp=1.0), np.asarray(image.convert("RGB")))


def test_thumbnail_is_the_mean(tmp_path):
    path = write_tiff(tmp_path / "S1.tif", PICTURE[:80, :120], mpp=1.0)
    with open_slide(path) as slide:
        found = slide.thumbnail(30)
        mean = PICTURE[:80, :120].reshape(20, 4, 30, 4, 3).mean(axis=(1, 3))
        assert found.shape == (20, 30, 3)
        assert np.abs(found - mean).max() <= 0.5
        # Never larger than the slide.
        assert np.array_equal(slide.thumbnail(5000), PICTURE[:80, :120])
        assert slide.thumbnail(1).shape == (1, 1, 3)
        assert slide.thumbnail(120).shape == (80, 120, 3)


def test_thumbnail_is_read_in_blocks_from_the_smallest_sufficient_level(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.slides.slide._BLOCK_PX", 64)
    fine = noise(800, 1200)
    levels = [fine, halved(fine), halved(halved(fine))]
    path = write_tiff(tmp_path / "S1.tif", *levels, mpp=1.0)
    with open_slide(path) as slide:
        reads = spy_on(slide, monkeypatch)
        assert np.array_equal(slide.thumbnail(300), levels[2])
        assert {level for level, *_ in reads} == {2}
        assert max(max(read[3:]) for read in reads) == 64
        reads.clear()
        assert np.abs(slide.thumbnail(301).astype(int).mean() - levels[1].mean()) < 1
        assert {level for level, *_ in reads} == {1}


def test_unreadable_files_are_refused(tmp_path):
    tiff = write_tiff(tmp_path / "good.tif", noise(300, 300), mpp=1.0, compression=None)
    strips = write_tiff(tmp_path / "strips.tif", noise(300, 300), tile=None)
    jpeg, png = tmp_path / "picture.jpg", tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(jpeg)
    Image.fromarray(PICTURE).save(png)
    Image.fromarray(PICTURE).convert("I;16").save(tmp_path / "deep.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    (tmp_path / "folder.svs").mkdir()
    os.mkfifo(tmp_path / "pipe.svs")
    kind = "a TIFF that is cut short, damaged or of a kind that OpenSlide does not read"
    cases: dict[str, tuple[bytes | None, str]] = {
        "renamed.svs": (jpeg.read_bytes(), "is a plain JPEG picture; rename it to renamed.jpg"),
        "text.svs": (b"hello", "not a slide that OpenSlide reads"),
        "list.csv": (b"slide\\na.svs\\n", "is a table; give it as --manifest to map"),
        "text.tif": (b"hello", "OpenSlide does not support this file, and it is not a TIFF"),
        "empty.svs": (b"", "is empty; copy the slide again"),
        "cut.svs": (tiff.read_bytes()[:20], "pages of the TIFF cannot be checked (corrupted IFD"),
        "strips.svs": (strips.read_bytes(), kind),
        "cut.png": (png.read_bytes()[:5000], "damaged or cut short"),
        "cut.jpg": (jpeg.read_bytes()[:1500], "damaged or cut short"),
        "folder.svs": (None, "is a folder; give a slide file"),
        "pipe.svs": (None, "is not a regular file"),
        "missing.svs": (None, "no such file"),
        "deep.png": (None, "save 8 bits per channel"),
        "bomb.png": (None, "more than 178956970 px are too many for a picture without tiles"),
        "large.png": (None, "10000x10000 px are too many for a picture without tiles"),
    }
    for name, (content, fragment) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SlideError) as raised:
            open_slide(path, mpp=4.0)
        message = str(raised.value)
        assert message.startswith(f"{path}: "), name
        assert fragment in message, name
        assert "\n" not in message, name


def test_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=0.5)

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    # Root may read everything.
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(SlideError, match=r"S1.tif: cannot be read \(Permission denied\)"):
        open_slide(path)


def test_errors_of_a_copy_name_the_slide(tmp_path):
    path = write_tiff(tmp_path / "S1.tif", noise(256, 256), mpp=1.0, tile=(64, 64))
    copy = tmp_path / "fast" / "S1.tif"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    damage(copy)
    begin = f"{path} (read from its copy {copy}): "
    with open_slide(path, copy=copy) as slide, pytest.raises(SlideError) as caught:
        slide.read(0, 0, 0, width=256, height=256)
    assert str(caught.value).startswith(f"{begin}cannot be read at x 0, y 0 of level 0")
    copy.write_bytes(b"")
    with pytest.raises(SlideError) as caught:
        open_slide(path, copy=copy)
    assert str(caught.value) == f"{begin}is empty; copy the slide again"


def test_damaged_region_leaves_other_regions_readable(tmp_path):
    pixels = noise(256, 256)
    path = write_tiff(tmp_path / "S1.tif", pixels, mpp=1.0, tile=(64, 64))
    damage(path)  # one tile in the middle of 16
    bad = []
    with open_slide(path) as slide:
        for at in range(16):
            y, x = at // 4 * 64, at % 4 * 64
            try:
                found = slide.read(0, x, y, width=64, height=64)
            except SlideError as error:
                bad.append(at)
                assert f"S1.tif: cannot be read at x {x}, y {y} of level 0" in str(error)
                assert "\n" not in str(error)
            else:
                assert np.array_equal(found, pixels[y : y + 64, x : x + 64])
    assert len(bad) == 1
    assert bad[0] not in (0, 15)


def test_truncated_slide_fails_in_the_missing_region(tmp_path):
    # So large that OpenSlide does not read all of it when it opens the file.
    pixels = noise(1408, 1408)
    path = write_tiff(tmp_path / "S1.tif", pixels, mpp=1.0, compression=None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(0, 0, 0, width=1408, height=640), pixels[:640])
        with pytest.raises(SlideError, match=r"at x 1344, y 1344 of level 0; damaged or cut"):
            slide.read(0, 1344, 1344, width=64, height=64)
        with pytest.raises(SlideError, match=r"damaged or cut"):
            slide.thumbnail(100)
        assert np.array_equal(slide.read(0, 0, 0, width=64, height=64), pixels[:64, :64])


def test_reading_a_closed_slide_is_a_value_error(tmp_path):
    path = write_tiff(tmp_path / "S1.tif", PICTURE, mpp=1.0)
    with open_slide(path) as slide:
        pass
    with pytest.raises(ValueError, match="is closed"):
        slide.read(0, 0, 0, width=1, height=1)
    slide.close()


def test_levels_of_different_shapes_are_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "S1.tif", noise(400, 600), noise(5000, 150, seed=1), mpp=0.5)
    with pytest.raises(SlideError, match="level 1 of 150x5000 px does not fit level 0"):
        open_slide(path)
    padded = write_tiff(tmp_path / "S2.tif", noise(400, 600), noise(256, 128, seed=1), mpp=0.5)
    with open_slide(padded) as slide:  # to complete tiles
        assert len(slide.levels) == 2


def test_too_large_tiles_are_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "S1.tif", noise(400, 600), mpp=0.5)
    data = path.read_bytes()
    for tag in (322, 323):  # width and length of a tile
        written = [struct.pack("<HHII", tag, kind, 1, 64) for kind in (3, 4)]
        (old,) = [entry for entry in written if entry in data]
        data = data.replace(old, struct.pack("<HHII", tag, 4, 1, 65_536))
    path.write_bytes(data)
    with pytest.raises(SlideError, match="its tiles are too large"):
        open_slide(path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.dcm", ["b.DCM", "c.dcm"]),
        ("a.vms", ["b.DCM", "c.dcm", "d.jpg", "e.opt", "f"]),
        ("a.tif", []),
    ],
)
def testcompanion_files_are_parts_of_the_slide_only(tmp_path: Path, name: str, parts: list):
    for file in (name, "b.DCM", "c.dcm", "d.jpg", "e.opt", "f", "n.csv", "n.TXT", "n.h5", "n.json"):
        (tmp_path / file).touch()
    assert [file.name for file in companion_files(tmp_path / name)] == parts


def test_fingerprint_changes_with_the_file_only(tmp_path: Path):
    path = write_tiff(tmp_path / "s.tif", PICTURE, mpp=4.0)
    with open_slide(path) as slide:
        before = slide.fingerprint()
        (tmp_path / "s").mkdir()  # not a part of a TIFF
        (tmp_path / "s" / "x").touch()
        assert slide.fingerprint() == before
        os.utime(path, ns=(1, 1))
        assert slide.fingerprint() != before

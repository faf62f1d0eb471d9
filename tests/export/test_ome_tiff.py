import itertools
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from tests.export.maps import full_grid, small_map, write_all
from wsi_idc.export.ome_tiff import write_ome_tiff
from wsi_idc.maps.patient_map import PatientMap

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


@pytest.fixture(scope="module")
def patient_map() -> PatientMap:
    """Return a map of 13 x 21 cells of 51 px, some missing, so that no size is round."""
    rng = np.random.default_rng(0)
    cells = full_grid(13, 21)
    cells = cells[(rng.random(len(cells)) < 0.8) | (cells == [12, 20]).all(axis=1)]
    num = len(cells)
    return small_map(
        cells,
        rng.random(num),
        patch_px=51,
        mpp=3.9,
        cam=rng.random((num, 6, 6)).astype(np.float32),
        patches=rng.integers(0, 256, (num, 51, 51, 3), dtype=np.uint8),
    )


@pytest.fixture(scope="module")
def files(patient_map: PatientMap, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(patient_map, tmp_path_factory.mktemp("files"), write_ome_tiff, "ome.tif")


def test_layers_are_pyramids_of_one_size(files: dict[str, Path]):
    assert list(files) == ["tissue", "probability", "cam"]
    for path in files.values():
        with tifffile.TiffFile(path) as file:
            assert file.is_ome
            (series,) = file.series
            assert series.axes == "YXS"
            sizes = [level.shape for level in series.levels]
            assert sizes == [(663, 1071, 3), (332, 536, 3), (166, 268, 3), (83, 134, 3)]
            assert len(file.pages) == 1  # the other levels are its children
            for level in series.levels:
                (page,) = level.pages
                assert page.tile == (256, 256)
                assert page.photometric.name == "RGB"
                assert page.dtype == np.uint8


def test_ome_xml_has_the_pixel_size(files: dict[str, Path]):
    for name, path in files.items():
        with tifffile.TiffFile(path) as file:
            xml = ElementTree.fromstring(file.ome_metadata)
        assert xml.find(f"{OME}Image").get("Name") == f"P1 {name}"
        pixels = xml.find(f"{OME}Image/{OME}Pixels").attrib
        assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == "3.9"
        assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
        assert pixels["SizeX"] == "1071"


def test_openslide_reads_the_same_tissue(patient_map: PatientMap, files: dict[str, Path]):
    assert patient_map.patches is not None
    with openslide.OpenSlide(files["tissue"]) as slide:
        # OpenSlide ignores children of a page, so it finds full resolution only.
        assert slide.level_dimensions == ((1071, 663),)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(3.9)
        for number in (0, 100, len(patient_map.row_col) - 1):
            row, col = patient_map.row_col[number].tolist()
            patch = slide.read_region((col * 51, row * 51), 0, (51, 51)).convert("RGB")
            np.testing.assert_array_equal(np.asarray(patch), patient_map.patches[number])


def test_cells_without_patch_are_white(patient_map: PatientMap, files: dict[str, Path]):
    missing = np.isnan(patient_map.probability_grid()).repeat(51, axis=0).repeat(51, axis=1)
    assert 0 < missing.mean() < 0.3
    for name, path in files.items():
        picture = tifffile.imread(path)
        assert (picture[missing] == 255).all()
        if name != "tissue":
            assert (picture[~missing] != 255).any(axis=-1).all()


def test_levels_are_means_of_the_level_before(files: dict[str, Path]):
    with tifffile.TiffFile(files["tissue"]) as file:
        levels = [level.asarray() for level in file.series[0].levels]
    for large, small in itertools.pairwise(levels):
        even = np.pad(large, ((0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0)), "edge")
        height, width, _ = small.shape
        mean = even.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
        assert np.abs(mean - small).max() <= 0.5


def test_cam_is_inside_its_patch(tmp_path: Path):
    cam = np.zeros((2, 2, 2), np.float32)
    cam[1, 0, 1] = 1  # upper right quarter of the second patch
    patient_map = small_map([[0, 0], [1, 1]], [0.2, 0.8], cam=cam)
    path = write_all(patient_map, tmp_path, write_ome_tiff, "ome.tif")["cam"]
    picture = tifffile.imread(path).astype(int)
    assert picture.shape == (100, 100, 3)
    bright, dark = [252, 254, 164], [0, 0, 3]
    for rows, cols, colour in [
        (slice(50, 75), slice(75, 100), bright),
        (slice(50, 75), slice(50, 75), dark),
        (slice(75, 100), slice(50, 100), dark),
        (slice(0, 50), slice(0, 50), dark),
        (slice(0, 50), slice(50, 100), [255, 255, 255]),
    ]:
        assert (np.abs(picture[rows, cols] - colour) <= 1).all()


def test_same_map_gives_the_same_bytes(
    patient_map: PatientMap, files: dict[str, Path], tmp_path: Path
):
    for name, path in write_all(patient_map, tmp_path, write_ome_tiff, "ome.tif").items():
        assert path.read_bytes() == files[name].read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"P1.h5", "layers.json", *(path.name for path in files.values())}


def test_special_characters_stay_text(tmp_path: Path):
    patient_map = small_map([[0, 0]], [0.9], patient="<é \"&'>", class_names=("</Image>", "<b>&"))
    path = write_all(patient_map, tmp_path, write_ome_tiff, "ome.tif")["probability"]
    with tifffile.TiffFile(path) as file:
        image = ElementTree.fromstring(file.ome_metadata).find(f"{OME}Image")
    assert image.get("Name") == "<é \"&'> probability"
    assert cv2.imread(str(path)).shape == (50, 50, 3)  # libtiff reads it too

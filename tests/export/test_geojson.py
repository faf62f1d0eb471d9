import gzip
import json
import uuid
from dataclasses import replace
from pathlib import Path

import geojson
import numpy as np
import pytest
import shapely

from tests.export.maps import full_grid, measured_map, on_slide, small_map
from tests.small_maps import edge_map, hand_map
from wsi_idc.export.geojson import write_geojson
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.maps.cohort import cohort_row
from wsi_idc.maps.patient_map import PatientMap


def features_of(patient_map: PatientMap, path: Path, **options: object) -> tuple[list, list]:
    """Write, check as GeoJSON, and return tiles and annotations."""
    write_geojson(patient_map, path, **options)
    collection = geojson.loads(path.read_text())
    assert isinstance(collection, geojson.FeatureCollection)
    assert collection.is_valid, collection.errors()
    assert all(shapely.geometry.shape(f["geometry"]).is_valid for f in collection["features"])
    kinds = [feature["properties"]["objectType"] for feature in collection["features"]]
    assert sorted(kinds, reverse=True) == kinds  # tiles first
    num = kinds.count("tile")
    return collection["features"][:num], collection["features"][num:]


def test_file_names_the_source_of_the_coordinates(tmp_path: Path):
    patient_map = on_slide(small_map([[0, 0]], [0.5]), 0.5)
    write_geojson(patient_map, tmp_path / "P1.geojson")
    collection = json.loads((tmp_path / "P1.geojson").read_text())
    assert list(collection) == ["type", "source_file", "features"]
    assert collection["source_file"] == patient_map.slide.name


def test_tile_has_the_numbers_of_its_patch(tmp_path: Path):
    (first, second), _ = features_of(measured_map(), tmp_path / "P1.geojson")
    assert first["type"] == "Feature"
    ring = [[50, 0], [100, 0], [100, 50], [50, 50], [50, 0]]
    assert first["geometry"] == {"type": "Polygon", "coordinates": [ring]}
    assert first["properties"] == {
        "objectType": "tile",
        "classification": {"name": "non-IDC", "color": [143, 183, 217]},
        "measurements": {
            "prob_non-IDC": 0.75,
            "prob_IDC": 0.25,
            "logit_non-IDC": 0.0,
            "logit_IDC": pytest.approx(np.log(1 / 3), rel=1e-6),
            "uncertainty": 0.125,
            "unsmoothed": 0.5,
            "cam_mean": 1.5,
            "cam_max": 3.0,
        },
    }
    assert second["properties"]["classification"] == {"name": "IDC", "color": [194, 65, 12]}
    measured = second["properties"]["measurements"]
    assert measured["label"] == 1
    # QuPath cannot read NaN as a number.
    assert "uncertainty" not in measured


def test_regions_are_measured(tmp_path: Path):
    cells = full_grid(3, 4)
    marked = [(0, 0), (0, 1), (1, 0), (2, 3)]
    probability = [0.75 if tuple(cell) in marked else 0.25 for cell in cells.tolist()]
    _, regions = features_of(small_map(cells, probability), tmp_path / "P1.geojson")
    large, small = regions
    assert large["properties"]["name"] == "IDC 1"
    assert large["properties"]["classification"]["name"] == "IDC"
    assert large["properties"]["measurements"] == {
        "area_um2": 3 * 200.0**2,
        "area_mm2": 0.12,
        "num_patches": 3,
        "mean_prob_IDC": 0.75,
        "threshold": 0.5,
    }
    expected = shapely.box(0, 0, 100, 50) | shapely.box(0, 0, 50, 100)
    assert shapely.geometry.shape(large["geometry"]).equals(expected)
    assert shapely.geometry.shape(small["geometry"]).equals(shapely.box(150, 100, 200, 150))


def test_largest_region_is_that_of_the_cohort_table(tmp_path: Path):
    for patient_map, sizes in ((hand_map(), [0.04] * 3), (edge_map(), [0.035])):
        _, regions = features_of(patient_map, tmp_path / "P1.geojson")
        areas = [region["properties"]["measurements"]["area_mm2"] for region in regions]
        assert areas == pytest.approx(sizes)
        row = cohort_row(patient_map, threshold=0.5)
        assert row["largest_region_mm2"] == pytest.approx(max(areas))


@pytest.mark.parametrize(("threshold", "num"), [(None, 2), (0.2, 1), (0.75, 2), (0.76, 0)])
def test_threshold_selects_regions(tmp_path: Path, threshold: float | None, num: int):
    patient_map = small_map(full_grid(1, 3), [0.75, 0.25, 0.75])
    tiles, regions = features_of(patient_map, tmp_path / "P1.geojson", threshold=threshold)
    assert len(regions) == num
    called = [tile["properties"]["classification"]["name"] == "IDC" for tile in tiles]
    limit = 0.5 if threshold is None else threshold
    assert called == [limit <= value for value in (0.75, 0.25, 0.75)]


def test_ids_are_uuids_of_grid_and_cell(tmp_path: Path):
    patient_map = small_map(full_grid(2, 2), [0.9, 0.1, 0.1, 0.9])
    ids = []
    for name, probability in (("a", [0.9, 0.1, 0.1, 0.9]), ("b", [0.8, 0.2, 0.1, 0.7])):
        changed = small_map(full_grid(2, 2), probability)
        tiles, regions = features_of(changed, tmp_path / f"{name}.geojson")
        ids.append([feature["id"] for feature in (*tiles, *regions)])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 6
    assert all(str(uuid.UUID(key)) == key for key in ids[0])
    for change in ({"patient": "P2"}, {"stride_px": 25}, {"patch_px": 96}, {"mpp": 2.0}):
        other = replace(patient_map, **change)
        other = replace(other, coords=other.row_col[:, ::-1] * other.cell_px)
        regions = [*features_of(other, tmp_path / "c.geojson")]
        assert not {feature["id"] for each in regions for feature in each}.intersection(ids[0])


def test_cells_are_cut_at_the_edge_of_the_slide(tmp_path: Path):
    path, patient_map = tmp_path / "P1.geojson", edge_map()  # 600 x 500 px
    tiles, (region,) = features_of(patient_map, path)
    boxes = [shapely.geometry.shape(tile["geometry"]).bounds for tile in tiles]
    cells = [(0, 0, 400, 400), (400, 0, 600, 400), (0, 400, 400, 500), (400, 400, 600, 500)]
    assert boxes == cells
    outline = shapely.geometry.shape(region["geometry"])
    assert outline.equals(shapely.box(0, 0, 600, 500) - shapely.box(0, 0, 400, 400))
    measured = region["properties"]["measurements"]
    assert outline.area * patient_map.slide.mpp**2 == measured["area_um2"] == 35_000
    # The stitched tissue has complete cells.
    tiles, _ = features_of(patient_map, path, coordinates="image")
    assert shapely.geometry.shape(tiles[3]["geometry"]).bounds == (50, 50, 100, 100)
    slide = replace(patient_map.slide, bounds=Bounds(100, 50, 400, 400))
    tiles, _ = features_of(replace(patient_map, slide=slide), path)
    assert shapely.geometry.shape(tiles[3]["geometry"]).bounds == (300, 350, 500, 450)
    # A cell beyond the edge remains a valid polygon.
    slide = replace(patient_map.slide, width=400)
    tiles, (region,) = features_of(replace(patient_map, slide=slide), path)
    assert shapely.geometry.shape(tiles[1]["geometry"]).bounds == (400, 0, 800, 400)
    assert region["properties"]["measurements"]["area_um2"] == 10_000


def test_gzip_holds_the_same_geojson(tmp_path: Path):
    patient_map = small_map(full_grid(5, 5), np.linspace(0, 1, 25))
    write_geojson(patient_map, tmp_path / "P1.geojson")
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_geojson(patient_map, tmp_path / name)
    plain, packed = (tmp_path / "P1.geojson").read_bytes(), (tmp_path / "a.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 3
    assert (tmp_path / "b.geojson.gz").read_bytes() == packed


def test_tiles_of_a_slide_share_their_edges(tmp_path: Path):
    cells = full_grid(2, 300)
    patient_map = on_slide(small_map(cells, np.zeros(600)), 0.2527)
    tiles, _ = features_of(patient_map, tmp_path / "P1.geojson")
    rings = np.array([tile["geometry"]["coordinates"][0] for tile in tiles]).reshape(2, 300, 5, 2)
    np.testing.assert_array_equal(rings[:, :-1, 1], rings[:, 1:, 0])
    np.testing.assert_array_equal(rings[0, :, 3], rings[1, :, 0])
    assert rings[1, 299, 2] == pytest.approx([300 * 200 / 0.2527, 2 * 200 / 0.2527], abs=1e-3)


def test_coordinates_may_be_px_of_the_image(tmp_path: Path):
    patient_map = on_slide(small_map(full_grid(1, 2), [0.1, 0.9]), 0.25)
    tiles, (region,) = features_of(patient_map, tmp_path / "a.geojson")
    assert tiles[1]["geometry"]["coordinates"][0][0] == [800, 0]
    assert region["properties"]["measurements"]["area_um2"] == 40_000
    tiles, (region,) = features_of(patient_map, tmp_path / "b.geojson", coordinates="image")
    assert tiles[1]["geometry"]["coordinates"][0][0] == [50, 0]
    assert region["properties"]["measurements"]["area_um2"] == 40_000


def test_area_beyond_the_edge_of_the_slide_does_not_count(tmp_path: Path):
    _, (region,) = features_of(edge_map(), tmp_path / "P1.geojson")
    assert region["properties"]["measurements"]["area_mm2"] == 0.035


def test_special_characters_stay_text(tmp_path: Path):
    patient_map = small_map([[0, 0]], [0.9], patient='<b>"x"', class_names=("a\\b", "IDC\n: é"))
    write_geojson(patient_map, tmp_path / "x.geojson")
    collection = json.loads((tmp_path / "x.geojson").read_text())
    assert collection["features"][0]["properties"]["classification"]["name"] == "IDC\n: é"


def test_nan_probability_is_left_out(tmp_path: Path):
    tiles, regions = features_of(small_map(full_grid(1, 2), [np.nan, 0.9]), tmp_path / "P1.geojson")
    assert "prob_IDC" not in tiles[0]["properties"]["measurements"]
    assert len(regions) == 1

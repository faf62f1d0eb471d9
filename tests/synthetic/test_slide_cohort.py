"""Synthetic cohorts of slides: files, formats, and outlines on the tissue."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from tests.cli.commands import run_command
from tests.packs import names
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.slides.annotations import find_annotation_file, read_annotations
from wsi_idc.slides.labels import annotation_mask
from wsi_idc.slides.manifest import ManifestRow, read_manifest
from wsi_idc.slides.slide import open_slide
from wsi_idc.synthetic.slide_cohort import SlideCohortSummary, write_slide_cohort
from wsi_idc.synthetic.tissue import draw_slide

SMALL = {"width_px": 1200, "height_px": 1000, "seed": 0}
FILES = ["S0001-1.tif", "S0001-2.tif", "S0002-1.scn", "S0003-1.ome.tif"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SlideCohortSummary:
    root = tmp_path_factory.mktemp("scans") / "scans"
    return write_slide_cohort(root, num_slides=4, num_patients=3, **SMALL)


@pytest.fixture(scope="module")
def rows(cohort: SlideCohortSummary) -> dict[str, ManifestRow]:
    return {row.slide.name: row for row in read_manifest(cohort.manifest)}


def test_files_of_slides_and_patients(cohort, rows):
    folder = cohort.manifest.parent
    assert names(folder) == [*FILES, "annotations", "slides.csv"]
    assert names(cohort.annotations) == [f"{name.split('.')[0]}.geojson" for name in FILES]
    assert sorted(rows) == FILES
    assert [rows[name].patient for name in FILES] == ["S0001", "S0001", "S0002", "S0003"]
    assert sorted(cohort.slides) == [folder / name for name in FILES]


@pytest.mark.parametrize("name", FILES)
def test_outlines_are_on_the_tissue_of_each_format(cohort, rows, name):
    with open_slide(rows[name].slide) as slide:
        file = find_annotation_file(cohort.annotations, rows[name].slide)
        size, bounds = (slide.width, slide.height), slide.bounds
        annotations = read_annotations(file, size=size, bounds=bounds)
        pixels = slide.read(0, 0, 0, width=slide.width, height=slide.height)[::4, ::4]
        assert slide.mpp == pytest.approx(1.0)
    assert bounds == (Bounds(1200, 900, 1200, 1000) if name.endswith(".scn") else None)
    drawn = draw_slide(name.split(".")[0], seed=0, width_px=300, height_px=250, one_stain=True)
    left, top = (bounds.x // 4, bounds.y // 4) if bounds else (0, 0)
    area = np.s_[top : top + 250, left : left + 300]
    # Up by four and down again is nearly nothing.
    assert np.abs(pixels[area].astype(int) - drawn.rgb).mean() < 6
    tumor = [item for item in annotations if item.name == "Tumor"]
    mask = annotation_mask(tumor, pixels.shape[:2], (0.25, 0.25))
    assert 2 * (mask[area] & drawn.idc).sum() / (mask.sum() + drawn.idc.sum()) > 0.95
    normal = [item for item in annotations if item.name == "Normal"]
    mask = annotation_mask(normal, pixels.shape[:2], (0.25, 0.25))
    assert (mask[area] & drawn.tissue & ~drawn.idc).sum() / mask.sum() > 0.8
    assert all(item.geometry.is_valid for item in annotations)


def test_features_are_those_of_qupath(cohort):
    document = json.loads((cohort.annotations / "S0002-1.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] in ("Tumor", "Normal")
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in document["features"]]
    left, top, right, bottom = shapely.total_bounds(shapes)
    # QuPath counts from the corner of the scanned area.
    assert 0 <= left < right <= 1200
    assert 0 <= top < bottom <= 1000


def test_same_arguments_same_bytes(cohort, tmp_path):
    write_slide_cohort(tmp_path / "scans", num_slides=4, num_patients=3, **SMALL)
    folder = cohort.manifest.parent
    for path in folder.rglob("*.*"):
        assert (tmp_path / "scans" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_existing_files_are_not_replaced_and_a_stop_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    with pytest.raises(WsiIdcError, match="not an empty folder"):
        write_slide_cohort(tmp_path, num_slides=1, num_patients=1, **SMALL)
    with pytest.raises(ValueError, match="a slide for each patient"):
        write_slide_cohort(tmp_path / "b", num_slides=1, num_patients=2, **SMALL)

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_idc.synthetic.slide_cohort.write_scn", stop)
    with pytest.raises(KeyboardInterrupt):
        write_slide_cohort(tmp_path / "b", num_slides=2, num_patients=1, **SMALL)
    assert names(tmp_path) == ["a"]


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--num-slides", 1, "--num-patients", 1)
    result = run_command(capsys, "synth", "scans", *options)
    assert result.code == 0
    assert result.out == (
        "scans/slides.csv: 1 slide of 1 patient\n"
        "scans/annotations: outlines of tumor and normal tissue\n"
    )
    assert Path("scans/S0001-1.tif").exists()
    for words, reason in (
        (("a", "--num-slides", 3), "--num-slides 3 is less than --num-patients 12"),
        (("a", *options, "--patches-per-patient", 50), "is for a cohort of patches"),
        (("--slide", "s.tif", *options), "--num-slides is for a cohort"),
    ):
        result = run_command(capsys, "synth", *words)
        assert result.code == 2
        assert reason in result.err

"""The real patches of the data set, where they are at hand."""

import json
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
import shapely
import torch
from PIL import Image
from torchvision import transforms

from tests.slides.tiffs import halved, write_tiff
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.data.slide_cutter import LabelSettings
from wsi_idc.data.slide_pack import prepare_slides
from wsi_idc.evaluation.evaluate import choose_patients, evaluate
from wsi_idc.export.export import ExportOptions, export_maps
from wsi_idc.export.wsinfer import write_wsinfer
from wsi_idc.geometry.grid import cells_of, mosaic, shape_of
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.patches import SlidePatches
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiling import SlideSettings

pytestmark = pytest.mark.real
WHOLE = {"14082", "14306", "8864", "8865", "8867", "8957"}  # patients with all their patches
NAME = re.compile(r"_x(\d+)_y(\d+)_class([01])\.png$")


def read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> MapBuilder:
    """Return a builder of maps of the bundled model."""
    predictor = Predictor((load_checkpoint(bundled_checkpoint()),))
    return MapBuilder(predictor, select_device("cpu"), tmp_path_factory.mktemp("maps"))


def test_every_pixel_comes_back(real_tree: Path, real_pack: Pack):
    for path, patch in zip(real_pack.paths(), real_pack.patches, strict=True):
        expected = read_rgb(real_tree / path)
        height, width, _ = expected.shape
        np.testing.assert_array_equal(patch[:height, :width], expected)
        assert (patch[height:] == 255).all()
        assert (patch[:, width:] == 255).all()


def test_patient_8864_is_mapped_where_the_file_names_say(
    real_tree: Path, real_pack: Pack, builder: MapBuilder
):
    builder.build(PackSource(real_pack, ["8864"]))
    with h5py.File(builder.out / "8864.h5") as file:
        probability, label = file["map/probability"][:], file["map/label"][:]
        rgb = file["image/rgb"][:]
    files = sorted((real_tree / "8864").rglob("*.png"))
    assert len(files) == 1133 == np.isfinite(probability).sum()
    for path in files:
        x, y, truth = (int(text) for text in NAME.search(path.name).groups())
        row, col = (y - 1) // 50, (x - 1) // 50
        assert np.isfinite(probability[row, col])
        assert label[row, col] == truth
        tissue = read_rgb(path)
        height, width, _ = tissue.shape
        where = np.s_[row * 50 : row * 50 + height, col * 50 : col * 50 + width]
        np.testing.assert_array_equal(rgb[where], tissue)


def test_a_slide_stitched_from_patient_8864_gives_back_every_patch(real_pack: Pack, tmp_path: Path):
    rows = real_pack.rows_of("8864")
    cells = cells_of(real_pack.index.iloc[rows][["x", "y"]].to_numpy(np.int32), patch_px=50)
    stitched = mosaic(np.asarray(real_pack.patches[rows]), cells, shape=shape_of(cells), fill=255)
    path = write_tiff(tmp_path / "8864.tif", stitched, halved(stitched), mpp=4.0)
    with open_slide(path) as slide:
        patches = SlidePatches(slide, patch_px=50, mpp=4.0, min_tissue=0)
        pixels = np.concatenate(list(patches.batches(256)))
        with_tissue = SlidePatches(slide, patch_px=50, mpp=4.0)
    rows_of, cols_of = cells.T
    at = rows_of * patches.shape[1] + cols_of
    np.testing.assert_array_equal(patches.row_col[at], cells)
    np.testing.assert_array_equal(pixels[at], real_pack.patches[rows])
    # Those without tissue are fat, dust, and the grey band at the edge of the glass.
    known, found = (set(map(tuple, found.tolist())) for found in (cells, with_tissue.row_col))
    assert len(found & known) > 1000
    # Px of the mask at the edge of the tissue count as tissue. A few cells beside the tissue are
    # therefore found too.
    assert len(found - known) < 30


def outlines_of(cells: np.ndarray, label: np.ndarray) -> str:
    """Return the regions of each label as QuPath GeoJSON."""
    features = []
    for value, name in enumerate(("Stroma", "Tumor: IDC")):
        left, top = 50 * cells[label == value, ::-1].T
        union = shapely.union_all(shapely.box(left, top, left + 50, top + 50))
        geometry = json.loads(shapely.to_geojson(union))
        classification = {"classification": {"name": name}}
        features.append({"type": "Feature", "geometry": geometry, "properties": classification})
    return json.dumps(features)


def test_slides_and_outlines_of_whole_patients_give_the_same_pack(real_pack: Pack, tmp_path: Path):
    rows, members = [], []
    for patient in sorted(WHOLE.intersection(real_pack.patients)):
        members.append(real_pack.rows_of(patient))
        cells = real_pack.cells()[members[-1]]
        stitched = mosaic(real_pack.patches[members[-1]], cells, shape=shape_of(cells), fill=255)
        slide = write_tiff(tmp_path / f"{patient}.tif", stitched, mpp=4.0)
        mask = np.zeros(shape_of(cells), np.uint8)
        mask[tuple(cells.T)] = 255
        Image.fromarray(mask).save(tmp_path / f"{patient}.png")
        label = real_pack.index["label"].to_numpy()[members[-1]]
        (tmp_path / f"{patient}.geojson").write_text(outlines_of(cells, label))
        rows.append(ManifestRow(slide, patient, None, mask=tmp_path / f"{patient}.png"))
    assert len(rows) >= 2
    settings, labels = SlideSettings(), LabelSettings(tmp_path)
    options = {"settings": settings, "labels": labels, "patch_px": 50, "mpp": 4.0}
    found = Pack(prepare_slides(rows, tmp_path / "a.h5", **options).pack)
    expected = np.concatenate(members)
    assert found.patient_of.tolist() == real_pack.patient_of[expected].tolist()
    np.testing.assert_array_equal(found.cells(), real_pack.cells()[expected])
    assert found.index["label"].tolist() == real_pack.index["label"].iloc[expected].tolist()
    np.testing.assert_array_equal(found.patches, real_pack.patches[expected])


def test_wsinfer_would_say_the_same_of_real_patches(real_pack: Pack, tmp_path: Path):
    checkpoint = load_checkpoint(bundled_checkpoint())
    write_wsinfer(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    transform = transforms.Compose(
        [
            getattr(transforms, item["name"])(**item.get("arguments", {}))
            for item in config["transform"]
        ]
    )
    rows = np.sort(np.random.default_rng(0).choice(len(real_pack), 100, replace=False))
    patches = real_pack.patches[rows]
    images = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="`?torch.jit")
        found = torch.jit.load(tmp_path / "torchscript_model.pt")(images)
        expected = checkpoint.build()(torch.from_numpy(patches)) / checkpoint.temperature
    # Pillow, which WSInfer resizes with, rounds pixels to 8 bits.
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    assert (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.98


def test_the_outlines_lie_on_the_tissue_they_mark(
    real_tree: Path, real_pack: Pack, builder: MapBuilder, tmp_path: Path
):
    builder.build(PackSource(real_pack, ["9290"]))
    options = ExportOptions(("geojson", "ome-tiff"))
    assert export_maps([builder.out / "9290.h5"], tmp_path, options).failed == {}
    features = json.loads((tmp_path / "9290.geojson").read_text())["features"]
    corners = {tuple(f["geometry"]["coordinates"][0][0]): f for f in features[:85]}
    with openslide.OpenSlide(tmp_path / "9290.tissue.ome.tif") as slide:
        for path in (real_tree / "9290").rglob("*.png"):
            x, y, truth = (int(text) for text in NAME.search(path.name).groups())
            tile = corners.pop((x - 1, y - 1))
            assert tile["properties"]["measurements"]["label"] == truth
            tissue = read_rgb(path)
            size = tissue.shape[1::-1]
            found = np.asarray(slide.read_region((x - 1, y - 1), 0, size).convert("RGB"))
            np.testing.assert_array_equal(found, tissue)
    assert corners == {}


def test_the_model_card_has_the_metrics_of_eval(real_tree_of_all: Path, tmp_path: Path):
    pack = Pack(prepare(real_tree_of_all, tmp_path / "all.h5").pack)
    checkpoint = load_checkpoint(bundled_checkpoint())
    card = json.loads(bundled_checkpoint().with_suffix(".metrics.json").read_text())
    found = evaluate(
        Predictor((checkpoint,)),
        pack,
        choose_patients(Predictor((checkpoint,)), pack, "val"),
        split="val",
        device_config=select_device("cpu"),
        batch_size=256,
        num_resamples=2,
    )
    for name, value in found.final.metrics.items():
        assert card["val"]["metrics"][name] == pytest.approx(value, abs=2e-3), name

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_slide_pack import pack_slides
from tests.slides.tiffs import noise, write_scn, write_tiff
from tests.small_maps import hand_map, slide_view, small_map, write_hand_map, write_two_slides
from tests.small_slides import make_slides
from wsi_idc.core.errors import DataError, MapError
from wsi_idc.maps.map_reader import read_map_without_cams
from wsi_idc.maps.map_writer import write_map
from wsi_idc.slides.slide import open_slide
from wsi_idc.view.catalog import _recorded_path, find_slide, read_catalog
from wsi_idc.view.tissue import OpenTissues, open_tissue


def slide_map(**changes):
    """Return a map of a slide of 8000 x 16000 px at 0.5 um/px: a cell has 400 px."""
    coords = hand_map().row_col[:, ::-1] * 400 + np.array([131, 17], np.int32)
    view = replace(slide_view(), name="s.tif", width=900, height=800, bounds=None)
    fields = {"source": "slide", "mpp_source": "model", "coords": coords, "slide": view}
    return hand_map(**fields | changes)


def test_folders_files_and_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_hand_map(Path("maps"), patient="P2")
    write_two_slides(Path("maps"), "P1")
    write_hand_map(Path("other"), patient="P2")
    (tmp_path / "maps" / "bad.h5").write_text("no map")
    catalog = read_catalog([Path("maps")])
    assert [item.name for item in catalog.items] == ["P1/a", "P1/b", "P2"]
    assert list(catalog.failed) == [Path("maps/bad.h5")]
    assert catalog.items[2].row["auc"] == catalog.items[0].row["auc"]
    both = read_catalog([Path("maps"), Path("other/P2.h5"), Path("maps/P1.h5")])
    names = [(item.name, item.map_name) for item in both.items]
    assert names == [
        ("maps/P1/a", "P1/a"),
        ("maps/P1/b", "P1/b"),
        ("maps/P2", "P2"),
        ("other/P2", "P2"),
    ]
    write_hand_map(Path("x/maps"), patient="P2")
    same = read_catalog([Path("maps/P2.h5"), Path("x/maps")])
    assert [item.name for item in same.items] == ["maps/P2", "x/maps/P2"]
    (tmp_path / "scans").mkdir()
    write_tiff(tmp_path / "scans" / "scan.tif", noise(90, 90), mpp=1)
    (item,) = read_catalog([Path("scans")]).items
    assert (item.name, item.map_path, item.slide_path) == ("scan", None, Path("scans/scan.tif"))


def test_nothing_to_view(tmp_path: Path):
    (tmp_path / "bad.h5").write_text("no map")
    with pytest.raises(MapError, match=r"nothing to view: .*bad\.h5"):
        read_catalog([tmp_path / "bad.h5"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no slides in this folder"):
        read_catalog([tmp_path / "empty"])
    path = write_hand_map(tmp_path)
    with pytest.raises(MapError, match="none: no such folder"):
        read_catalog([path], slides=tmp_path / "none")
    slide = write_tiff(tmp_path / "P1.tif", noise(90, 90), mpp=1)
    with pytest.raises(MapError, match="two files would both be shown as P1"):
        read_catalog([path, slide])


@pytest.mark.parametrize("where", ["recorded", "given"])
def test_the_slide_of_a_map_is_found(tmp_path: Path, where: str):
    (tmp_path / "scans").mkdir()
    slide = write_tiff(tmp_path / "scans" / "s.tif", noise(800, 900), mpp=0.5)
    recorded = slide if where == "recorded" else tmp_path / "s.tif"
    path = tmp_path / "P1.h5"
    write_map(path, slide_map(provenance={"data": str(recorded)}))
    catalog = read_catalog([path], slides=None if where == "recorded" else tmp_path / "scans")
    assert find_slide(read_map_without_cams(path), catalog) == slide
    tissue = open_tissue(catalog.items[0], catalog)
    assert (tissue.kind, tissue.x, tissue.y, tissue.side) == ("slide", 131, 17, 400)
    assert (tissue.tiles.slide.width, tissue.tiles.slide.height) == (900, 800)
    tissue.tiles.slide.close()


@pytest.mark.parametrize("recorded", ["", "/none/s.tif", "\0", "x" * 5000])
def test_a_map_without_its_slide_shows_the_picture_in_the_map(tmp_path: Path, recorded: str):
    path = tmp_path / "P1.h5"
    write_map(path, slide_map(provenance={"data": recorded}))
    catalog = read_catalog([path])
    tissue = open_tissue(catalog.items[0], catalog)
    assert (tissue.kind, tissue.x, tissue.y, tissue.side) == ("picture", 0, 0, 50)
    assert (tissue.left, tissue.top, tissue.scale) == (131, 17, 50 / 400)
    assert tissue.tiles.slide.mpp == 4
    assert "the slide s.tif" in tissue.note
    assert "give its folder as --slides" in tissue.note


def test_a_map_without_slide_and_picture_shows_the_thumbnail(tmp_path: Path):
    path = tmp_path / "P1.h5"
    write_map(path, slide_map(patches=None))
    catalog = read_catalog([path])
    tissue = open_tissue(catalog.items[0], catalog)
    assert (tissue.kind, tissue.tiles.slide.width, tissue.tiles.slide.height) == (
        "thumbnail",
        10,
        20,
    )
    scale = 10 / 900
    assert (tissue.x, tissue.y, tissue.side) == (131 * scale, 17 * scale, 400 * scale)


def test_a_slide_of_another_size_is_not_shown(tmp_path: Path):
    slide = write_tiff(tmp_path / "s.tif", noise(700, 900), mpp=0.5)
    path = tmp_path / "P1.h5"
    write_map(path, slide_map(provenance={"data": str(slide)}))
    catalog = read_catalog([path])
    tissue = open_tissue(catalog.items[0], catalog)
    assert tissue.kind == "picture"
    assert "s.tif has 900 x 700 px, but the slide of the map has 900 x 800" in tissue.note


def test_the_map_of_a_pack_shows_its_picture_or_white(tmp_path: Path):
    write_hand_map(tmp_path, patient="P1")
    write_hand_map(tmp_path, patient="P2", patches=None)
    catalog = read_catalog([tmp_path])
    first, second = (open_tissue(item, catalog) for item in catalog.items)
    assert (first.kind, first.x, first.y, first.side, first.note) == ("picture", 0, 0, 50, "")
    assert (second.kind, second.side) == ("blank", 50)
    assert (second.tiles.slide.width, second.tiles.slide.height) == (200, 200)
    assert second.note.startswith("the map has no picture of the tissue")


def test_few_tissues_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for at in range(5):
        write_tiff(tmp_path / f"s{at}.tif", noise(90, 90, seed=at), mpp=1)
    opened = OpenTissues(read_catalog([tmp_path]))
    closed = []
    with opened.use(0) as used:
        for at in range(1, 5):
            with opened.use(at) as tissue:
                name = tissue.tiles.slide.path.name
                monkeypatch.setattr(
                    tissue.tiles.slide, "close", lambda name=name: closed.append(name)
                )
        assert closed == ["s1.tif", "s2.tif"]  # not the first, which is in use
        assert used.tiles.jpeg(0, 0, 0)
    with opened.use(0) as again:
        assert again is used
    opened.close()
    assert closed == ["s1.tif", "s2.tif", "s3.tif", "s4.tif"]


def test_the_grid_is_on_the_complete_glass_of_a_slide_with_bounds(tmp_path: Path):
    # The scanned area begins at x 1000, y 500 of the glass; the first cell at its corner.
    area = np.full((600, 800, 3), 200, np.uint8)
    area[400:, 400:] = (60, 20, 90)
    slide = write_scn(tmp_path / "s.scn", area, x=1000, y=500, glass=(3000, 2000), mpp=0.5)
    with open_slide(slide) as opened:
        size, bounds = (opened.width, opened.height), opened.bounds
    assert bounds is not None
    corner = np.array([bounds.x, bounds.y], np.int32)
    row_col = np.array([(0, 0), (0, 1), (1, 0), (1, 1)], np.int32)
    path = tmp_path / "P1.h5"
    view = replace(slide_view(), name="s.scn", width=size[0], height=size[1], bounds=bounds)
    patient_map = small_map(
        list(map(tuple, row_col)),
        patch_px=50,
        source="slide",
        mpp_source="model",
        patches=None,
        coords=row_col[:, ::-1] * 400 + corner,
        slide=view,
        provenance={"data": str(slide)},
    )
    write_map(path, patient_map)
    catalog = read_catalog([path])
    with OpenTissues(catalog).use(0) as tissue:
        assert (tissue.x, tissue.y, tissue.side) == (*corner, 400)
        tiles, (x, y) = tissue.tiles, corner + 400  # corner of the last cell
        found = [
            tiles._read(1, int(x) + dx, int(y) + dy, 1, 1)[0, 0].mean()
            for dx, dy in ((-1, -1), (0, -1), (-1, 0), (0, 0))
        ]
        assert [value < 100 for value in found] == [False, False, False, True]
        tiles.slide.close()


def test_the_slides_of_a_pack_are_found_by_the_pack(tmp_path: Path):
    report = pack_slides(make_slides(tmp_path))
    for slide_name, patient in (("one", "P"), ("two", "P"), ("", "Q")):
        fields = {"patient": patient, "slide_name": slide_name, "source": "pack"}
        found = _recorded_path(slide_map(provenance={"data": str(report.pack)}, **fields))
        assert found == tmp_path / "slides" / f"{slide_name or 'three'}.tif"
    missing = slide_map(provenance={"data": str(tmp_path / "none.h5")}, source="pack")
    assert _recorded_path(missing) is None
    other = slide_map(provenance={"data": str(report.pack)}, source="pack", patient="R")
    assert _recorded_path(other) is None

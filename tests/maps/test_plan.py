from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_maps import write_hand_map
from wsi_idc import __version__
from wsi_idc.core.errors import CheckpointError, DataError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.plan import (
    DONE,
    find_other_settings,
    map_state,
    parse_shard,
    shard,
    sizes_of_slides,
)
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import rows_from_files
from wsi_idc.slides.tiling import SlideSettings


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 3000), min_size=1), st.integers(1, 9))
def test_shards_have_each_name_once_and_are_even(sizes: dict[str, int], count: int):
    parts = [shard(sizes, index, count) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes.values())


def test_shard_is_two_numbers_and_keeps_the_order_of_the_patients():
    assert parse_shard("2/8") == (2, 8)
    assert shard({"b": 1, "a": 1, "c": 1}, 1, 1) == ["b", "a", "c"]
    texts = ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", "²/3", "1/1000000000000000")
    for text in (*texts, "1/" + "9" * 5000):
        with pytest.raises(DataError, match="I/N with I from 1 to N"):
            parse_shard(text)


@pytest.fixture
def builder(trained: Checkpoint, tmp_path: Path) -> MapBuilder:
    return MapBuilder(Predictor((trained,)), select_device("cpu"), tmp_path)


def test_plan_agrees_with_the_run(builder: MapBuilder, cohort: Pack, tmp_path: Path):
    first, second, third = cohort.patients[:3]
    builder.build(PackSource(cohort, [first]))
    (tmp_path / f"{second}.h5").write_text("mine")
    source = PackSource(cohort, [first, second, third])
    plan = source.plan(builder)
    assert [planned.state for planned in plan[::2]] == ["done", "to do"]
    assert "not a usable map" in plan[1].state
    assert plan[2].num_patches == len(cohort.rows_of(third))
    builder.build(source)
    written = map_path(tmp_path, third).stat().st_size / 1e6
    assert written / 3 < plan[2].disk_mb < 3 * written


def test_plan_has_the_reason_of_an_unusable_slide(builder: MapBuilder, tmp_path: Path):
    mask = SlideSettings(mask=Path("m.png"))
    with pytest.raises(DataError, match="--mask is for one slide"):
        SlideSource.from_files([Path("a.svs"), Path("b.svs")], None, mask)
    source = SlideSource.from_files([tmp_path / "none.svs"], None, SlideSettings())
    (planned,) = source.shard(1, 1).plan(builder)
    assert "no such file" in planned.state


def test_plan_counts_a_patient_once_and_refuses_an_unknown_layer(
    builder: MapBuilder, cohort: Pack, tmp_path: Path
):
    assert len(PackSource(cohort, ["S0001", "S0001"]).plan(builder)) == 1
    lost = replace(builder, cam=CamSpec(layer="nix"))
    with pytest.raises(CheckpointError, match="has no layer 'nix'"):
        PackSource(cohort, ["S0001"]).plan(lost)
    slides = SlideSource.from_files([tmp_path / "a.svs"], None, SlideSettings())
    with pytest.raises(CheckpointError, match="has no layer 'nix'"):
        slides.plan(lost)


def test_size_of_a_slide_is_that_of_all_its_files(tmp_path: Path):
    for name, size in (("m.mrxs", 10), ("m/Data0.dat", 500), ("a.svs", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    names = ("m.mrxs", "a.svs", "none.svs")
    rows = rows_from_files([tmp_path / name for name in names])
    assert sizes_of_slides(rows) == {"m": 510, "a": 30, "none": 0}


KEY = {"checkpoint": "a" * 64, "precision": "bf16", "smooth": True, "cam": {"method": "gradcam"}}
PRECISION = "precision (fp32, not bf16)"


@pytest.mark.parametrize(
    ("old", "version", "words"),
    [
        ({"precision": "fp32"}, __version__, f"{PRECISION}; --precision fp32 keeps it, "),
        ({"precision": "fp32"}, "0.0.9", f"{PRECISION}, by wsi-idc 0.0.9; --precision fp32 keeps"),
        (
            {"precision": "fp32", "smooth": False},
            __version__,
            f"{PRECISION}, smoothing (off, not on); --precision fp32 --no-smooth keeps it, ",
        ),
        (
            {"precision": "fp32", "checkpoint": "b" * 64},
            __version__,
            f"model (bbbbbbbbbbbb, not aaaaaaaaaaaa), {PRECISION}; --overwrite",
        ),
        ({"cam": None, "precision": "?"}, __version__, "CAM, precision (?, not bf16); --overwrite"),
        ({"tissue_threshold": 0.1}, __version__, "tissue threshold; --overwrite"),
    ],
)
def test_a_map_with_other_settings_states_the_differences(
    tmp_path: Path, old: dict, version: str, words: str
):
    provenance = {"identity": KEY | old, "version": version, "data": "idc.h5"}
    path = write_hand_map(tmp_path, provenance=provenance)
    state = map_state(tmp_path, "P1", KEY, data="idc.h5", overwrite=False)
    assert state.startswith(f"{path} was made with another {words}")
    assert state.endswith("--overwrite replaces it, another --out keeps both")
    assert map_state(tmp_path, "P1", KEY | old, data="idc.h5", overwrite=False) == DONE


def test_a_map_of_other_settings_is_found_beside_new_maps(tmp_path: Path):
    def write(patient: str, **changes: object) -> Path:
        return write_hand_map(tmp_path, patient=patient, provenance={"identity": KEY | changes})

    made = [write("P2"), write("P3")]
    (tmp_path / "cohort.h5").write_text("no map")
    write("P4", cam=None)  # the same model without CAMs
    write_hand_map(tmp_path, patient="P5", provenance={})
    assert find_other_settings(tmp_path, made) is None
    assert find_other_settings(tmp_path, []) is None
    other = write("P6", precision="fp32")
    assert find_other_settings(tmp_path, made) == (other, PRECISION)

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_idc.data.pack import Pack
from wsi_idc.errors import MapError
from wsi_idc.learn.method import Method
from wsi_idc.maps.build import build_maps
from wsi_idc.maps.render import nice_length, render_map
from wsi_idc.maps.store import read_map, write_map
from wsi_idc.maps.work import MapWork
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.device import choose_compute


@pytest.mark.parametrize(
    ("span", "length"), [(3.0, 1.0), (15.2, 5.0), (5.9, 1.0), (6.0, 2.0), (0.5, 0.1), (100, 20)]
)
def test_the_scale_bar_is_a_round_number_up_to_a_third(span: float, length: float):
    assert nice_length(span) == pytest.approx(length)


@pytest.mark.parametrize("with_image", [True, False])
def test_the_picture_shows_tissue_and_map(
    trained: Checkpoint, cohort: Pack, tmp_path: Path, with_image: bool
):
    patient = cohort.patients[0]
    work = MapWork(Method((trained,)), choose_compute("cpu"), tmp_path, with_image=with_image)
    build_maps(work, cohort, [patient])
    render_map(tmp_path / f"{patient}.h5", tmp_path / "pictures" / "p.png", dpi=40)
    with Image.open(tmp_path / "pictures" / "p.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 3 * pixels.shape[0] > 150
    quarter = pixels[:, : pixels.shape[1] // 4]
    stained = (quarter[..., 0] - quarter[..., 1] > 30).mean()  # pink has little green
    assert (stained > 0.1) == with_image


def test_an_id_is_drawn_as_text_not_as_mathematics(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    patient = cohort.patients[0]
    build_maps(MapWork(Method((trained,)), choose_compute("cpu"), tmp_path), cohort, [patient])
    odd = replace(read_map(tmp_path / f"{patient}.h5"), patient="P$^$", class_names=("$a$", "$^$"))
    write_map(tmp_path / "odd.h5", odd)
    render_map(tmp_path / "odd.h5", tmp_path / "odd.png", dpi=30)
    assert (tmp_path / "odd.png").stat().st_size > 0


def test_something_else_is_refused_and_nothing_written(tmp_path: Path):
    (tmp_path / "x.h5").write_text("no map")
    with pytest.raises(MapError, match="not a usable map"):
        render_map(tmp_path / "x.h5", tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]

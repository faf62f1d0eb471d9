import numpy as np
import pytest
from PIL import Image

from tests.packs import Cell, block, flat, make_pack
from wsi_idc.data.augmentation import AUGMENTATIONS
from wsi_idc.explore.patch_figures import augmented_samples


@pytest.fixture
def pack(tmp_path):
    return make_pack(tmp_path / "a.h5", block("a", 2, 2) + block("b", 2, 2, 1))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_samples_are_decided_by_the_seed(name, pack, tmp_path):
    first, again, other = (tmp_path / f"{which}.png" for which in ("first", "again", "other"))
    for path, seed in ((first, 0), (again, 0), (other, 1)):
        augmented_samples(pack, np.arange(len(pack)), name, seed=seed, path=path)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_only_the_rows_given_are_drawn(tmp_path):
    pack = make_pack(
        tmp_path / "a.h5",
        [Cell("a", 0, 0, 0, flat(200, 90, 150)), Cell("a", 0, 1, 0, flat(10, 200, 10))],
    )
    augmented_samples(pack, np.array([0]), "none", seed=0, path=tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (200, 90, 150)).all(axis=-1).sum() > 9 * 80**2
    assert not (pixels == (10, 200, 10)).all(axis=-1).any()

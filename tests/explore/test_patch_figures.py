from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.packs import PATCH_PX, Cell, block, flat, make_pack
from wsi_idc.data.augmentation import AUGMENTATIONS
from wsi_idc.explore.patch_figures import augmented_samples, neighborhood, samples
from wsi_idc.explore.tables import describe
from wsi_idc.plotting.style import save_png


def test_seeded_figures_depend_on_the_seed_only(tmp_path: Path):
    pack = make_pack(tmp_path / "a.h5", block("a", 5, 10) + block("b", 5, 10, 1))
    description, names = describe(pack), (*AUGMENTATIONS, "samples")
    images = []
    for seed in (0, 0, 1):
        for name in AUGMENTATIONS:
            path = tmp_path / f"{name}.png"
            augmented_samples(pack, np.arange(len(pack)), name, seed=seed, path=path)
        save_png(samples(description, pack, seed=seed), tmp_path / "samples.png", dpi=40)
        images.append({name: (tmp_path / f"{name}.png").read_bytes() for name in names})
    first, again, other = images
    assert first == again
    assert not [name for name in names if first[name] == other[name]]


def test_augmented_samples_are_of_the_given_rows(tmp_path: Path):
    pack = make_pack(
        tmp_path / "a.h5",
        [Cell("a", 0, 0, 0, flat(200, 90, 150)), Cell("a", 0, 1, 0, flat(10, 200, 10))],
    )
    augmented_samples(pack, np.array([0]), "none", seed=0, path=tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (200, 90, 150)).all(axis=-1).sum() > 9 * 80**2
    assert not (pixels == (10, 200, 10)).all(axis=-1).any()


@pytest.mark.parametrize("offset", [0, 3])
def test_a_neighborhood_has_the_patches_around_one_patch(tmp_path: Path, offset: int):
    red, green, blue, white = (flat(*rgb) for rgb in ((9, 0, 0), (0, 9, 0), (0, 0, 9), [255] * 3))
    cells = [
        Cell("a", offset + 1, offset + 1, 0, red),
        Cell("a", offset + 0, offset + 1, 0, green),
        Cell("a", offset + 2, offset + 2, 0, blue),
        Cell("a", offset + 1, offset + 3, 0, blue),  # two to the right
        Cell("b", offset + 1, offset + 0, 0, blue),  # of another patient
    ]
    pack = make_pack(tmp_path / "a.h5", cells)
    is_red = (pack.index[["x", "y"]] == (offset + 1) * PATCH_PX).all(axis=1)
    image, num = neighborhood(pack, int(np.flatnonzero(is_red)[0]))
    rows = [[white, green, white], [white, red, white], [white, white, blue]]
    assert num == 2
    assert (image == np.vstack([np.hstack(row) for row in rows])).all()

"""Draw artifacts on the patches of a pack, and measure how many of them get the right flag.

Only every second patient is used: the limits of blur and fold were set mainly on the others. The
artifacts (blur, pen, fold, air bubble) are drawn on mosaics of the patients with the most patches.
A patch is affected if at least half of it is tissue, and an artifact covers at least half of it. A
fold has two or three layers of tissue: the optical density is the sum of the layers.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from options import benchmark_data, make_parser

from wsi_idc.core.constants import CLASS_NAMES, PATCH_PX
from wsi_idc.data.artifacts import BLUR, FLAGS, FOLD, GLASS, PEN, artifact_flags
from wsi_idc.data.pack import Pack
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiling import SlideSettings, tile_slide

INKS = {
    "blue": (40, 60, 150),
    "green": (30, 120, 80),
    "red": (190, 40, 60),
    "black": (40, 40, 45),
}
OPACITIES = {"semi-opaque": 0.4, "opaque": 0.9}
Pixels = NDArray[np.uint8]


def stroke(rng: np.random.Generator, shape: tuple[int, ...], width: int) -> Pixels:
    """Draw a curved line with value 255 on a background of 0, shape (h, w)."""
    height, long = shape[:2]
    points, t = rng.uniform(0.1, 0.9, (3, 2)) * (long, height), np.linspace(0, 1, 60)[:, None]
    curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    return cv2.polylines(np.zeros((height, long), np.uint8), [curve.astype(int)], False, 255, width)


def mix(picture: Pixels, artifact: NDArray, mask: Pixels, softness: float) -> Pixels:
    """Replace ``picture`` by ``artifact`` where ``mask`` is 255; ``softness`` blurs the edge."""
    weight = cv2.GaussianBlur(mask, (0, 0), softness)[..., None] / np.float32(255)
    return (picture * (1 - weight) + artifact * weight).clip(0, 255).astype(np.uint8)


def draw_blur(picture: Pixels) -> Iterator[tuple[str, int, Pixels, Pixels]]:
    """Blur the mosaic of the patches of a patient; yield the same values as ``draw``."""
    for sigma in (1.0, 1.5, 2.0, 3.0):
        blurred = cv2.GaussianBlur(picture, (0, 0), sigma)
        yield f"blur of {sigma:g} px", BLUR, blurred, np.full(picture.shape[:2], 255, np.uint8)


def draw(
    rng: np.random.Generator, picture: Pixels, has_patch: Pixels
) -> Iterator[tuple[str, int, Pixels, Pixels]]:
    """Draw each artifact; yield its name, the flags that are right for it, the picture and mask.

    Args:
        rng: Random generator for positions and sizes.
        picture: Mosaic of the patches of a patient, shape (h, w, 3).
        has_patch: 255 where the mosaic has a patch, shape (h, w).
    """
    shape, picture = picture.shape, picture.astype(np.float32)
    for (name, color), (kind, opacity) in product(INKS.items(), OPACITIES.items()):
        mask, tint = stroke(rng, shape, int(rng.integers(100, 250))), np.float32(color) / 255
        ink = opacity * tint * 235 + (1 - opacity) * picture * tint**0.7
        yield f"{name} pen, {kind}", PEN, mix(picture, ink, mask, 3), mask
    width = int(rng.integers(25, 60))
    mask, layers = stroke(rng, shape, width), np.zeros_like(picture)
    for number in range(3):
        # The fold is only where all its layers have a patch.
        shift = (number * width // 2, number * width)
        layers -= np.log((np.roll(picture, shift, (0, 1)) + 1) / 256)
        mask &= np.roll(has_patch, shift, (0, 1))
        if number:
            fold = mix(picture, np.exp(-layers) * 256 - 1, mask, 1)
            yield f"fold of {number + 1} layers", FOLD, fold, mask.copy()
    mask = stroke(rng, shape, 300)
    haze = 0.3 * cv2.GaussianBlur(picture, (0, 0), 2) + 0.7 * 225
    yield "air bubble", BLUR | GLASS, mix(picture, haze, mask, 2), mask


def measure(
    pack: Pack, patients: Sequence[int], rounds: int
) -> list[tuple[str, int, float, float]]:
    """Measure each artifact: number of affected patches, fractions with right flag and any flag."""
    rng, found = np.random.default_rng(0), {}
    for patient in patients:
        rows = np.flatnonzero(pack.index["patient"] == patient)
        patches, cells = pack.read(rows), pack.cells()[rows]
        px = patches.shape[1]
        starts = (cells - cells.min(axis=0)) * px
        pieces = [np.s_[y : y + px, x : x + px] for y, x in starts]
        picture = np.full((*(starts.max(axis=0) + px), 3), 255, np.uint8)
        has_patch = np.zeros(picture.shape[:2], np.uint8)
        for patch, piece in zip(patches, pieces, strict=True):
            picture[piece], has_patch[piece] = patch, 255
        is_tissue = (patches.min(axis=-1) < 200).mean(axis=(1, 2)) >= 0.5
        drawn = (draw(rng, picture, has_patch) for _ in range(rounds))
        for name, bits, image, mask in chain(draw_blur(picture), *drawn):
            is_covered = np.array([mask[piece].mean() >= 128 for piece in pieces]) & is_tissue
            flags = artifact_flags(np.stack([image[piece] for piece in pieces])[is_covered])
            found.setdefault(name, []).append(np.stack([flags & bits, flags]) > 0)
    joined = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    return [(name, each.shape[1], *each.mean(axis=1)) for name, each in joined.items()]


def real_shares(pack: Pack, rows: NDArray[np.int64]) -> dict[str, tuple[float, ...]]:
    """Return the fraction of patches with each flag: of all ``rows``, and of each class."""
    flags, label = artifact_flags(pack.read(rows)), pack.index["label"].to_numpy()[rows]
    groups = (label >= -1, label == 0, label == 1)
    bits = FLAGS | {"any": sum(FLAGS.values())}
    return {
        name: tuple(float((flags[group] & bit > 0).mean()) for group in groups)
        for name, bit in bits.items()
    }


def slide_patches(path: Path) -> Pixels:
    """Return the patches of a slide that have tissue, shape (N, 50, 50, 3)."""
    with open_slide(path) as slide:
        reader = tile_slide(slide, SlideSettings(), patch_px=PATCH_PX, mpp=4.0).patches
        return np.concatenate(list(reader.batches(64)))


def main() -> None:
    """Print the fraction of affected patches with a flag, and of unchanged patches with a flag."""
    parser = make_parser(__doc__)
    parser.add_argument("--patients", type=int, default=8, help="Number of patients to draw on.")
    parser.add_argument("--slide", type=Path, action="append", default=[], help="Slide to flag.")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with benchmark_data(arguments) as data:
        pack = data.pack
        # The limits of blur and fold were set mainly on the other patients.
        held_out = np.arange(1, len(pack.patients), 2)
        counts = np.bincount(pack.index["patient"])[held_out]
        largest = held_out[np.argsort(-counts, kind="stable")[: arguments.patients]]
        print("| drawn artifact | patches | right flag | any flag |\n|---|---|---|---|")
        for name, num, own, any_flag in measure(pack, largest.tolist(), arguments.rounds):
            print(f"| {name} | {num:,} | {own:.1%} | {any_flag:.1%} |")
        rows = np.flatnonzero(np.isin(pack.index["patient"], held_out))
        classes = " | ".join(CLASS_NAMES)
        print(f"\n| flag of {len(rows):,} real patches | all | {classes} |\n|---|---|---|---|")
        for name, shares in real_shares(pack, rows).items():
            print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")
        patches = pack.read(rows)
    started = time.process_time()
    artifact_flags(patches)
    seconds = (time.process_time() - started) * 5000 / len(patches)
    print(f"\n5,000 patches take {seconds:.2f} s of CPU time")
    for path in arguments.slide:
        flags = artifact_flags(slide_patches(path))
        shares = ", ".join(
            f"{name} {((flags & bit) > 0).mean():.1%}" for name, bit in FLAGS.items()
        )
        print(f"{path.name}, {len(flags)} patches: {shares}")


if __name__ == "__main__":
    main()

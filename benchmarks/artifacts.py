"""Draw artifacts on the patches of a pack, and measure how many of them get the right flag.

The artifacts (blur, pen, fold, air bubble) are drawn on mosaics of the patients with the most
patches. A patch is affected if an artifact covers at least half of it. A fold has three layers of
tissue: the optical density is the sum of the layers.
"""

import time

import cv2
import numpy as np
from numpy.typing import NDArray
from options import benchmark_data, make_parser

from wsi_idc.core.constants import CLASS_NAMES
from wsi_idc.data.artifacts import BLUR, FLAGS, FOLD, GLASS, PEN, artifact_flags
from wsi_idc.data.pack import Pack

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
    weight = cv2.GaussianBlur(mask, (0, 0), softness)[..., None] / 255
    return (picture * (1 - weight) + artifact * weight).clip(0, 255).astype(np.uint8)


def draw(rng: np.random.Generator, picture: Pixels) -> dict[str, tuple[int, Pixels, Pixels]]:
    """Draw each artifact; return the flags that are right for it, the picture, and its mask."""
    drawn, everywhere = {}, np.full(picture.shape[:2], 255, np.uint8)
    for sigma in (1.0, 1.5, 2.0, 3.0):
        blurred = cv2.GaussianBlur(picture, (0, 0), sigma)
        drawn[f"blur of {sigma:g} px"] = (BLUR, blurred, everywhere)
    for (name, color), (kind, opacity) in ((i, o) for i in INKS.items() for o in OPACITIES.items()):
        mask, tint = stroke(rng, picture.shape, int(rng.integers(100, 250))), np.array(color) / 255
        ink = opacity * tint * 235 + (1 - opacity) * picture * tint**0.7
        drawn[f"{name} pen, {kind}"] = (PEN, mix(picture, ink, mask, 3), mask)
    width = int(rng.integers(25, 60))
    mask, density = stroke(rng, picture.shape, width), -np.log((picture + 1.0) / 256)
    layers = sum(np.roll(density, (n * width // 2, n * width), (0, 1)) for n in range(3))
    drawn["fold"] = (FOLD, mix(picture, np.exp(-layers) * 256 - 1, mask, 1), mask)
    mask = stroke(rng, picture.shape, 300)
    haze = 0.3 * cv2.GaussianBlur(picture, (0, 0), 2).astype(float) + 0.7 * 225
    drawn["air bubble"] = (BLUR | GLASS, mix(picture, haze, mask, 2), mask)
    return drawn


def measure(pack: Pack, num_patients: int, rounds: int) -> list[tuple[str, int, float, float]]:
    """Measure each artifact: number of affected patches, fractions with right flag and any flag."""
    rng, found = np.random.default_rng(0), {}
    counts = pack.index["patient"].value_counts()
    for patient in counts.index[:num_patients]:
        rows = np.flatnonzero(pack.index["patient"] == patient)
        patches, cells = pack.read(rows), pack.cells()[rows]
        px = patches.shape[1]
        starts = (cells - cells.min(axis=0)) * px
        picture = np.full((*(starts.max(axis=0) + px), 3), 255, np.uint8)
        for patch, (y, x) in zip(patches, starts, strict=True):
            picture[y : y + px, x : x + px] = patch
        is_tissue = artifact_flags(patches) == 0
        for _ in range(rounds):
            for name, (bits, image, mask) in draw(rng, picture).items():
                pieces = [np.s_[y : y + px, x : x + px] for y, x in starts]
                is_covered = np.array([mask[piece].mean() >= 128 for piece in pieces]) & is_tissue
                flags = artifact_flags(np.stack([image[piece] for piece in pieces])[is_covered])
                found.setdefault(name, []).append(np.stack([flags & bits, flags]) > 0)
    joined = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    return [(name, each.shape[1], *each.mean(axis=1)) for name, each in joined.items()]


def main() -> None:
    """Print the fraction of affected patches with a flag, and of unchanged patches with a flag."""
    parser = make_parser(__doc__)
    parser.add_argument("--patients", type=int, default=8, help="Number of patients to draw on.")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with benchmark_data(arguments) as data:
        pack = data.pack
        print("| drawn artifact | patches | right flag | any flag |\n|---|---|---|---|")
        for name, num, own, any_flag in measure(pack, arguments.patients, arguments.rounds):
            print(f"| {name} | {num:,} | {own:.1%} | {any_flag:.1%} |")
        patches = pack.read(np.arange(len(pack.index)))
        started = time.process_time()
        flags, label = artifact_flags(patches), pack.index["label"].to_numpy()
        seconds = (time.process_time() - started) * 5000 / len(patches)
        print(f"\n| flag of real patches | all | {' | '.join(CLASS_NAMES)} |\n|---|---|---|---|")
        for name, bit in FLAGS.items():
            members = (label >= -1, label == 0, label == 1)
            shares = " | ".join(f"{((flags[m] & bit) > 0).mean():.1%}" for m in members)
            print(f"| {name} | {shares} |")
        print(f"\n5,000 patches take {seconds:.2f} s of CPU time")


if __name__ == "__main__":
    main()

"""Draw breast tissue that looks like H&E at about 4 um/px, with a known region of carcinoma.

Every structure adds haematoxylin and eosin. The color of a pixel is computed from the amounts of
both stains by the Beer-Lambert law. A nucleus is 1 to 3 px wide. The arrangement of nuclei
distinguishes invasive carcinoma (cords and nests without order) from lobules and ducts (rings). The
mean color does not distinguish carcinoma from other tissue, because lobules and lymphocytes are
dark, scars inside the tumor are pale, and each patient has a different stain.
"""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import PATCH_PX

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

MIN_SLIDE_PX = 250

# Optical density (R, G, B) of one unit of a stain in the Kaggle data set, by Macenko's method.
HAEMATOXYLIN = (0.56, 0.72, 0.42)
EOSIN = (0.16, 0.83, 0.53)
LIGHT = (241.0, 239.0, 240.0)  # color of empty glass


@dataclass(frozen=True)
class SynthSlide:
    """Synthetic slide with its ground truth.

    Attributes:
        patient: Patient id.
        rgb: Pixels, shape (height, width, 3), uint8.
        idc: Mask of invasive carcinoma, shape (height, width), bool.
        tissue: Mask of tissue without fat, shape (height, width), bool.
    """

    patient: str
    rgb: Bytes
    idc: Bools
    tissue: Bools


def draw_slide(
    patient: str, *, seed: int, height_px: int, width_px: int, one_stain: bool = False
) -> SynthSlide:
    """Draw the slide of one patient; the same arguments always give the same pixels.

    Args:
        patient: Patient id; slides of different patients differ in anatomy.
        seed: Seed of the cohort.
        height_px: Height of the slide, at least 250 px.
        width_px: Width of the slide, at least 250 px.
        one_stain: True if all slides with the same seed have the same stain, as in one laboratory;
            False if slides of different patients also differ in stain.

    Returns:
        The slide. About 10 to 60 % of its tissue is invasive carcinoma.

    Raises:
        ValueError: The slide is too small to hold both classes.
    """
    if min(height_px, width_px) < MIN_SLIDE_PX:
        raise ValueError(f"a side of {min(height_px, width_px)} px is below {MIN_SLIDE_PX} px")
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    shape = (height_px, width_px)
    specimen, idc = _outlines(rng, shape)
    soft_idc = cv2.blur(idc.astype(np.float32), (39, 39))
    epithelium, lumen, sheath = _glands(rng, specimen & ~idc)
    fat_cell, fat = _fat(rng, sheath, soft_idc)
    fiber, nest, speckle = _textures(rng, shape)
    haematoxylin, eosin = _normal_tissue(rng, fiber, speckle, epithelium, sheath)
    tumor = _tumor(rng, fiber, nest, speckle)
    # Cords and stroma cross the outline of the carcinoma, so labels near the outline are noisy.
    reach = soft_idc - 0.5 + 0.15 * _noise(rng, shape, 40)
    edge = np.clip(5 * reach + 0.5 + 0.5 * nest, 0, 1)
    haematoxylin += edge * (tumor[0] - haematoxylin)
    eosin += edge * (tumor[1] - eosin)
    stained = cv2.GaussianBlur(specimen.astype(np.float32), (0, 0), 1) * (1 - fat) * (1 - lumen)
    rng_of_stain = np.random.default_rng(seed) if one_stain else rng
    rgb = _expose(rng_of_stain, haematoxylin * stained, eosin * stained)
    return SynthSlide(patient=patient, rgb=rgb, idc=idc, tissue=specimen & ~fat_cell)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> Floats:
    """Draw smooth noise: mean 0, standard deviation about 1, wavelength ``cell_px``."""
    step = 4 if cell_px >= 16 else 1  # coarse noise is drawn small and enlarged, to save time
    coarse_shape = [int(side / cell_px) + 5 for side in shape]
    coarse = rng.standard_normal(coarse_shape, dtype=np.float32) * 1.5
    matrix = np.array([[step / cell_px, 0, 1], [0, step / cell_px, 1]])
    size = (-(-shape[1] // step) + 1, -(-shape[0] // step) + 1)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    small = cv2.warpAffine(coarse, matrix, size, flags=flags)
    large = cv2.resize(small, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(large[: shape[0], : shape[1]])


def _outlines(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Bools, Bools]:
    """Draw a mask of the specimen and a mask of the carcinoma; both have ragged outlines."""
    step = 3  # outlines are smooth, so they are drawn at 1/3 of the size
    small = (-(-shape[0] // step), -(-shape[1] // step))
    rows, cols = (axis.astype(np.float32) for axis in np.ogrid[: small[0], : small[1]])
    center = rng.uniform(0.45, 0.6, 2)  # some specimens cross the slide's right or bottom edge
    radial = np.hypot(rows / small[0] - float(center[0]), cols / small[1] - float(center[1]))
    rough, fine = _noise(rng, small, 10), _noise(rng, small, 3.5)
    field = radial + 0.07 * _noise(rng, small, min(small) / 4) + 0.018 * rough + 0.006 * fine
    limit = np.quantile(field, rng.uniform(0.66, 0.74))
    specimen = cv2.resize(field, shape[::-1]) < limit
    area = float((field < limit).sum())
    # A carcinoma has at least the area of 6 patches: a smaller one might fill no patch.
    idc_fraction = max(rng.uniform(0.08, 0.5), 6 * (PATCH_PX / step) ** 2 / area)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    row, col = (float(position) for position in rng.uniform(0.35, 0.65, 2) * small)
    along = (rows - row) * np.sin(angle) + (cols - col) * np.cos(angle)
    across = (rows - row) * np.cos(angle) - (cols - col) * np.sin(angle)
    scale = float(np.sqrt(idc_fraction * area))
    distance = np.hypot(along / stretch, across * stretch).astype(np.float32)
    distance += scale * (0.12 * _noise(rng, small, 0.4 * scale) + 0.06 * rough + 0.02 * fine)
    idc = cv2.resize(distance, shape[::-1]) < np.quantile(distance[field < limit], idc_fraction)
    return specimen, specimen & idc


def _textures(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    """Draw three textures: fibers, cell nests in the direction of the fibers, and fine noise.

    The noise has the size of nuclei.
    """
    size = rng.uniform(1.5, 2.6)
    # Sigma of the blur in px, along and across the fibers. Below, the axis along the fibers is
    # stretched by 4.
    sigmas = [(2.2, 0.7), (0.25 * size * rng.uniform(1.0, 1.7), size)]
    tile = np.empty((1024, 256, 2), np.float32)
    for channel, (along, across) in enumerate(sigmas):
        white = rng.standard_normal(tile.shape[:2], dtype=np.float32)
        layer = cv2.GaussianBlur(white, (0, 0), along, sigmaY=across)
        tile[..., channel] = layer / layer.std()
    rows, cols = (axis.astype(np.float32) for axis in np.ogrid[: shape[0], : shape[1]])
    angle = rng.uniform(0, np.pi)
    sin, cos = float(np.sin(angle)), float(np.cos(angle))
    across_px = rows * cos - cols * sin + 32 * _noise(rng, shape, 190) + 6 * _noise(rng, shape, 45)
    along_px = (rows * sin + cols * cos) / 4 + 6 * _noise(rng, shape, 60)
    across_px += _noise(rng, shape, 9)  # waviness of collagen
    wrap = cv2.BORDER_WRAP
    fiber, nest = cv2.split(cv2.remap(tile, along_px, across_px, cv2.INTER_LINEAR, borderMode=wrap))
    speckle = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), 0.72)
    return fiber, 0.85 * nest + 0.5 * _noise(rng, shape, 5), speckle / float(speckle.std())


def _glands(rng: np.random.Generator, allowed: Bools) -> tuple[Floats, Floats, Floats]:
    """Draw lobules and ducts whose centers are in the mask ``allowed``.

    Returns:
        Amounts (0..1) of epithelium, lumen and sheath in each pixel.
    """
    shape = (allowed.shape[0], allowed.shape[1])
    planes = np.zeros((3, *shape), np.uint8)
    candidates = np.flatnonzero(allowed)
    num_glands = int(candidates.size / rng.uniform(5500, 12000))
    for position in rng.choice(candidates, size=num_glands):
        row, col = divmod(int(position), shape[1])
        if rng.random() < 0.6:
            _draw_lobule(rng, planes, row, col)
        else:
            _draw_duct(rng, planes, row, col)
    rows, cols = (axis.astype(np.float32) for axis in np.ogrid[: shape[0], : shape[1]])
    warp = _noise(rng, shape, 6)  # makes ellipses irregular
    warped = cv2.remap(cv2.merge(list(planes)), cols + warp, rows + warp, cv2.INTER_LINEAR)
    epithelium, lumen, sheath = cv2.split(warped.astype(np.float32) / 255)
    return epithelium, lumen, cv2.blur(sheath, (13, 13))


def _draw_lobule(rng: np.random.Generator, planes: Bytes, row: int, col: int) -> None:
    """Draw a lobule into ``planes`` as a cluster of small rings (acini); see ``_draw_duct``."""
    radius, acinus = rng.uniform(10, 36), rng.uniform(3.0, 5.5)
    cv2.circle(planes[2], (col, row), int(radius * 1.25), 255, -1)
    count = int((radius / acinus) ** 2 * rng.uniform(0.4, 0.8))
    distance, angle = radius * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    centers = np.stack([col + distance * np.cos(angle), row + 0.8 * distance * np.sin(angle)], 1)
    axes = 2 * acinus * rng.uniform((0.8, 0.75), (1.7, 1.1), (count, 2))
    holes = rng.choice([0.0, 0.0, 0.3, 0.45], count)  # the lumen of many acini is closed
    angles = rng.uniform(0, 180, count)
    for center, axis, angle, hole in zip(centers, axes, angles, holes, strict=True):
        cv2.ellipse(planes[0], (center, axis, angle), 255, -1, cv2.LINE_AA)
        cv2.ellipse(planes[1], (center, axis, angle), 0, -1)
        if hole:
            cv2.ellipse(planes[1], (center, hole * axis, angle), 255, -1, cv2.LINE_AA)


def _draw_duct(rng: np.random.Generator, planes: Bytes, row: int, col: int) -> None:
    """Draw a duct into ``planes`` as a wavy tube.

    ``planes`` has an image for each of epithelium, lumen and sheath, shape (3, h, w). ``row`` and
    ``col`` are the position of the duct.
    """
    width, steps = int(rng.integers(7, 16)), int(rng.integers(2, 12))
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, steps))
    line = [col + 6 * np.cumsum(np.cos(turns)), row + 6 * np.cumsum(np.sin(turns))]
    points = [np.rint(np.stack(line, axis=1)).astype(np.int32).reshape(-1, 1, 2)]
    cv2.polylines(planes[2], points, False, 255, width * 3)
    cv2.polylines(planes[0], points, False, 255, width, cv2.LINE_AA)
    cv2.polylines(planes[1], points, False, 0, width)
    hole = width - int(rng.integers(6, 10))  # two walls of 3 to 5 px
    if hole > 0:
        cv2.polylines(planes[1], points, False, 255, hole, cv2.LINE_AA)


def _fat(rng: np.random.Generator, sheath: Floats, soft_idc: Floats) -> tuple[Bools, Floats]:
    """Draw fat cells.

    Returns:
        Mask of the fat, and the fraction (0..0.97) of its stain that each pixel loses.
    """
    shape, pitch = (sheath.shape[0], sheath.shape[1]), 11.5
    grid = np.mgrid[0 : shape[0] : pitch, 0 : shape[1] : pitch].reshape(2, -1)
    grid = (grid + rng.uniform(0, pitch * 1.5, grid.shape)).astype(np.int32)
    rows, cols = np.minimum(grid, np.array(shape)[:, None] - 1)
    seeds = np.ones(shape, np.uint8)
    seeds[rows, cols] = 0
    label_type = cv2.DIST_LABEL_PIXEL
    _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=label_type)
    tendency = _noise(rng, shape, 110) + 0.6 * _noise(rng, shape, 35) - 3 * sheath - 4 * soft_idc
    score = tendency[rows, cols] + rng.normal(0, 0.3, rows.size) + rng.uniform(-0.9, 0.4)
    is_fat = np.zeros(rows.size + 1, bool)
    is_fat[cell[rows, cols]] = score > 0
    inside = is_fat[cell]
    inner = inside.astype(np.uint8) * 255
    wall = (cell[1:, 1:] != cell[:-1, 1:]) | (cell[1:, 1:] != cell[1:, :-1])
    inner[1:, 1:][wall] = 0
    soft = cv2.GaussianBlur(inner, (0, 0), 1.2)
    return inside, np.clip((soft.astype(np.float32) - 130) / 70, 0, 0.97)


def _nuclei(speckle: Floats, density: Floats) -> Floats:
    """Convert noise to nuclei: 0 is no nucleus, 1 is a nucleus. A larger density gives more."""
    return np.clip((speckle - 2.1 + 2.5 * density) * 0.6, 0, 1)


def _normal_tissue(
    rng: np.random.Generator, fiber: Floats, speckle: Floats, epithelium: Floats, sheath: Floats
) -> tuple[Floats, Floats]:
    """Compute the amounts of haematoxylin and eosin in each pixel of normal tissue.

    Normal tissue consists of stroma, glands and lymphocytes.
    """
    shape = (fiber.shape[0], fiber.shape[1])
    lymph = _noise(rng, shape, 28) + 0.8 * _noise(rng, shape, 90) - rng.uniform(1.8, 2.6)
    lymph = np.clip(lymph * 2, 0, 1)
    cellular = np.clip(0.22 + 0.16 * _noise(rng, shape, 60) + 0.15 * sheath, 0, 0.6)
    nuclei = _nuclei(speckle, np.maximum(np.maximum(cellular, 0.85 * epithelium), 0.9 * lymph))
    eosin = 0.6 + 0.12 * fiber + 0.08 * _noise(rng, shape, 80) + 0.05 * speckle
    cleft = np.clip((fiber - 1.6) * 2, 0, 1) * (1 - epithelium)  # gaps of dried tissue
    eosin *= (1 - 0.85 * cleft) * (1 - 0.4 * epithelium)
    haematoxylin = 0.08 + 0.1 * cellular + 0.45 * epithelium + 0.25 * lymph + 1.1 * nuclei
    return np.maximum(haematoxylin * (1 - 0.8 * cleft), 0), np.maximum(eosin, 0.02)


def _tumor(
    rng: np.random.Generator, fiber: Floats, nest: Floats, speckle: Floats
) -> tuple[Floats, Floats]:
    """Compute the amounts of haematoxylin and eosin in each pixel of carcinoma.

    A carcinoma consists of nests and cords of cells in stroma.
    """
    shape = (fiber.shape[0], fiber.shape[1])
    rarity = rng.uniform(-0.5, 0.5) + 0.5 * _noise(rng, shape, 90) + 0.2 * _noise(rng, shape, 30)
    cells = np.clip((nest - rarity) * 2.5, 0, 1)
    # The random threshold decides whether the lumina are well or poorly formed.
    lumen = 0.85 * cells * np.clip((nest - rng.uniform(1.3, 3.0)) * 4, 0, 1)
    nuclei = _nuclei(speckle, 0.3 + 0.42 * cells)
    haematoxylin = 0.18 + 0.38 * cells + 1.2 * nuclei
    eosin = (0.56 + 0.11 * fiber + 0.05 * speckle) * (1 - 0.2 * cells)
    return haematoxylin * (1 - lumen), np.maximum(eosin, 0.02) * (1 - lumen)


def _expose(rng: np.random.Generator, haematoxylin: Floats, eosin: Floats) -> Bytes:
    """Convert the amounts of both stains to RGB pixels, shape (height, width, 3), uint8.

    The colors of the stains are random.
    """
    vectors = np.array([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.035, (2, 3))
    vectors *= rng.uniform((0.75, 0.65), (1.3, 1.25))[:, None]
    light = np.array(LIGHT) + rng.normal(0, 1.2, 3)
    blur = rng.uniform(0.4, 0.65)
    channels = []
    for absorbed, white in zip(vectors.T.tolist(), light.tolist(), strict=True):
        density = cv2.addWeighted(haematoxylin, -absorbed[0], eosin, -absorbed[1], 0)
        channels.append(cv2.multiply(cv2.exp(density), white, dtype=cv2.CV_8U))
    return np.asarray(cv2.GaussianBlur(cv2.merge(channels), (0, 0), blur), dtype=np.uint8)

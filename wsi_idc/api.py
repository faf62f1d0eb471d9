"""Python interface of this package: open maps and packs, map slides, predict patches.

The package ``wsi_idc`` exports all names of this module. ``docs/python.md`` explains them.
"""

import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_idc.core.constants import DEFAULT_MAPS, PREDICT_BATCH_SIZE
from wsi_idc.core.errors import DataError, MapError
from wsi_idc.core.text import count
from wsi_idc.maps.map_reader import (
    has_patient_format,
    map_path,
    open_image,
    read_image,
    read_map,
)
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint, check_checkpoint_file
from wsi_idc.training.runs import checkpoint_file

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from wsi_idc.data.pack import Pack
    from wsi_idc.inference.predictor import Predictor

__all__ = ["Map", "PatientMaps", "map_slides", "open_map", "open_pack", "predict"]

PathLike = str | os.PathLike[str]
_PLOT_DPI = 150
_DPI_RANGE = (30, 1200)  # as in wsi-idc render
_Function = TypeVar("_Function", bound=Callable[..., Any])
_lock = threading.RLock()


def _one_thread_at_a_time(function: _Function) -> _Function:
    # While torch.fx traces a network, it changes the calls of the modules of all threads.
    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with _lock:
            return function(*args, **options)

    return cast(_Function, wrapped)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Map(PatientMap):
    """Map of a patient or slide, read from a file.

    The values of the N patches are arrays: ``probability``, ``label``, ``coords`` (x, y in level-0
    px), ``row_col``, and optional ones such as ``cam``, ``novelty`` and ``flags``; None replaces an
    array that the map does not have. ``threshold``, ``mpp``, ``slide``, ``model`` and
    ``provenance`` describe the map.
    The base class ``PatientMap`` documents all attributes.

    Attributes:
        path: Map file.
    """

    path: Path

    def __repr__(self) -> str:
        num = count(len(self.probability), "patch", "patches")
        return f"<Map of {self.map_name}: {num}, {self.idc_fraction():.1%} called IDC, {self.path}>"

    @property
    def slides(self) -> Mapping[str, "Map"]:
        """This map by the name of its slide, for code that also handles several slides."""
        return {self.slide_name or self.patient: self}

    def read_image(self) -> NDArray[np.uint8] | None:
        """Read the picture of the tissue; return None if the map has no picture.

        The shape is (rows * cell_px, cols * cell_px, 3). Cells without a patch are white.
        """
        return read_image(self.path)

    def read_patches(self, indices: Any = slice(None)) -> NDArray[np.uint8]:
        """Read patches from the picture of the tissue, shape (n, cell_px, cell_px, 3), uint8.

        If the patches of the map overlap, only the middle of each patch is stored.

        Args:
            indices: Indices of the patches: numbers, a slice, or an array of bool. The default is
                all patches.

        Raises:
            MapError: The map has no picture, or the picture cannot be read.
        """
        row_col, side = np.atleast_2d(self.row_col[indices]), self.cell_px
        patches = np.empty((len(row_col), side, side, 3), np.uint8)
        with open_image(self.path) as read_rows:
            if read_rows is None:
                raise MapError(f"{self.path}: has no picture; make the map without --no-image")
            for row in np.unique(row_col[:, 0]).tolist():
                strip = read_rows(row * side, (row + 1) * side)
                for index in np.flatnonzero(row_col[:, 0] == row):
                    left = row_col[index, 1] * side
                    patches[index] = strip[:, left : left + side]
        return patches

    def plot(
        self, view: str = "panels", *, threshold: float | None = None, dpi: int = _PLOT_DPI
    ) -> "Figure":
        """Draw the map as ``wsi-idc render`` does. Notebooks show the figure.

        Args:
            view: View of ``wsi-idc render``: "panels", "overlay", "contours", "cam", "quality" or
                "side-by-side".
            threshold: Lowest probability at which a patch is called IDC; None means the threshold
                of the map.
            dpi: Resolution of the figure, from 30 to 1200.

        Returns:
            Figure; ``figure.savefig("map.png")`` saves it.

        Raises:
            MapError: The view is unknown, the map has no data for this view, or ``dpi`` is out of
                range.
        """
        from wsi_idc.render.render import figure_of

        return _draw(partial(figure_of, self.path), view, threshold, dpi)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a table with one row for each patch; see ``export.scverse.to_dataframe``.

        The columns are ``row``, ``col``, ``x``, ``y`` (top left corner in level-0 px),
        ``probability`` and ``label``. Further columns, such as ``novelty``, ``flags`` and
        ``tissue``, are present if the map has these values.
        """
        from wsi_idc.export.scverse import to_dataframe

        return to_dataframe(self)

    def to_anndata(self) -> "AnnData":
        """Return the patches as an AnnData object; see ``export.scverse.to_anndata``.

        Raises:
            MissingPackageError: The package anndata is not installed.
        """
        return _to_anndata(self.slides)

    def to_spatialdata(self) -> "SpatialData":
        """Return pictures, patches and table as SpatialData; see ``export.scverse.to_spatialdata``.

        Raises:
            MissingPackageError: The package spatialdata is not installed.
        """
        return _to_spatialdata(self.slides)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PatientMaps:
    """Maps of a patient with several slides.

    Attributes:
        path: File that links the maps.
        patient: Patient id.
        slides: Map of each slide, by slide name.
        summary: Row of the patient in the table ``patients.csv``: areas, Dice, AUC and others.
    """

    path: Path
    patient: str
    slides: Mapping[str, Map]
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<PatientMaps of {self.patient}: {', '.join(self.slides)}, {self.path}>"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"the maps of several slides have no attribute {name!r}; the attribute slides has the "
            "map of each slide"
        )

    def plot(
        self, view: str = "overlay", *, threshold: float | None = None, dpi: int = _PLOT_DPI
    ) -> "Figure":
        """Draw all slides on one page, one panel for each slide. Notebooks show the figure.

        Args:
            view: View of ``wsi-idc render`` with one panel: "overlay", "contours" or "cam".
            threshold: Lowest probability at which a patch is called IDC; None means the threshold
                of each map.
            dpi: Resolution of the figure, from 30 to 1200.

        Returns:
            Figure; ``figure.savefig("patient.png")`` saves it.

        Raises:
            MapError: The view is unknown or has several panels, a map has no data for it, the
                patient has too many slides for one page, or ``dpi`` is out of range.
        """
        from wsi_idc.render.render import figure_of_slides

        paths = {name: slide.path for name, slide in self.slides.items()}
        draw = partial(figure_of_slides, paths, patient=self.patient)
        return _draw(draw, view, threshold, dpi)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return the tables of all slides as one; the first column is ``slide``."""
        import pandas as pd

        tables = {name: slide.to_dataframe() for name, slide in self.slides.items()}
        return pd.concat(tables, names=["slide"]).reset_index(0).reset_index(drop=True)

    def to_anndata(self) -> "AnnData":
        """Return the patches of all slides as one AnnData object; see ``Map.to_anndata``."""
        return _to_anndata(self.slides)

    def to_spatialdata(self) -> "SpatialData":
        """Return all slides as one SpatialData object; each slide has a coordinate system."""
        return _to_spatialdata(self.slides)


def open_map(path: PathLike) -> Map | PatientMaps:
    """Open a map file.

    Args:
        path: Map file, or file of a patient with several slides. Maps of version 0.1.0 are
            readable.

    Returns:
        ``Map``; for a patient with several slides ``PatientMaps``. Both have ``slides``, ``plot``,
        ``to_dataframe``, ``to_anndata`` and ``to_spatialdata``.

    Raises:
        MapError: The file is missing, damaged, or not a map.
    """
    path = Path(path)
    if not has_patient_format(path):
        return _read(path)
    from wsi_idc.maps.patient_file import read_patient_file

    summary, table = read_patient_file(path)
    files = {name: map_path(path.parent, f"{path.stem}/{name}") for name in table["slide"]}
    slides = {name: _read(file) for name, file in files.items()}
    return PatientMaps(path=path, patient=str(summary["patient"]), slides=slides, summary=summary)


def open_pack(path: PathLike | None = None) -> "Pack":
    """Open a pack of patches.

    Args:
        path: Pack, folder with one pack, patch tree, or zip of a patch tree. A patch tree is packed
            once, and the pack is kept in a cache. None means the path in the environment variable
            ``WSI_IDC_DATA``, or the folder ``data``.

    Returns:
        The pack. ``pack.patients`` has the patient ids, ``pack.rows_of(patient)`` the rows of a
        patient, ``pack.patches[rows]`` the pixels, and ``pack.index`` the table of all patches.

    Raises:
        DataError: There is no usable pack.
    """
    from wsi_idc.data.open_data import open_data

    return open_data(None if path is None else Path(path))


@_one_thread_at_a_time
def map_slides(
    slides: PathLike | Iterable[PathLike],
    *,
    out: PathLike = DEFAULT_MAPS,
    checkpoint: PathLike | None = None,
    mpp: float | None = None,
    tta: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> list[Path]:
    """Make maps of slides, as ``wsi-idc map`` does, and return the map files.

    A map that the same checkpoint, settings and slide have made is kept. If a slide cannot be
    mapped, the maps of the other slides are made first.

    Args:
        slides: Slide, folder of slides, manifest (CSV), or several slides.
        out: Folder of the maps.
        checkpoint: Run or .pt file; None means the bundled model.
        mpp: Microns per level-0 px; None means the value in the slide file or manifest.
        tta: Whether to average the predictions of all 8 flips and quarter turns of each patch.
        overwrite: Whether to replace existing maps.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16".

    Returns:
        Map file of each slide, in the order of the slides; ``open_map`` opens the files.

    Raises:
        DataError: The slides or the manifest cannot be used.
        CheckpointError: The checkpoint cannot be used.
        MapError: The maps of some slides were not made. The message has the reasons.
    """
    from wsi_idc.slides.manifest import rows_from_files, slide_rows
    from wsi_idc.slides.tiling import SlideSettings

    if isinstance(slides, str | os.PathLike):
        rows = slide_rows(Path(slides))
    else:
        rows = rows_from_files([Path(slide) for slide in slides])
    file = _checkpoint_file(checkpoint)

    from wsi_idc.maps.builder import MapBuilder
    from wsi_idc.maps.from_slides import SlideSource
    from wsi_idc.runtime.device import select_device

    source = SlideSource(rows, SlideSettings(mpp=mpp))
    device_config = select_device(device, precision)
    predictor = _predictor(file, tta=tta, smooth=None)
    report = MapBuilder(predictor, device_config, Path(out), overwrite=overwrite).build(source)
    if report.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.failed.items())
        raise MapError(f"{len(report.failed)} of {len(rows)} maps were not made: {reasons}")
    files = report.made | report.kept
    return [files[name] for name in source.names]


@overload
def predict(
    patches: "ArrayLike",
    *,
    cams: Literal[False] = ...,
    checkpoint: PathLike | None = ...,
    tta: bool = ...,
    device: str = ...,
    precision: str = ...,
    batch_size: int = ...,
) -> NDArray[np.float32]: ...


@overload
def predict(
    patches: "ArrayLike",
    *,
    cams: Literal[True],
    checkpoint: PathLike | None = ...,
    tta: bool = ...,
    device: str = ...,
    precision: str = ...,
    batch_size: int = ...,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


@_one_thread_at_a_time
def predict(
    patches: "ArrayLike",
    *,
    cams: bool = False,
    checkpoint: PathLike | None = None,
    tta: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = PREDICT_BATCH_SIZE,
) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predict the probability of IDC of patches.

    Each call reads the checkpoint, so one call with many patches is faster than many calls. If
    several threads call this function, one thread computes and the others wait.

    Args:
        patches: RGB pixels, shape (n, H, W, 3), uint8. H and W are the patch size of the model, and
            the pixels must have its resolution: 50 px of 4 um for the bundled model.
        cams: Whether to also return the CAMs.
        checkpoint: Run or .pt file; None means the bundled model.
        tta: Whether to average the predictions of all 8 flips and quarter turns of each patch.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: Number of patches in a batch.

    Returns:
        Calibrated probabilities, shape (n,), float32, not smoothed over neighboring patches. With
        ``cams``, a tuple of the probabilities and the raw Grad-CAMs, shape (n, h, w), float32.

    Raises:
        DataError: The shape or type of ``patches`` does not fit the model, or ``batch_size`` is
            less than 1.
        CheckpointError: The checkpoint cannot be used.
    """
    pixels, file = np.asarray(patches), _checkpoint_file(checkpoint)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise DataError(
            f"patches of type {pixels.dtype} and shape {pixels.shape} cannot be predicted; give "
            "patches of type uint8 and shape (n, H, W, 3)"
        )
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")

    from wsi_idc.inference.predict import RawPrediction
    from wsi_idc.models.cam import CamSpec
    from wsi_idc.runtime.device import select_device

    device_config = select_device(device, precision)
    predictor = _predictor(file, tta=tta, smooth=False)
    (model,) = predictor.checkpoints
    patch_px, mpp = model.input.patch_px, model.input.mpp
    if pixels.shape[1:] != (patch_px, patch_px, 3):
        raise DataError(
            f"patches of shape {pixels.shape} do not fit the model; give patches of {patch_px} px "
            f"at {mpp:g} um/px, shape (n, {patch_px}, {patch_px}, 3)"
        )
    cam = CamSpec() if cams else None
    if cam is not None:
        predictor.validate_cam(cam, patch_px=patch_px)
    # If there are no patches, a black patch gives the size of the CAMs.
    known = pixels if len(pixels) else np.zeros((1, patch_px, patch_px, 3), np.uint8)
    # The batches are copies, because torch does not accept read-only arrays.
    starts = range(0, len(known), batch_size)
    batches = (known[start : start + batch_size].copy() for start in starts)
    with predictor.batch_predictor(
        device_config=device_config, batch_size=batch_size, cam=cam
    ) as predict_batches:
        raw = RawPrediction.concatenate(predict_batches(batches)).part(0, len(pixels))
    probability = predictor.aggregate(raw.logit).probability
    return probability if raw.cam is None else (probability, raw.cam)


def _read(path: Path) -> Map:
    return Map(**vars(read_map(path)), path=path)


def _checkpoint_file(checkpoint: PathLike | None) -> Path:
    """Return the checkpoint file that the user names; this function does not import torch."""
    if checkpoint is None or os.fspath(checkpoint) == BUNDLED:
        path = bundled_checkpoint()
    else:
        path = checkpoint_file(Path(checkpoint))
    check_checkpoint_file(path)
    return path


def _predictor(file: Path, *, tta: bool, smooth: bool | None) -> "Predictor":
    from wsi_idc.inference.predictor import Predictor
    from wsi_idc.models.checkpoint import load_finished_checkpoint

    return Predictor((load_finished_checkpoint(file),), tta=tta, smooth=smooth)


def _draw(draw: Callable[..., "Figure"], view: str, threshold: float | None, dpi: int) -> "Figure":
    """Call ``draw`` in the style of pages, and let notebooks show the figure."""
    from matplotlib import rc_context

    from wsi_idc.plotting.style import page_style
    from wsi_idc.render.render import VIEWS

    if view not in VIEWS:
        raise MapError(f"view {view!r} is not one of {', '.join(VIEWS)}")
    if not _DPI_RANGE[0] <= dpi <= _DPI_RANGE[1]:
        raise MapError("dpi must be from {} to {}, not {}".format(*_DPI_RANGE, dpi))
    with page_style(), rc_context({"figure.dpi": dpi}):
        figure = draw(view=view, threshold=threshold, dpi=dpi)
    # Notebooks show figures only after an import of pyplot, which this package avoids.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "Figure") -> bytes:
    from wsi_idc.plotting.style import page_style

    buffer = io.BytesIO()
    with page_style():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _to_anndata(slides: Mapping[str, Map]) -> "AnnData":
    from wsi_idc.export.scverse import to_anndata

    return to_anndata(slides)


def _to_spatialdata(slides: Mapping[str, Map]) -> "SpatialData":
    from wsi_idc.export.scverse import to_spatialdata

    return to_spatialdata({name: (slide.path, slide) for name, slide in slides.items()})

"""Maps as objects of other packages: tables of pandas, AnnData and SpatialData of scverse."""

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from wsi_idc.core.errors import MissingPackageError
from wsi_idc.export.csv_table import optional_columns
from wsi_idc.maps.coordinates import grid_transform
from wsi_idc.maps.map_reader import read_image
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.slides.patches import tissue_fraction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_GLOBAL = "global"  # coordinate system of SpatialData for objects with one slide
_SETTINGS = (
    *("patient", "source", "mpp", "mpp_source", "level0_mpp", "patch_px", "cell_px"),
    *("patch_size_level0", "threshold", "temperature"),
)


def to_dataframe(patient_map: PatientMap) -> pd.DataFrame:
    """Return a table with one row for each patch of a map.

    Each table has the columns ``row``, ``col``, ``x``, ``y`` (top left corner in level-0 px),
    ``probability``, ``label`` (-1 if unknown) and ``source_file`` (name of the slide or pack). The
    columns ``uncertainty``, ``unsmoothed``, ``smoothed``, ``novelty``, ``cam_mean`` and ``cam_max``
    are present if the map has these values.
    With quality flags, ``flags`` has the bits of all flags, and ``flag_NAME`` is a column of bool.
    With a slide, ``tissue`` is the fraction of the patch in the tissue mask.
    """
    columns: dict[str, Any] = {
        "row": patient_map.row_col[:, 0],
        "col": patient_map.row_col[:, 1],
        "x": patient_map.coords[:, 0],
        "y": patient_map.coords[:, 1],
        "probability": patient_map.probability,
        "label": patient_map.label,
        **optional_columns(patient_map),
    }
    columns |= {f"flag_{name}": columns[f"flag_{name}"] > 0 for name in patient_map.flag_bits}
    if patient_map.flags is not None:
        columns["flags"] = patient_map.flags
    if (slide := patient_map.slide) is not None:
        corners = np.hstack(
            [patient_map.coords, patient_map.coords + patient_map.patch_size_level0]
        )
        boxes = corners / ((slide.width, slide.height) * 2)
        columns["tissue"] = tissue_fraction(slide.tissue, boxes).astype(np.float32)
    return pd.DataFrame(columns).assign(source_file=patient_map.source_file)


def to_anndata(maps: Mapping[str, PatientMap]) -> "AnnData":
    """Return the patches of maps as an AnnData object.

    ``X`` is the probability of IDC, shape (N, 1). ``obs`` has the columns of ``to_dataframe`` and
    the column ``map``. ``obsm["spatial"]`` has the center of each patch, x and y in level-0 px.
    ``uns["wsi_idc"]`` has the settings and the provenance of each map.

    Args:
        maps: Maps by slide name.

    Raises:
        MissingPackageError: anndata is not installed.
    """
    anndata = _import("anndata", needed_by="to_anndata")
    tables, centers = [], []
    for patient_map in maps.values():
        table = to_dataframe(patient_map)
        table.insert(0, "map", patient_map.map_name)
        cells = patient_map.row_col.tolist()
        table.index = pd.Index([f"{patient_map.map_name}_{row}_{col}" for row, col in cells])
        tables.append(table)
        centers.append(patient_map.coords + patient_map.patch_size_level0 / 2)
    obs = pd.concat(tables)
    obs["map"] = obs["map"].astype("category")
    # If only some maps have flags, pandas joins them as objects, which .h5ad files cannot store.
    flags = [column for column in obs if str(column).startswith("flag_")]
    obs = obs.astype(dict.fromkeys(flags, "boolean"))
    name = next(iter(maps.values())).class_names[1]
    return anndata.AnnData(
        X=obs["probability"].to_numpy()[:, None],
        obs=obs,
        var=pd.DataFrame(index=[name]),
        obsm={"spatial": np.concatenate(centers)},
        uns={"wsi_idc": {name: _settings(patient_map) for name, patient_map in maps.items()}},
    )


def to_spatialdata(maps: Mapping[str, tuple[Path, PatientMap]]) -> "SpatialData":
    """Return maps as a SpatialData object: pictures, squares of patches, and the table of patches.

    The images are ``tissue`` (picture of the tissue in the map) and ``thumbnail`` (complete slide),
    if the map has them. The shapes ``patches`` are the squares of the patches. The table ``table``
    is the object of ``to_anndata``. The coordinate system ``global`` has level-0 px. With several
    slides, ``SLIDE_`` precedes each name, and each slide has a coordinate system ``SLIDE``.

    Args:
        maps: File and content of each map by slide name.

    Raises:
        MissingPackageError: spatialdata is not installed.
        MapError: The picture in a map file cannot be read.
    """
    spatialdata = _import("spatialdata", needed_by="to_spatialdata")
    from spatialdata.models import Image2DModel, TableModel

    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    table = to_anndata({name: patient_map for name, (_, patient_map) in maps.items()})
    regions: list[str] = []
    instances: list[int] = []
    systems = _element_names(maps) if len(maps) > 1 else [_GLOBAL]
    for system, (path, patient_map) in zip(systems, maps.values(), strict=True):
        prefix = f"{system}_" if len(maps) > 1 else ""
        for kind, (pixels, scale, corner) in _pictures(path, patient_map).items():
            images[f"{prefix}{kind}"] = Image2DModel.parse(
                pixels.transpose(2, 0, 1),
                dims=("c", "y", "x"),
                c_coords=["r", "g", "b"],
                transformations={system: _transformation(scale, corner)},
            )
        shapes[f"{prefix}patches"] = _squares(patient_map, system)
        regions += [f"{prefix}patches"] * len(patient_map.row_col)
        instances += range(len(patient_map.row_col))
    table.obs["region"] = pd.Categorical(regions)
    table.obs["patch"] = instances
    keys = {"region_key": "region", "instance_key": "patch"}
    parsed = TableModel.parse(table, region=list(shapes), **keys)
    return spatialdata.SpatialData(images=images, shapes=shapes, tables={"table": parsed})


def _pictures(path: Path, patient_map: PatientMap) -> dict[str, tuple[Any, Any, Any]]:
    """Return pixels, level-0 px per pixel (x, y), and top left corner of each picture of a map."""
    pictures: dict[str, tuple[Any, Any, Any]] = {}
    if (tissue := read_image(path)) is not None:
        grid = grid_transform(patient_map, "level0")
        scale = grid.side / patient_map.cell_px
        pictures["tissue"] = tissue, (scale, scale), (grid.x, grid.y)
    if (slide := patient_map.slide) is not None:
        height, width = slide.tissue.shape
        scales = (slide.width / width, slide.height / height)
        pictures["thumbnail"] = slide.thumbnail, scales, (0.0, 0.0)
    return pictures


def _transformation(scale: tuple[float, float], corner: tuple[float, float]) -> Any:
    from spatialdata.transformations import Scale, Sequence, Translation

    axes = ("x", "y")
    return Sequence([Scale(list(scale), axes), Translation(list(corner), axes)])


def _squares(patient_map: PatientMap, system: str) -> Any:
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    first = patient_map.coords.astype(np.float64)
    last = first + patient_map.patch_size_level0
    squares = GeoDataFrame(geometry=shapely.box(*first.T, *last.T))
    return ShapesModel.parse(squares, transformations={system: Identity()})


def _settings(patient_map: PatientMap) -> dict[str, Any]:
    """Return the settings of a map as texts, numbers and arrays, which .h5ad files can store."""
    return {
        **{name: getattr(patient_map, name) for name in _SETTINGS},
        "class_names": np.array(patient_map.class_names),
        "model": json.dumps(dict(patient_map.model)),
        "provenance": json.dumps(dict(patient_map.provenance)),
    }


def _element_names(names: Iterable[str]) -> list[str]:
    """Replace the characters that SpatialData does not accept; the result has no duplicates."""
    accepted: dict[str, str] = {}  # by lower case, because SpatialData ignores the case
    for name in names:
        clean = "".join(char if char.isalnum() or char in "-." else "_" for char in name)
        clean = clean.strip("_") or "slide"
        while clean.lower() in accepted:
            clean += "_"
        accepted[clean.lower()] = clean
    return list(accepted.values())


def _import(package: str, *, needed_by: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{needed_by} needs the package {package}; run pip install 'wsi-idc[{package}]'"
        ) from error

"""Describe a pack in numbers: tables of patients, classes, channels, sizes and hints."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc import __version__
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import is_small_inside
from wsi_idc.explore import duplicates
from wsi_idc.explore import quality as audit
from wsi_idc.explore.pixel_statistics import CHANNELS, PixelStatistics, pixel_statistics
from wsi_idc.geometry.grid import shape_of

FORMAT = "wsi-idc-explore"
FORMAT_VERSION = 1
SIGNIFICANT_DIGITS = 6
_WHITE = 255
_ALL = 3
_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
_STATISTICS = [f"{what}_{name}" for what in ("mean", "std") for name in CHANNELS]


@dataclass(frozen=True)
class Description:
    """A pack in numbers.

    Attributes:
        patients: One row a patient: patches by label, IDC fraction (of the known labels; NaN
            without any), grid, hints, channel and stain statistics.
        classes: One row a class, and one for all: patches, patients, channel statistics.
        channels: One row a patient and class: patches, channel statistics.
        sizes: One row a size of patch: patches by label, patients.
        hints: One row a hint at a patch; see ``audit.quality_flags``.
        duplicates: One row a patch that looks like one of another patient.
        neighbours: Positions of the 8 patches around each one; see ``audit.neighbours``.
        measures: What the pass over the pixels found.
        summary: The numbers that matter most, JSON-ready.

    Mean and standard deviation of channels are over pixels, 0..1, padding left out.
    """

    patients: pd.DataFrame
    classes: pd.DataFrame
    channels: pd.DataFrame
    sizes: pd.DataFrame
    hints: pd.DataFrame
    duplicates: pd.DataFrame
    neighbours: NDArray[np.int64]
    measures: PixelStatistics
    summary: dict[str, Any]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return what is written as CSV, by name."""
        return {
            "patients": self.patients,
            "classes": self.classes,
            "channels": self.channels,
            "sizes": self.sizes,
            "hints": self.hints.drop(columns="row"),
            "duplicates": self.duplicates.drop(columns="row"),
        }


def describe(pack: Pack) -> Description:
    """Describe a pack, reading its pixels once.

    Raises:
        DataError: The pack is cut short while it is read.
    """
    measures = pixel_statistics(pack)
    measured = measures.table
    around = audit.neighbor_index(pack)
    hints = audit.quality_flags(pack, measured, around)
    alike = duplicates.find_duplicates(
        pack,
        measured["hash"].to_numpy(np.uint64),
        np.flatnonzero(~audit.is_blank(measured)),
    )
    alike = audit.with_locations(pack, alike)
    alike = alike[["group", "row", "patient", "x", "y", "label", *alike.columns[2:4], "path"]]
    patients = _patients(pack, measured, hints, alike)
    classes = _classes(pack, measured)
    sizes = _sizes(pack)
    return Description(
        patients=patients,
        classes=classes,
        channels=_channels(pack, measured),
        sizes=sizes,
        hints=hints,
        duplicates=alike,
        neighbours=around,
        measures=measures,
        summary=_summary(pack, patients, classes, sizes, hints, alike, around),
    )


def channel_table(measured: pd.DataFrame, keys: Any) -> pd.DataFrame:
    """Return patches, mean and standard deviation of the channels (0..1) of each group."""
    names = [f"{what}_{name}" for what in ("sum", "squares") for name in CHANNELS]
    groups = measured[["num_px", *names]].groupby(keys)
    sums = groups.sum()
    # Python's whole numbers do not overflow, and the variance of one colour is exactly 0.
    exact = sums.astype(object)
    result = pd.DataFrame({"patches": groups.size()}, index=sums.index)
    for name in CHANNELS:
        result[f"mean_{name}"] = (exact[f"sum_{name}"] / exact["num_px"]).astype(float) / _WHITE
    for name in CHANNELS:
        total, num = exact[f"sum_{name}"], exact["num_px"]
        variance = (num * exact[f"squares_{name}"] - total * total) / (num * num)
        result[f"std_{name}"] = np.sqrt(variance.astype(float)) / _WHITE
    return result


def _patients(
    pack: Pack, measured: pd.DataFrame, hints: pd.DataFrame, alike: pd.DataFrame
) -> pd.DataFrame:
    index, patch_px = pack.index, pack.info.patch_px
    codes = index["patient"].to_numpy()
    table = _counts(index["label"], codes)
    row_col = pack.cells()
    shapes = [shape_of(row_col[codes == code]) for code in table.index]
    table["rows"], table["cols"] = zip(*shapes, strict=True)
    small = (index[["height", "width"]] < patch_px).any(axis=1)
    table["small"] = small.groupby(codes).sum()
    for kind in audit.PATCH_KINDS:
        rows = hints.loc[hints["kind"] == kind, "row"]
        table[f"{kind.replace(' ', '_')}_hints"] = _count(codes[rows], len(table))
    table["near_duplicates"] = _count(codes[alike["row"]], len(table))
    channels = channel_table(measured, codes)[_STATISTICS]
    table = pd.concat([table, channels, audit.stain_table(pack, measured)], axis=1)
    return table.set_axis(pack.patients).rename_axis("patient").reset_index()


def _counts(labels: pd.Series, keys: Any) -> pd.DataFrame:
    """Return patches by label and the IDC fraction of the known ones, of each group."""
    names = {0: "non_idc", 1: "idc", -1: "unknown"}
    columns = {name: (labels == label).groupby(keys).sum() for label, name in names.items()}
    table = pd.DataFrame(columns)
    table.insert(0, "patches", table.sum(axis=1))
    known = table["non_idc"] + table["idc"]
    table["idc_fraction"] = table["idc"] / known.where(known > 0)
    return table


def _count(codes: NDArray[np.int32], num_patients: int) -> NDArray[np.int64]:
    return np.bincount(codes, minlength=num_patients)


def _classes(pack: Pack, measured: pd.DataFrame) -> pd.DataFrame:
    """Return one row a class that is there, and one for all of them."""
    patient, order = pack.index["patient"], _class_order(pack)
    all_alike = np.full(len(pack), _ALL)
    table = pd.concat([channel_table(measured, keys) for keys in (order, all_alike)])
    num_patients = pd.concat([patient.groupby(keys).nunique() for keys in (order, all_alike)])
    table.insert(0, "class", [_class_names(pack)[code] for code in table.index])
    table.insert(2, "patients", num_patients)
    return table.reset_index(drop=True)


def _channels(pack: Pack, measured: pd.DataFrame) -> pd.DataFrame:
    table = channel_table(measured, [pack.index["patient"].to_numpy(), _class_order(pack)])
    patients, classes = zip(*table.index, strict=True)
    table.insert(0, "patient", [pack.patients[code] for code in patients])
    table.insert(1, "class", [_class_names(pack)[code] for code in classes])
    return table.reset_index(drop=True)


def _class_order(pack: Pack) -> NDArray[np.int64]:
    """Return 0, 1, or 2 for an unknown label, of each patch."""
    labels = pack.index["label"].to_numpy(np.int64)
    return np.where(labels < 0, len(pack.info.class_names), labels)


def _class_names(pack: Pack) -> tuple[str, ...]:
    return (*pack.info.class_names, "unknown", "all")


def _sizes(pack: Pack) -> pd.DataFrame:
    """Return one row a size, the full one first, then by how many there are."""
    index, side = pack.index, pack.info.patch_px
    keys = [index["height"], index["width"]]
    table = _counts(index["label"], keys).drop(columns="idc_fraction")
    table["patients"] = index["patient"].groupby(keys).nunique()
    inside = pd.Series(is_small_inside(index, patch_px=side), index.index)
    table["inside_slide"] = inside.groupby(keys).sum()
    table = table.reset_index()
    is_small = (table["height"] < side) | (table["width"] < side)
    order = {"is_small": is_small, "few": -table["patches"]}
    table = table.assign(**order).sort_values(["is_small", "few", "height", "width"])
    return table.drop(columns=list(order)).reset_index(drop=True)


def _summary(
    pack: Pack,
    patients: pd.DataFrame,
    classes: pd.DataFrame,
    sizes: pd.DataFrame,
    hints: pd.DataFrame,
    alike: pd.DataFrame,
    around: NDArray[np.int64],
) -> dict[str, Any]:
    known = patients["non_idc"] + patients["idc"]
    single = (known > 0) & ((patients["non_idc"] == 0) | (patients["idc"] == 0))
    full = (sizes["height"] == pack.info.patch_px) & (sizes["width"] == pack.info.patch_px)
    by_class = classes.drop(columns="class").to_dict("records")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "source_fingerprint": pack.info.source_fingerprint,
        "patches": len(pack),
        "patients": len(patients),
        "patch_px": pack.info.patch_px,
        "mpp": pack.info.mpp,
        "mpp_source": pack.info.mpp_source,
        "idc_fraction": _rounded(patients["idc"].sum() / known.sum()) if known.sum() else None,
        "classes": {
            name: {str(key): _rounded(value) for key, value in row.items()}
            for name, row in zip(classes["class"], by_class, strict=True)
        },
        "idc_fraction_of_patients": _quantiles(patients["idc_fraction"]),
        "patches_of_patients": _quantiles(patients["patches"]),
        "patients_with_one_class": int(single.sum()),
        "complete_3x3": int((around >= 0).all(axis=1).sum()),
        "small_patches": int(sizes.loc[~full, "patches"].sum()),
        "small_inside_slide": int(sizes["inside_slide"].sum()),
        "hints": _hint_summary(hints, patients),
        "near_duplicates": {
            "method": duplicates.METHOD,
            "groups": int(alike["group"].nunique()),
            "patches": len(alike),
            "patients": int(alike["patient"].nunique()),
        },
    }


def _hint_summary(hints: pd.DataFrame, patients: pd.DataFrame) -> dict[str, Any]:
    kinds = hints["kind"].value_counts()
    return {
        "rules": dict(audit.RULES),
        "patches": {kind: int(kinds.get(kind, 0)) for kind in audit.PATCH_KINDS},
        "stain_outliers": patients.loc[patients["stain_outlier"], "patient"].tolist(),
    }


def _quantiles(values: pd.Series) -> dict[str, Any]:
    known = values.dropna()
    return {
        name: _rounded(known.quantile(share)) if len(known) else None
        for name, share in _QUANTILES.items()
    }


def _rounded(value: Any) -> float | int:
    """Return a plain number with as many digits as the tables have."""
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")

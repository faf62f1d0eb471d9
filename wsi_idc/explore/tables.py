"""Tables that describe a pack: for example, one table of its patients and one of its classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc import __version__
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import is_small_inside
from wsi_idc.explore import duplicates, quality
from wsi_idc.explore.pixel_statistics import CHANNELS, PixelStatistics, pixel_statistics
from wsi_idc.geometry.grid import shape_of

FORMAT = "wsi-idc-explore"
FORMAT_VERSION = 1
SIGNIFICANT_DIGITS = 6
# For each label, the name of the column with its number of patches.
LABEL_COLUMNS = {0: "non_idc", 1: "idc", -1: "unknown"}
_WHITE = 255
_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
_STATISTICS = [f"{statistic}_{name}" for statistic in ("mean", "std") for name in CHANNELS]


@dataclass(frozen=True)
class Description:
    """Tables and statistics of a pack.

    Channel statistics are the mean and the standard deviation of the values of a channel. The
    values are from 0 to 1; padding is left out.

    Attributes:
        patients: One row per patient: number of patches by label, IDC fraction of the known labels
            (NaN without a known label), size of the grid, number of hints, channel statistics,
            stain statistics.
        classes: One row per class, and one row for all patches: number of patches, number of
            patients, channel statistics.
        channels: One row per patient and class: number of patches, channel statistics.
        sizes: One row per patch size: number of patches by label, number of patients.
        hints: One row per hint (reason why a patch is unusual); see ``quality.quality_flags``.
        duplicates: One row per patch that is nearly identical to a patch of another patient.
        pixels: Statistics of the pixels of each patch.
        summary: The most important numbers, as values for JSON.
    """

    patients: pd.DataFrame
    classes: pd.DataFrame
    channels: pd.DataFrame
    sizes: pd.DataFrame
    hints: pd.DataFrame
    duplicates: pd.DataFrame
    pixels: PixelStatistics
    summary: dict[str, Any]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the table of each CSV file; the keys are the file names without ``.csv``."""
        names = ("patients", "classes", "channels", "sizes", "hints", "duplicates")
        return {name: getattr(self, name).drop(columns="row", errors="ignore") for name in names}


def describe(pack: Pack) -> Description:
    """Compute all tables of a pack. The pixels of the pack are read once."""
    pixels = pixel_statistics(pack)
    neighbors = quality.neighbor_index(pack)
    hints = quality.quality_flags(pack, pixels.table, neighbors)
    candidates = np.flatnonzero(~quality.is_blank(pixels.table))
    hashes = pixels.table["hash"].to_numpy(np.uint64)
    similar = quality.with_locations(pack, duplicates.find_duplicates(pack, hashes, candidates))
    columns = ["group", "row", "patient", "x", "y", "label", "bits_apart", "correlation", "path"]
    similar = similar[columns]
    tables = {
        "patients": _patient_table(pack, pixels.table, hints, similar),
        "classes": _class_table(pack, pixels.table),
        "channels": _patient_class_table(pack, pixels.table),
        "sizes": _size_table(pack),
        "hints": hints,
        "duplicates": similar,
    }
    num_complete = int((neighbors >= 0).all(axis=1).sum())
    return Description(**tables, pixels=pixels, summary=_summary(pack, tables, num_complete))


def label_names(pack: Pack) -> dict[int, str]:
    """Return the class name of each label, and "unknown" for -1."""
    return dict(enumerate(pack.info.class_names)) | {-1: "unknown"}


def channel_table(pixel_table: pd.DataFrame, keys: Any) -> pd.DataFrame:
    """Compute mean and standard deviation (0 to 1) of each channel for each group of patches.

    ``keys`` has the group of each patch, in a form that ``DataFrame.groupby`` accepts.
    """
    names = [f"{statistic}_{name}" for statistic in ("sum", "squares") for name in CHANNELS]
    groups = pixel_table[["num_px", *names]].groupby(keys)
    sums = groups.sum()
    # Python integers do not overflow, so the variance of equal pixels is exactly 0.
    exact = sums.astype(object)
    table = pd.DataFrame({"patches": groups.size()}, index=sums.index)
    for name in CHANNELS:
        total, num = exact[f"sum_{name}"], exact["num_px"]
        variance = (num * exact[f"squares_{name}"] - total * total) / (num * num)
        table[f"mean_{name}"] = (total / num).astype(float) / _WHITE
        table[f"std_{name}"] = np.sqrt(variance.astype(float)) / _WHITE
    return table[["patches", *_STATISTICS]]


def _patient_table(
    pack: Pack, pixel_table: pd.DataFrame, hints: pd.DataFrame, similar: pd.DataFrame
) -> pd.DataFrame:
    codes = pack.index["patient"].to_numpy()
    table = _label_counts(pack.index["label"], codes)
    row_col = pack.cells()
    shapes = [shape_of(row_col[codes == code]) for code in table.index]
    table["rows"], table["cols"] = zip(*shapes, strict=True)
    is_small = (pack.index[["height", "width"]] < pack.info.patch_px).any(axis=1)
    table["small"] = is_small.groupby(codes).sum()
    rows = {
        f"{kind.replace(' ', '_')}_hints": hints.loc[hints["kind"] == kind, "row"]
        for kind in quality.PATCH_KINDS
    }
    for name, row in (rows | {"near_duplicates": similar["row"]}).items():
        table[name] = np.bincount(codes[row], minlength=len(table))
    channels = channel_table(pixel_table, codes)[_STATISTICS]
    table = pd.concat([table, channels, quality.stain_table(pack, pixel_table)], axis=1)
    return table.set_axis(pack.patients).rename_axis("patient").reset_index()


def _label_counts(labels: pd.Series, keys: Any) -> pd.DataFrame:
    """Count the patches of each group by label; compute the IDC fraction of the known labels."""
    columns = {name: (labels == label).groupby(keys).sum() for label, name in LABEL_COLUMNS.items()}
    table = pd.DataFrame(columns)
    table.insert(0, "patches", table.sum(axis=1))
    known = table["non_idc"] + table["idc"]
    table["idc_fraction"] = table["idc"] / known.where(known > 0)
    return table


def _class_table(pack: Pack, pixel_table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per class of the pack, and one row for all patches."""
    names = [*pack.info.class_names, "unknown", "all"]
    groups = (_class_codes(pack), np.full(len(pack), names.index("all")))
    table = pd.concat([channel_table(pixel_table, keys) for keys in groups])
    num_patients = pd.concat([pack.index["patient"].groupby(keys).nunique() for keys in groups])
    table.insert(0, "class", [names[code] for code in table.index])
    table.insert(2, "patients", num_patients)
    return table.reset_index(drop=True)


def _patient_class_table(pack: Pack, pixel_table: pd.DataFrame) -> pd.DataFrame:
    names = [*pack.info.class_names, "unknown"]
    table = channel_table(pixel_table, [pack.index["patient"].to_numpy(), _class_codes(pack)])
    patients, classes = zip(*table.index, strict=True)
    table.insert(0, "patient", [pack.patients[code] for code in patients])
    table.insert(1, "class", [names[code] for code in classes])
    return table.reset_index(drop=True)


def _class_codes(pack: Pack) -> NDArray[np.int64]:
    """Return the class of each patch: the label, or 2 if the label is unknown."""
    labels = pack.index["label"].to_numpy(np.int64)
    return np.where(labels < 0, len(pack.info.class_names), labels)


def _size_table(pack: Pack) -> pd.DataFrame:
    """Return one row per patch size: the full size first, then the other sizes by frequency."""
    index, side = pack.index, pack.info.patch_px
    keys = [index["height"], index["width"]]
    table = _label_counts(index["label"], keys).drop(columns="idc_fraction")
    table["patients"] = index["patient"].groupby(keys).nunique()
    inside = pd.Series(is_small_inside(index, patch_px=side), index.index)
    table["inside_slide"] = inside.groupby(keys).sum()
    table = table.reset_index()
    is_small = (table[["height", "width"]] < side).any(axis=1)
    order = np.lexsort([table["width"], table["height"], -table["patches"], is_small])
    return table.iloc[order].reset_index(drop=True)


def _summary(pack: Pack, tables: dict[str, pd.DataFrame], num_complete: int) -> dict[str, Any]:
    patients, classes, sizes = (tables[name] for name in ("patients", "classes", "sizes"))
    hints, similar = tables["hints"], tables["duplicates"]
    known = patients["non_idc"] + patients["idc"]
    has_one_class = (known > 0) & ((patients["non_idc"] == 0) | (patients["idc"] == 0))
    is_full = (sizes[["height", "width"]] == pack.info.patch_px).all(axis=1)
    by_class = classes.drop(columns="class").to_dict("records")
    num_hints = hints["kind"].value_counts()
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
        "patients_with_one_class": int(has_one_class.sum()),
        "complete_3x3": num_complete,
        "small_patches": int(sizes.loc[~is_full, "patches"].sum()),
        "small_inside_slide": int(sizes["inside_slide"].sum()),
        "hints": {
            "rules": dict(quality.RULES),
            "patches": {kind: int(num_hints.get(kind, 0)) for kind in quality.PATCH_KINDS},
            "stain_outliers": patients.loc[patients["stain_outlier"], "patient"].tolist(),
        },
        "near_duplicates": {
            "method": duplicates.DUPLICATE_METHOD,
            "groups": int(similar["group"].nunique()),
            "patches": len(similar),
            "patients": int(similar["patient"].nunique()),
        },
    }


def _quantiles(values: pd.Series) -> dict[str, Any]:
    known = values.dropna()
    return {
        name: _rounded(known.quantile(quantile)) if len(known) else None
        for name, quantile in _QUANTILES.items()
    }


def _rounded(value: Any) -> float | int:
    """Convert an integer to int. Round any other number to ``SIGNIFICANT_DIGITS`` digits."""
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")

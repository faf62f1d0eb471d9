"""Write maps in the formats asked for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import safe_filename
from wsi_idc.core.progress import progress
from wsi_idc.export.csv_table import write_csv
from wsi_idc.export.geojson import write_geojson
from wsi_idc.export.layers import Layer, layers_of
from wsi_idc.export.ome_tiff import write_ome_tiff
from wsi_idc.export.png import write_legend, write_png
from wsi_idc.maps.map_reader import open_image, read_map
from wsi_idc.maps.patient_map import PatientMap

logger = logging.getLogger(__name__)

FORMATS = ("geojson", "ome-tiff", "csv", "png")
# What is looked at over the tissue; the numbers of the other layers are in the tiles of QuPath.
_OME_LAYERS = ("tissue", "probability", "cam")


@dataclass(frozen=True)
class ExportOptions:
    """What is written of a map, and how.

    Attributes:
        formats: Of ``FORMATS``.
        threshold: Probability from which GeoJSON calls a patch IDC; None takes the map's.
        coordinates: Of GeoJSON: "level0" or "image", as in ``grid_transform``.
        compress: Whether GeoJSON is written as ``.geojson.gz``.
    """

    formats: Sequence[str] = FORMATS
    threshold: float | None = None
    coordinates: str = "level0"
    compress: bool = False


@dataclass
class ExportReport:
    """What became of each map.

    Attributes:
        written: Map file to the files written of it.
        failed: Map file to the reason why not all were written.
    """

    written: dict[Path, list[Path]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)


def export_maps(paths: Sequence[Path], out: Path, options: ExportOptions) -> ExportReport:
    """Write maps into the folder ``out``; one that cannot be is set aside with the reason.

    What is there of the same name is replaced, each file in one atomic step.
    """
    report = ExportReport()
    files_of: dict[str, Path] = {}
    with progress(len(paths), what="exporting", unit="map") as bar:
        for path in paths:
            try:
                content = read_map(path)
                other = files_of.setdefault(content.patient, path)
                if other != path:
                    raise MapError(
                        f"{path}: is of patient {content.patient} as {other} is; "
                        "export it into another folder"
                    )
                report.written[path] = _export(path, content, out, options)
            except (WsiIdcError, OSError) as error:
                report.failed[path] = str(error)
            bar.update(1)
    return report


def _export(path: Path, content: PatientMap, out: Path, options: ExportOptions) -> list[Path]:
    if len(set(content.class_names)) < len(content.class_names):
        raise MapError(f"{path}: both classes have the same name; make the map anew")
    stem = safe_filename(content.patient)
    written: list[Path] = []
    if "geojson" in options.formats:
        written.append(out / f"{stem}.geojson{'.gz' if options.compress else ''}")
        write_geojson(
            content,
            written[-1],
            threshold=options.threshold,
            coordinates=options.coordinates,
        )
    if "csv" in options.formats:
        written.append(out / f"{stem}.csv")
        write_csv(content, written[-1])
    if {"ome-tiff", "png"}.intersection(options.formats):
        with open_image(path) as read_rows:
            if read_rows is None:
                logger.warning("%s: was made without an image, so no tissue is written", path)
            layers = layers_of(content, read_rows)
            if "ome-tiff" in options.formats:
                written += _write_ome_tiffs(content, layers, out)
            if "png" in options.formats:
                written += _write_pngs(content, layers, out)
    return written


def _write_ome_tiffs(content: PatientMap, layers: Sequence[Layer], out: Path) -> list[Path]:
    shown = [layer for layer in layers if layer.name in _OME_LAYERS]
    files = [out / f"{content.patient}.{layer.name}.ome.tif" for layer in shown]
    for layer, file in zip(shown, files, strict=True):
        write_ome_tiff(content, layer, file)
    return files


def _write_pngs(content: PatientMap, layers: Sequence[Layer], out: Path) -> list[Path]:
    files = [out / f"{content.patient}.{layer.name}.png" for layer in layers]
    for layer, file in zip(layers, files, strict=True):
        write_png(content, layer, file)
    legend = out / f"{content.patient}.layers.json"
    write_legend(content, list(zip(layers, files, strict=True)), legend)
    return [*files, legend]

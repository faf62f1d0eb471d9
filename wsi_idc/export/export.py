"""Write maps in the formats of ``wsi-idc export``."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.progress import progress
from wsi_idc.export.csv_table import write_csv
from wsi_idc.export.geojson import write_geojson
from wsi_idc.export.layers import layer_pictures
from wsi_idc.export.ome_tiff import write_ome_tiff
from wsi_idc.export.png import write_legend, write_png
from wsi_idc.maps.map_reader import exclude_flagged, open_image, read_map
from wsi_idc.maps.patient_map import PatientMap

logger = logging.getLogger(__name__)

FORMATS = ("geojson", "ome-tiff", "csv", "png")
# Layers that are written as OME-TIFF. The GeoJSON file has the numbers of the other layers: QuPath
# shows these numbers as measurements of the tiles.
_OME_LAYERS = ("tissue", "probability", "cam")


@dataclass(frozen=True)
class ExportOptions:
    """Formats of an export and their settings.

    Attributes:
        formats: Formats to write, from ``FORMATS``.
        threshold: Lowest probability at which a patch is called IDC in GeoJSON files. None means
            the threshold of the map.
        coordinates: Coordinates in GeoJSON files: "qupath", "level0" or "image", as in
            ``grid_transform``.
        compress: Whether GeoJSON files are compressed, with the suffix ``.geojson.gz``.
        exclude_flagged: True means that regions in GeoJSON files leave out flagged patches. False
            means that the setting of the map is used.
    """

    formats: Sequence[str] = FORMATS
    threshold: float | None = None
    coordinates: str = "qupath"
    compress: bool = False
    exclude_flagged: bool = False


@dataclass
class ExportReport:
    """Result of an export.

    Attributes:
        written: For each map file, the files that were written from this map.
        failed: For each map file that failed, the reason of the failure.
    """

    written: dict[Path, list[Path]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)


def export_maps(paths: Sequence[Path], out: Path, options: ExportOptions) -> ExportReport:
    """Write maps into the folder ``out``, in the formats of ``options``.

    The files of a map PATIENT/SLIDE are in the subfolder PATIENT. If a map fails, the report
    records the reason, and the other maps are written. Existing files of the same names are
    replaced, each in one atomic step.
    """
    report = ExportReport()
    path_of_map: dict[str, Path] = {}
    with progress(len(paths), what="exporting", unit="map") as bar:
        for path in paths:
            try:
                patient_map = read_map(path)
                if options.exclude_flagged:
                    patient_map = exclude_flagged(path, patient_map)
                other = path_of_map.setdefault(patient_map.map_name, path)
                if other != path:
                    raise MapError(
                        f"{path}: {other} is also a map of {patient_map.map_name}; "
                        "export the maps into different folders"
                    )
                report.written[path] = _export(path, patient_map, out, options)
            except (WsiIdcError, OSError) as error:
                report.failed[path] = str(error)
            bar.update(1)
    return report


def _export(path: Path, patient_map: PatientMap, out: Path, options: ExportOptions) -> list[Path]:
    if len(set(patient_map.class_names)) < len(patient_map.class_names):
        raise MapError(f"{path}: both classes have the same name; make the map again")
    stem = patient_map.map_name
    written: list[Path] = []
    if "geojson" in options.formats:
        written.append(out / f"{stem}.geojson{'.gz' if options.compress else ''}")
        write_geojson(
            patient_map, written[-1], threshold=options.threshold, coordinates=options.coordinates
        )
    if "csv" in options.formats:
        written.append(out / f"{stem}.csv")
        write_csv(patient_map, written[-1])
    if {"ome-tiff", "png"}.isdisjoint(options.formats):
        return written
    with open_image(path) as read_rows:
        if read_rows is None:
            logger.warning("%s: the map has no image, so no tissue is written", path)
        pictures = layer_pictures(patient_map, read_rows)
        if "ome-tiff" in options.formats:
            for picture in pictures:
                if picture.name in _OME_LAYERS:
                    written.append(out / f"{stem}.{picture.name}.ome.tif")
                    write_ome_tiff(patient_map, picture, written[-1])
        if "png" in options.formats:
            files = {out / f"{stem}.{picture.name}.png": picture for picture in pictures}
            for file, picture in files.items():
                write_png(patient_map, picture, file)
            legend = out / f"{stem}.layers.json"
            write_legend(patient_map, files, legend)
            written += [*files, legend]
    return written

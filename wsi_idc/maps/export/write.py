"""Write a map in the formats asked for."""

import logging
from collections.abc import Sequence
from pathlib import Path

from wsi_idc.errors import MapError
from wsi_idc.files import plain_name
from wsi_idc.maps.export.geojson import write_geojson
from wsi_idc.maps.export.layers import Layer, layers_of
from wsi_idc.maps.export.ome_tiff import write_ome_tiff
from wsi_idc.maps.export.png import write_legend, write_png
from wsi_idc.maps.export.table import write_csv
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.store import open_image, read_map

logger = logging.getLogger(__name__)

# What QuPath lays over each other; the other layers are numbers that its tiles carry.
_OME_LAYERS = ("tissue", "probability", "cam")


def export_map(
    path: Path,
    out: Path,
    *,
    formats: Sequence[str],
    threshold: float | None = None,
    coordinates: str = "level0",
    compress: bool = False,
) -> list[Path]:
    """Write the map file ``path`` into the folder ``out`` and return the files written.

    What is there of the same name is replaced, each file in one atomic step.

    Args:
        path: The map.
        out: The folder, made if need be.
        formats: Of "geojson", "ome-tiff", "csv" and "png".
        threshold: Probability from which a patch is called IDC; None takes the map's.
        coordinates: Of the GeoJSON: "level0" or "image", as in ``place_of``.
        compress: Write GeoJSON as ``.geojson.gz``.

    Raises:
        MapError: The map cannot be read, or the corners of its patches are not on a grid.
        DataError: The patient's id cannot be a file name.
    """
    content = read_map(path)
    if len(set(content.class_names)) < len(content.class_names):
        raise MapError(f"{path}: both classes have the same name; make the map anew")
    stem = plain_name(content.patient)
    written: list[Path] = []
    if "geojson" in formats:
        file = out / f"{stem}.geojson{'.gz' if compress else ''}"
        write_geojson(content, file, threshold=threshold, coordinates=coordinates)
        written.append(file)
    if "csv" in formats:
        write_csv(content, out / f"{stem}.csv")
        written.append(out / f"{stem}.csv")
    if {"ome-tiff", "png"}.intersection(formats):
        with open_image(path) as read_rows:
            if read_rows is None:
                logger.warning("%s: was made with --no-image, so no tissue is written", path)
            layers = layers_of(content, read_rows)
            if "ome-tiff" in formats:
                written += _write_ome_tiffs(content, layers, out)
            if "png" in formats:
                written += _write_pngs(content, layers, out)
    return written


def _write_ome_tiffs(content: PatientMap, layers: Sequence[Layer], out: Path) -> list[Path]:
    written = []
    for layer in layers:
        if layer.name in _OME_LAYERS:
            written.append(out / f"{content.patient}.{layer.name}.ome.tif")
            write_ome_tiff(content, layer, written[-1])
    return written


def _write_pngs(content: PatientMap, layers: Sequence[Layer], out: Path) -> list[Path]:
    files = [out / f"{content.patient}.{layer.name}.png" for layer in layers]
    for layer, file in zip(layers, files, strict=True):
        write_png(content, layer, file)
    legend = out / f"{content.patient}.layers.json"
    write_legend(content, list(zip(layers, files, strict=True)), legend)
    return [*files, legend]

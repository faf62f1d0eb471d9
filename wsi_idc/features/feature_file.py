"""Files with the features of the patches of a slide, in the layout that CLAM and TRIDENT read.

The dataset ``features`` has one row for each patch, and ``coords`` the top left corner of each
patch in level-0 px. TRIDENT also reads the attributes of these datasets. Importing this module does
not import torch.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_idc.core import hdf5
from wsi_idc.core.errors import MapError, first_line
from wsi_idc.core.files import parse_json, write_bytes
from wsi_idc.core.hdf5 import DatasetSpec
from wsi_idc.core.provenance import provenance
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import atomic_hdf5, coords_attributes
from wsi_idc.maps.patient_map import PatientPatches

if TYPE_CHECKING:
    from wsi_idc.features.encoder import Encoder
    from wsi_idc.maps.disk_array import DiskArray

FORMAT = "wsi-idc-features"
FORMAT_VERSION = 1
PT_FOLDER = "pt_files"  # CLAM reads this folder
_ROWS_PER_WRITE = 4096


def pt_path(folder: Path, name: str) -> Path:
    """Return the path of the .pt file with the features of a slide."""
    return map_path(folder / PT_FOLDER, name).with_suffix(".pt")


def write_features(
    path: Path, patches: PatientPatches, features: "DiskArray", encoder: "Encoder"
) -> None:
    """Write the features of a slide in one atomic step.

    Args:
        path: File to write.
        patches: Patches of the slide.
        features: Features of each patch, shape (N, D), float32.
        encoder: Encoder that computed the features.
    """
    classifier = encoder.classifier
    mean, std = (x.flatten().tolist() for x in (classifier.mean, classifier.std))
    with atomic_hdf5(path) as file:
        file.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "complete": 0,
                "patient": patches.patient,
                "encoder": encoder.name,
                "input_px": classifier.input_px or patches.patch_px,
                "mean": mean,
                "std": std,
                "interpolation": classifier.interpolation,
                "provenance": json.dumps(provenance(**patches.provenance)),
            }
        )
        file["coords"] = patches.coords.astype(np.int64)
        file["coords"].attrs.update(coords_attributes(patches))
        dataset = file.create_dataset("features", features.shape, np.float32)
        attrs = {"name": patches.slide_name or patches.patient, "encoder": encoder.name}
        dataset.attrs.update({**attrs, "savetodir": str(path.parent)})
        for start in range(0, len(features), _ROWS_PER_WRITE):
            rows = slice(start, start + _ROWS_PER_WRITE)
            dataset[rows] = features[rows]


def write_pt(path: Path, features: "DiskArray") -> None:
    """Write the features of a slide as a tensor (N, D), in one atomic step."""
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(features[:]), buffer)
    write_bytes(path, buffer.getvalue())


def read_identity(path: Path) -> Mapping[str, Any] | None:
    """Return the entry "identity" of a file's provenance; None if there is no file.

    Raises:
        MapError: The file is not a complete file of features.
    """
    if not path.exists():
        return None
    identity = describe_features(path)["identity"]
    return identity if isinstance(identity, dict) else {}


def describe_features(path: Path) -> dict[str, Any]:
    """Return the sizes, the encoder and the "identity" of a file of features.

    Raises:
        MapError: The file is not a complete file of features.
    """
    try:
        with hdf5.open_hdf5(path) as file:
            attrs = hdf5.read_attributes(file)
            if attrs.get("format") != FORMAT or attrs.get("complete") != 1:
                raise ValueError("it has another format")
            features = hdf5.check_dataset(file, "features", DatasetSpec("f4", (None, None)))
            num_patches, num_features = features.shape
            coords = hdf5.check_dataset(file, "coords", DatasetSpec("i8", (num_patches, 2)))
            size = hdf5.read_attributes(coords)
        return {
            "patient": str(attrs["patient"]),
            "encoder": str(attrs["encoder"]),
            "patches": num_patches,
            "features": num_features,
            "patch_px": int(size["patch_size"]),
            "mpp": float(size["patch_spacing_um_px"]),
            "input_px": int(attrs["input_px"]),
            "identity": parse_json(attrs["provenance"])["identity"],
        }
    except hdf5.UNREADABLE as error:
        raise MapError(
            f"{path} is not a usable file of features ({first_line(error)}); --overwrite replaces "
            "it, another --out keeps it"
        ) from None

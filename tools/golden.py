"""Write the golden files of this version: small files of every format, and the numbers in them.

    python tools/golden.py

Run this script once for each released version, at its commit. It writes tests/golden/VERSION/. The
test tests/golden/test_golden.py checks that later versions read the same numbers from these files.
The golden files of a released version are never changed.

Both networks are in one archive. The convolutions of the first network are rounded to a few values,
and the second network has the same convolutions. Therefore the archive has only 200 kB.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsi_idc import __version__
from wsi_idc.cli.main import group
from wsi_idc.data.pack import COLUMNS, Pack
from wsi_idc.maps.cohort import read_cohort_h5
from wsi_idc.maps.map_reader import read_image, read_map
from wsi_idc.models.checkpoint import load_checkpoint

GOLDEN = Path(__file__).resolve().parents[1] / "tests/golden"
NETWORKS = "networks.tar.xz"
EXPECTED = "expected.json"
NUM_PATIENTS = 5
PATCHES_PER_CLASS = 4
ROUND_TO = 1.5  # step between rounded weights, in standard deviations of a convolution's weights
SLIDE_TIME = 1_700_000_000  # time of change of the slide file in s, a part of its fingerprint
SLIDE_BOX = (350, 275, 650, 525)  # part of the synthetic slide, in px of 4 um
SETTINGS = {
    "model": "cnn-bn",
    "weights": "start.pt",
    "freeze": 8,
    "epochs": 8,
    "batch_size": 8,
    "ema": 0.5,
    "learning_rate": 0.003,
    "split": "ratio:40/20/40",
}
TRAIN = (
    *("train", "--data", "pack.h5", "--out", "run", "--device", "cpu"),
    *(f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()),
)
ON_PACK = ("--data", "pack.h5", "--checkpoint", "run", "--device", "cpu")
MAP_SLIDE = (
    *("map", "--slide", "slide.jpg", "--mpp", "4", "--no-image"),
    *("--checkpoint", "run", "--device", "cpu"),
)
EVAL = ("eval", *ON_PACK, "--no-report", "--num-resamples", "200")
COMPARE = ("compare", "run/eval-test", "run/eval-test-tta", "--num-resamples", "200", "--json")


def map_patient(patient: str) -> tuple[str, ...]:
    """Return the command that makes the golden map of a patient."""
    return ("map", "--patient", patient, *ON_PACK, "--tta", "--smooth")


def command(*words: str) -> str:
    """Run a command of the program and return its standard output."""
    before, sys.argv = sys.argv, ["wsi-idc", *words]  # the provenance of files records sys.argv
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            group.main(list(words), prog_name="wsi-idc", standalone_mode=False)
    finally:
        sys.argv = before
    return out.getvalue()


def answer(*words: str) -> Any:
    """Run a command with ``--json`` and return its answer."""
    return json.loads(command(*words, "--json"))


def make_files() -> None:
    """Make every golden file in the working folder."""
    _make_pack()
    _make_run()
    _make_slide()
    patient = answer("info", "run")["patients_of"]["test"][0]
    command(*map_patient(patient))
    command(*MAP_SLIDE)
    command("report", "--out", "pages")
    command(*EVAL)
    command(*EVAL, "--tta")
    command("export", f"maps/{patient}.h5", "--format", "csv")


def _make_pack() -> None:
    command("synth", "tree", "--num-patients", str(NUM_PATIENTS), "--patches-per-patient", "40")
    for patient in sorted(Path("tree").iterdir()):
        first: dict[str, str] = {}
        for label in ("0", "1"):
            # Keep only patches of the top rows: a map with a small grid is a small file.
            paths = sorted((patient / label).iterdir(), key=lambda path: _corner(path.name)[::-1])
            for path in paths[PATCHES_PER_CLASS:]:
                path.unlink()
            first[label] = paths[0].name
        # Change one label per patient, so that not all probabilities are near 0 or 1.
        name = first["1"].replace("class1", "class0")
        (patient / "1" / first["1"]).rename(patient / "0" / name)
    command("prepare", "tree", "--out", "pack.h5")


def _corner(name: str) -> tuple[int, int]:
    """Return x and y from the file name of a patch."""
    _, _, x, y, _ = name.split("_")
    return int(x[1:]), int(y[1:])


def _make_run() -> None:
    settings = SETTINGS | {"epochs": 12, "freeze": 0, "weights": "none", "learning_rate": 0.001}
    flags = (f"--{name.replace('_', '-')}={value}" for name, value in settings.items())
    command("train", "--data", "pack.h5", "--out", "start", "--device", "cpu", *flags)
    content = torch.load("start/best.pt", weights_only=True)
    for name, value in content["state"].items():
        if value.ndim == 4:
            step = ROUND_TO * value.std()
            content["state"][name] = torch.round(value / step) * step
    torch.save(content, "start.pt")
    command(*TRAIN)
    config = {**SETTINGS, "data": "pack.h5", "out": "run"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
    Path("job.toml").write_text("\n".join(['command = "train"', "[config]", *lines, ""]))


def _make_slide() -> None:
    command("synth", "--slide", "slide.tif")
    with Image.open("slide.tif") as image:
        image.reduce(4).crop(SLIDE_BOX).save("slide.jpg", quality=85)
    os.utime("slide.jpg", (SLIDE_TIME, SLIDE_TIME))


def describe_files() -> dict[str, Any]:
    """Read the golden files in the working folder with this version; return values for JSON."""
    patient = answer("info", "run")["patients_of"]["test"][0]
    infos = ("pack.h5", "run", "run/best.pt", "slide.jpg", *_map_files(), "maps/cohort.h5")
    return {
        "patient": patient,
        "info": {name: answer("info", name) for name in infos},
        "arrays": {
            "pack.h5": _arrays(_pack_values()),
            "run/best.pt": _arrays(_tensors("run/best.pt")),
            "start.pt": _arrays(_tensors("start.pt")),
            **{name: _arrays(map_values(Path(name))) for name in _map_files()},
        },
        "checkpoint": _checkpoint(),
        "cohort": json.loads(read_cohort_h5(Path("maps/cohort.h5")).to_json(orient="records")),
        "compare": json.loads(command(*COMPARE)),
        "status": answer("status", "job.toml"),
        "predictions": predictions(),
    }


def _map_files() -> list[str]:
    return [str(path) for path in sorted(Path("maps").glob("*.h5")) if path.stem != "cohort"]


def _arrays(values: Mapping[str, NDArray | None]) -> dict[str, Any]:
    return {name: None if value is None else _summary(value) for name, value in values.items()}


def _summary(values: NDArray) -> dict[str, Any]:
    is_text = values.dtype.kind in "OUT"
    data = "\n".join(values).encode() if is_text else np.ascontiguousarray(values).tobytes()
    return {
        "type": "text" if is_text else values.dtype.str,
        "shape": list(values.shape),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _pack_values() -> dict[str, NDArray]:
    pack = Pack(Path("pack.h5"))
    columns = {name: pack.index[name].to_numpy() for name in ("patient", *COLUMNS)}
    return {
        "patches": pack.patches,
        "patients": np.array(pack.patients, object),
        "path": np.array(pack.paths(), object),
        "cells": pack.cells(),
        **{str(name): values for name, values in columns.items()},
    }


def map_values(path: Path) -> dict[str, NDArray | None]:
    """Return every array of a map."""
    content = read_map(path)
    slide, raw, smoothed = content.slide, content.probability, content.smoothed
    if content.unsmoothed is not None:
        # After version 0.1.0, the main probability of a map is the smoothed one.
        raw, smoothed = content.unsmoothed, content.probability
    return {
        "coords": content.coords,
        "row_col": content.row_col,
        "label": content.label,
        "logit": content.logit,
        "probability": raw,
        "uncertainty": content.uncertainty,
        "probability_smoothed": smoothed,
        "cam": content.cam,
        "probability_grid": content.grid(raw),
        "label_grid": content.label_grid(),
        "cam_mosaic": content.cam_mosaic(),
        "image": read_image(path),
        "thumbnail": None if slide is None else slide.thumbnail,
        "tissue": None if slide is None else slide.tissue,
    }


def _tensors(path: str) -> dict[str, NDArray]:
    return {name: value.numpy() for name, value in load_checkpoint(Path(path)).state.items()}


def _checkpoint() -> dict[str, Any]:
    found = load_checkpoint(Path("run/best.pt"))
    content = {
        "architecture": found.architecture,
        "input": asdict(found.input),
        "class_names": found.class_names,
        "cam_layer": found.cam_layer,
        "temperature": found.temperature,
        "threshold": found.threshold,
        "split": found.split,
        "split_spec": found.split_spec,
        "metrics": found.metrics,
        "provenance": found.provenance,
        "config": found.config,
        "inherited": found.inherited,
        "smoothing": None if found.smoothing is None else asdict(found.smoothing),
        "sha256": found.fingerprint,
    }
    restored: dict[str, Any] = json.loads(json.dumps(content))
    return restored


def predictions() -> list[dict[str, Any]]:
    """Return the prediction of the checkpoint for each patch of the pack."""
    command(*EVAL, "--split", "all", "--allow-seen", "--out", "all")
    with Path("all/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {"patient": row["patient"], "x": int(row["x"]), "y": int(row["y"])}
        | {"probability": float(row["probability"])}
        for row in rows
    ]


def unpack(golden: Path, work: Path) -> None:
    """Copy golden files into a new working folder, and unpack the networks.

    Git does not store the time of change of a file, so this function sets the time of the slide.
    """
    shutil.copytree(golden, work)
    with tarfile.open(work / NETWORKS) as archive:
        archive.extractall(work, filter="data")
    os.utime(work / "slide.jpg", (SLIDE_TIME, SLIDE_TIME))


def _keep(out: Path) -> None:
    """Copy the golden files from the working folder, without pictures and other large files."""
    patterns = ("pack.h5", "slide.jpg", "job.toml", "maps/*", "export/*", "run/*.json*")
    for pattern in (*patterns, "run/eval-test*/*"):
        for path in sorted(Path().glob(pattern)):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path)
    with tarfile.open(out / NETWORKS, "w:xz") as archive:
        for name in ("start.pt", "run/best.pt"):
            entry = tarfile.TarInfo(name)
            entry.size = Path(name).stat().st_size
            with Path(name).open("rb") as file:
                archive.addfile(entry, file)


def main() -> None:
    """Write the golden files of this version; exit with an error if they exist."""
    out = GOLDEN / __version__
    if out.exists():
        sys.exit(f"{out} exists; golden files of a released version are never rewritten")
    # A pack records the path of its patches, so the working folder must not name a user.
    work = Path(tempfile.gettempdir(), "golden")
    work.mkdir()
    try:
        with contextlib.chdir(work):
            make_files()
            out.mkdir(parents=True)
            _keep(out)
        unpack(out, work / "copy")
        with contextlib.chdir(work / "copy"):
            text = json.dumps(describe_files(), indent=1)
        (out / EXPECTED).write_text(text + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

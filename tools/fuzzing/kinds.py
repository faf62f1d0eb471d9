"""Kinds of files that the program reads: valid files, their mutations, functions that read them."""

import io
import json
import math
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fuzzing import formats, plain
from wsi_idc.cli.info import info
from wsi_idc.cli.job import open_job
from wsi_idc.core.errors import RunError
from wsi_idc.data.open_data import open_data
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_index import index_tree, open_patch_store
from wsi_idc.data.prepare import prepare
from wsi_idc.data.splits import make_split, read_patients, split_table
from wsi_idc.evaluation.compare import compare, read_predictions, write_comparison
from wsi_idc.evaluation.report import evaluate_into
from wsi_idc.export.export import ExportOptions, export_maps
from wsi_idc.inference.predictor import Predictor
from wsi_idc.jobs.status import status_of
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.cohort import read_cohort, read_cohort_h5
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.map_reader import map_paths, read_map, read_provenance
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_file import read_patient_file, write_patient_file
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.render.render import figure_of
from wsi_idc.report.report import build_report
from wsi_idc.runtime.device import select_device
from wsi_idc.search.config import read_search
from wsi_idc.slides.annotations import check_classes, class_table, read_annotations
from wsi_idc.slides.labels import annotation_mask, label_patches
from wsi_idc.slides.manifest import ManifestRow, read_manifest
from wsi_idc.slides.masks import read_mask
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tiling import SlideSettings
from wsi_idc.synthetic.cohort import write_cohort
from wsi_idc.synthetic.slide import write_slide
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run
from wsi_idc.training.train import train

_PICTURES_EVERY = 8  # only every eighth map is drawn, because drawing takes long
Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        files: Bytes of valid files, by name.
        mutate: Functions that mutate a file, by the name of the file.
        read: Function that reads the files in a folder, as the commands of the program do.
    """

    files: Mapping[str, bytes]
    mutate: Mapping[str, Mutate]
    read: Callable[[Path], object]


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Write valid files into ``folder``; return all kinds of files by name."""
    world = _World(folder)
    one = world.one
    return {
        "pack": one("a.h5", world.pack.path, formats.mutate_hdf5, world.read_pack),
        "map": one("P.h5", world.map, formats.mutate_hdf5, _read_map),
        "patient file": world.patient_file(),
        "cohort file": one("cohort.h5", world.cohort, formats.mutate_hdf5, _read_cohort),
        "checkpoint": one("a.pt", world.run.best, formats.mutate_pt, world.read_checkpoint),
        "job file": one("job.toml", _text(folder, _JOB), plain.mutate_toml, _read_job),
        "search file": one("s.toml", _text(folder, _SEARCH), plain.mutate_toml, _read_search),
        "split CSV": one("s.csv", world.split_csv(), plain.mutate_csv, world.read_split),
        "slide list": one("l.csv", _text(folder, _SLIDES), plain.mutate_csv, _read_manifest),
        "patient list": one(
            "p.txt", _text(folder, "1\n# 2\n3\n"), plain.mutate_csv, _read_patients
        ),
        "PNG patch": world.patch(),
        "TIFF slide": one("s.tif", world.tiff(), formats.mutate_tiff, world.read_slide),
        "mask PNG": world.mask(),
        "GeoJSON": one("a.json", _text(folder, _GEOJSON), plain.mutate_json, _read_annotations),
        "annotation XML": one("a.xml", _text(folder, _XML), plain.mutate_bytes, _read_annotations),
        "zip": one("t.zip", world.zip(), formats.mutate_zip, _read_tree),
        "run": world.a_run(),
        "evaluation": world.an_evaluation(),
    }


_JOB = """command = "train"
name = "all"
tasks = 1
[config]
epochs = 3
learning_rate = 0.1
split = "ratio:70/15/15"
freeze = 0
compile = false
[axes]
model = ["cnn", "cnn-bn"]
seed = [0, 1]
"""
_RING = [[10, 10], [90, 10], [90, 90.5], [10, 90], [10, 10]]
_HOLE = [[20, 20], [30, 20], [30, 30], [20, 20]]
_GEOJSON = json.dumps(
    {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": "1",
                "geometry": geometry,
                "properties": {
                    "objectType": "annotation",
                    "classification": {"names": ["Tumor", "IDC"], "color": [200, 0, 0]},
                },
            }
            for geometry in (
                {"type": "Polygon", "coordinates": [_RING, _HOLE]},
                {"type": "MultiPolygon", "coordinates": [[_RING], [_HOLE]]},
                {"type": "Point", "coordinates": [5, 6]},
            )
        ],
    }
)
_XML = "".join(
    (
        '<Annotations><Annotation Name="Tumor"><Attributes><Attribute Name="a" Value="b"/>',
        "</Attributes><Regions>",
        *(
            f'<Region Type="{kind}" NegativeROA="{negative}" Text="t"><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ring)
            + "</Vertices></Region>"
            for kind, negative, ring in ((0, 0, _RING), (2, 0, _RING), (1, 1, _HOLE))
        ),
        "</Regions></Annotation></Annotations>",
    )
)
_SEARCH = """command = "search"
name = "s"
tasks = 3
[config]
model = "cnn"
epochs = 10
weight_decay = 0.02
[search]
sampler = "random"
seed = 0
trials = 5
prune = false
metric = "auc"
[axes]
learning_rate = {low = 1e-4, high = 1e-2, log = true}
batch_size = {low = 16, high = 64, step = 16}
optimizer = ["adamw", "sgd"]
"""
_SLIDES = "slide,patient,mpp\na.svs,P1,0.25\nb.svs,P2,\nsub/c.tif,,0.5\n"


class _StopHereError(Exception):
    pass


class _World:
    """Synthetic cohort, and the files that the program makes from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        write_cohort(self.tree, num_patients=4, patches_per_patient=40, seed=3)
        self.pack = Pack(prepare(self.tree, folder / "pack" / "a.h5").pack)
        self.compute = select_device("cpu")
        self.config = TrainConfig(model="cnn", epochs=2, batch_size=32)
        self.split = make_split(self.pack, "ratio:50/25/25")
        self.run = Run(folder / "runs" / "a")
        self.checkpoint = self._train(self.run)
        self.method = Predictor((self.checkpoint,), smooth=True)
        self.maps = folder / "maps"
        self._builder(self.method, self.maps).build(PackSource(self.pack, self.pack.patients[:1]))
        self.map = self.maps / f"{self.pack.patients[0]}.h5"
        read_cohort(self.maps).write(self.maps)
        self.cohort = self.maps / "cohort.h5"

    def patient_file(self) -> Kind:
        folder = self.folder / "patient"
        write_map(folder / "P" / "s.h5", replace(read_map(self.map), patient="P", slide_name="s"))
        write_patient_file(folder / "P.h5")
        files = {name: (folder / name).read_bytes() for name in ("P.h5", "P/s.h5")}

        def read(folder: Path) -> None:
            read_patient_file(folder / "P.h5")
            _check_json(info, folder / "P.h5")
            map_paths(folder)
            write_patient_file(folder / "P.h5")

        return Kind(files, {"P.h5": formats.mutate_hdf5}, read)

    def one(self, name: str, good: Path, mutate: Mutate, read: Callable[[Path], object]) -> Kind:
        return Kind({name: good.read_bytes()}, {name: mutate}, lambda folder: read(folder / name))

    def _train(self, run: Run, **how: Any) -> Any:
        return train(self.config, self.pack, self.split, run=run, device_config=self.compute, **how)

    def _builder(self, method: Predictor, out: Path) -> MapBuilder:
        return MapBuilder(method, self.compute, out)

    def read_pack(self, path: Path) -> None:
        _check_json(info, path)
        pack = open_data(path)
        pack.paths(), pack.cells(), pack.patient_of, [pack.rows_of(one) for one in pack.patients]
        builder = self._builder(self.method, path.parent / "maps")
        report = builder.build(PackSource(pack, pack.patients[:1]))
        _raise_bad(report.failed)
        _strict_json(split_table(make_split(pack, "ratio:50/25/25"), pack).to_dict())

    def read_checkpoint(self, path: Path) -> None:
        _check_json(info, path)
        checkpoint = load_checkpoint(path)
        _strict_json(checkpoint.summary(), checkpoint.provenance, checkpoint.config)
        method = Predictor((checkpoint,), smooth=checkpoint.smoothing is not None)
        out = path.parent / "maps"
        patient = self.pack.patients[0]
        _raise_bad(self._builder(method, out).build(PackSource(self.pack, [patient])).failed)
        made = read_map(out / f"{patient}.h5")
        for values in (made.probability, made.unsmoothed):
            if values is not None and not ((values >= 0) & (values <= 1)).all():
                raise AssertionError("a map with invalid probabilities")

    def split_csv(self) -> Path:
        rows = "".join(f"{patient},{role}\n" for patient, role in self.split.roles.items())
        return _text(self.folder, f"patient,split\n{rows}")

    def read_split(self, path: Path) -> None:
        split_table(make_split(self.pack, str(path)), self.pack)

    def patch(self) -> Kind:
        paths = sorted(self.tree.rglob("*.png"))[:3]
        names = [str(path.relative_to(self.folder)) for path in paths]
        files = {name: (self.folder / name).read_bytes() for name in names}
        return Kind(files, {names[0]: formats.mutate_png}, _read_tree)

    def zip(self) -> Path:
        import zipfile

        out = self.folder / "t.zip"
        with zipfile.ZipFile(out, "w") as file:
            for path in sorted(self.tree.rglob("*.png"))[:5]:
                file.write(path, path.relative_to(self.folder))
        return out

    def tiff(self) -> Path:
        write_slide(self.folder / "s.tif", seed=1, width_px=1000, height_px=1000)
        return self.folder / "s.tif"

    def read_slide(self, path: Path) -> None:
        _check_json(info, path)
        builder = self._builder(self.method, path.parent / "maps")
        report = builder.build(SlideSource([ManifestRow(path, "P", None)], SlideSettings()))
        _raise_bad(report.failed)

    def mask(self) -> Kind:
        slide = self.folder / "s.tif"
        with open_slide(slide) as opened:
            thumbnail = opened.thumbnail(64)
        memory = io.BytesIO()
        Image.fromarray((thumbnail[..., 1] < 220).astype(np.uint8) * 255).save(memory, "PNG")

        def read(folder: Path) -> None:
            with open_slide(folder / "s.tif") as opened:
                read_mask(folder / "m.png", slide=opened)

        files = {"m.png": memory.getvalue(), "s.tif": slide.read_bytes()}
        return Kind(files, {"m.png": formats.mutate_png}, read)

    def a_run(self) -> Kind:
        stopped = Run(self.folder / "stopped")

        def stop(record: dict[str, Any]) -> None:
            raise _StopHereError

        with suppress(_StopHereError):
            self._train(stopped, on_epoch=stop)
        names = ("run.json", "last.pt", "best.pt", "metrics.jsonl")
        files = {f"runs/a/{name}": (stopped.folder / name).read_bytes() for name in names}
        mutate: dict[str, Mutate] = {
            "runs/a/run.json": plain.mutate_json,
            "runs/a/last.pt": plain.mutate_bytes,
            "runs/a/metrics.jsonl": plain.mutate_json,
        }
        return Kind(files, mutate, self.read_run)

    def read_run(self, folder: Path) -> None:
        run = Run(folder / "runs" / "a")
        (folder / "job.toml").write_text(f'command = "train"\n[config]\nout = "{run.folder}"\n')
        status_of(open_job(folder / "job.toml", []))
        run.read_history()
        run.is_finished()
        self._train(run)
        for line in (run.folder / "metrics.jsonl").read_text().splitlines():
            if not all(math.isfinite(v) for v in json.loads(line).values() if v is not None):
                raise AssertionError("a history with invalid numbers")

    def an_evaluation(self) -> Kind:
        out = self.folder / "eval"
        evaluate_into(
            out,
            self.method,
            self.pack,
            split="all",
            allow_seen=True,
            with_report=False,
            device_config=self.compute,
            batch_size=64,
            num_resamples=100,
            seed=0,
        )
        names = ("metrics.json", "predictions.csv")
        files = {name: (out / name).read_bytes() for name in names}
        mutate = {"metrics.json": plain.mutate_json, "predictions.csv": plain.mutate_csv}
        self.evaluated = read_predictions(out)

        def read(folder: Path) -> None:
            comparison = compare(read_predictions(folder), self.evaluated, num_resamples=100)
            write_comparison(comparison, folder / "out")
            _strict_json(comparison.as_dict())

        return Kind(files, mutate, read)


def _text(folder: Path, text: str) -> Path:
    path = folder / "text"
    path.write_text(text)
    return path


def _check_json(command: Any, path: Path) -> None:
    """Run a command with ``--json``; raise an error if its output is not valid JSON."""
    with redirect_stdout(io.StringIO()) as output:
        command.main(["--json", "-q", str(path)], standalone_mode=False)
    json.loads(output.getvalue(), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not valid in JSON")


def _strict_json(*values: Any) -> None:
    for value in values:
        json.dumps(value, allow_nan=False)


def _raise_bad(failed: Mapping[Any, str]) -> None:
    for reason in failed.values():
        raise RunError(reason)


def _read_tree(path: Path) -> None:
    with open_patch_store(path) as store:
        index_tree(store, patch_px=50)
    out = (path if path.is_dir() else path.parent) / "out" / "a.h5"
    report = prepare(path, out, num_workers=1)
    json.dumps(report.as_dict(), default=str)
    Pack(out).paths()


def _read_map(path: Path) -> None:
    read_provenance(path)
    _check_json(info, path)
    out = path.parent / "out"
    _raise_bad(build_report([path], out, tables=out).failed)
    _raise_bad(export_maps([path], out, ExportOptions(formats=("geojson", "csv"))).failed)
    for file in out.glob("*.geojson"):
        json.loads(file.read_text(), parse_constant=_refuse)
    if zlib.crc32(path.read_bytes()) % _PICTURES_EVERY == 0:
        _raise_bad(export_maps([path], out, ExportOptions(formats=("ome-tiff", "png"))).failed)
        figure_of(path, view="panels", dpi=40, threshold=None)


def _read_cohort(path: Path) -> None:
    table = read_cohort_h5(path)
    assert isinstance(table, pd.DataFrame)
    table.to_csv(index=False)


def _read_job(path: Path) -> None:
    job = open_job(path, [])
    for task in job.tasks:
        task.arguments()
    status_of(job)


def _read_search(path: Path) -> None:
    spec = read_search(path)
    json.dumps(spec.as_dict(), allow_nan=False)
    open_job(path, [])


def _read_annotations(path: Path) -> None:
    annotations = read_annotations(path, size=(100, 100))
    check_classes(annotations, class_table(), path)
    boxes = np.array([[0, 0, 50, 50], [25, 25, 75, 75]])
    label_patches(annotations, class_table(), boxes)
    annotation_mask(annotations, (20, 20), (0.2, 0.2))


def _read_manifest(path: Path) -> None:
    for row in read_manifest(path):
        row.slide.exists()


def _read_patients(path: Path) -> None:
    read_patients(path)

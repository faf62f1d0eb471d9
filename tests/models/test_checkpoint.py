import csv
import hashlib
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, load_tensors, save_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.models.classifier import to_images
from wsi_idc.models.registry import architecture

REPOSITORY = Path(__file__).parents[2]


def test_a_saved_checkpoint_is_read_unchanged_also_without_the_later_fields(
    trained: Checkpoint, tmp_path: Path
):
    path = tmp_path / "copy.pt"
    save_checkpoint(path, trained)
    copy = load_checkpoint(path)
    for name, value in trained.state.items():
        assert torch.equal(copy.state[name], value)
    assert replace(copy, state={}) == replace(trained, state={})
    content = torch.load(path, weights_only=True)
    later = ("inherited", "smoothing", "neighbors", "novelty")
    del content["input"]["interpolation"]
    torch.save({k: v for k, v in content.items() if k not in later}, path)
    old = load_checkpoint(path)
    assert old.input == trained.input and old.input.interpolation == "bilinear"
    assert (old.inherited, old.smoothing, old.neighbors, old.novelty) == ((), None, None, None)


def test_a_saved_novelty_model_is_read_unchanged_and_checked(trained: Checkpoint, tmp_path: Path):
    path = tmp_path / "copy.pt"
    save_checkpoint(path, trained)
    before, after = trained.novelty, load_checkpoint(path).novelty
    assert before is not None and after is not None
    for name in ("mean", "whitening", "quantiles"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    numbers = [(n.layer, n.patient_mean, n.patient_std) for n in (before, after)]
    assert numbers[0] == numbers[1]
    for change in (
        {"layer": "classifier"},
        {"mean": torch.zeros(3)},
        {"quantiles": torch.zeros(1).expand(2**40)},
        {"quantiles": torch.tensor([1.0, 0.0])},
        {"quantiles": torch.tensor([0.0, float("nan")])},
        {"patient_std": 2.0},
    ):
        save_checkpoint(path, replace(trained, novelty=replace(before, **change)))
        with pytest.raises(CheckpointError, match="damaged checkpoint"):
            load_checkpoint(path)
    # Tensors with a gradient or a negative bit are also usable.
    for quantiles in (torch.nn.Parameter(before.quantiles), torch._neg_view(-before.quantiles)):
        save_checkpoint(path, replace(trained, novelty=replace(before, quantiles=quantiles)))
        after = load_checkpoint(path).novelty
        assert after is not None
        distance = before.quantiles.numpy()
        assert np.array_equal(after.novelty(distance), before.novelty(distance))


def test_a_checkpoint_rebuilds_the_classifier(trained: Checkpoint):
    patches = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    first, second = trained.build(), trained.build()
    assert not first.training
    assert torch.equal(first(patches), second(patches))
    assert first.mean.flatten().tolist() == pytest.approx(trained.input.mean)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5"])
def test_a_network_of_torchvision_is_rebuilt(trained: Checkpoint, tmp_path: Path, name: str):
    arch = architecture(name)
    torch.manual_seed(2)
    network = arch.build(2).eval()
    checkpoint = replace(
        trained,
        architecture=arch.name,
        state=network.state_dict(),
        input=replace(trained.input, input_px=64),
        cam_layer=arch.cam_layer,
        novelty=None,
    )
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    before = torch.get_rng_state()
    classifier = load_checkpoint(tmp_path / "other.pt").build()
    assert torch.equal(torch.get_rng_state(), before)
    patches = torch.randint(256, (2, 50, 50, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(classifier.preprocess(to_images(patches)))
    logits, cam = logits_and_cam(classifier, patches)
    torch.testing.assert_close(logits, expected)
    assert cam.ndim == 3


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


SMOOTHING = {"sigma_um": 100.0, "temperature": 1.0, "threshold": 0.5}
NEIGHBORS = {"weights": [1.0] * 6, "bias": 0.0, "threshold": 0.5, "patch_um": 200.0}
OUT_OF_RANGE = "the temperature or the threshold is out of range"
DAMAGED = "damaged checkpoint"
INPUT = {"patch_px": 50, "mpp": 4.0, "input_px": None, "mean": (0.5,) * 3, "std": (0.2,) * 3}
IMPOSSIBLE_INPUTS: tuple[dict[str, object], ...] = (
    *({"mpp": "four"}, {"mpp": 1e-320}, {"mpp": 1e13}, {"mean": (0.5, 0.5)}, {"input_px": 0}),
    *({"std": (0.0, 1.0, 1.0)}, {"mean": (float("nan"), 0.5, 0.5)}, {"input_px": 10**6}),
    *({"patch_px": 10**9}, {"mean": (1e30, 0.5, 0.5)}, {"interpolation": "nearest"}),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a wsi-idc-checkpoint file"),
        ({"schema_version": 99}, "version 99, but this program reads versions 1 and 2"),
        ({"architecture": "vgg"}, "unknown model 'vgg'"),
        ({"architecture": "cnn"}, "do not fit cnn"),
        ({"architecture": "regnet_y_128gf"}, "cam_layer is '.*' instead of '"),
        ({"cam_layer": "nothing"}, "cam_layer is 'nothing' instead of '"),
        ({"state": {}}, "do not fit cnn-bn"),
        ({"class_names": ["one"]}, "1 classes instead of 2"),
        ({"temperature": "warm"}, DAMAGED),
        *(({"temperature": value}, OUT_OF_RANGE) for value in (0.0, 1e-320, 1e13)),
        ({"threshold": float("nan")}, OUT_OF_RANGE),
        ({"smoothing": SMOOTHING | {"sigma_um": -1.0}}, "out of range"),
        ({"smoothing": SMOOTHING | {"temperature": 1e-320}}, "out of range"),
        ({"smoothing": SMOOTHING | {"sigma_um": 1e13}}, "1e\\+13 um is too wide"),
        ({"smoothing": {"sigma_um": 100.0}}, DAMAGED),
        ({"neighbors": NEIGHBORS | {"patch_um": 1e9}}, "for patches of another size"),
        ({"neighbors": NEIGHBORS | {"weights": [1.0] * 7}}, "needs 6 finite weights"),
        ({"encoder": {"weights": "imagenet"}}, DAMAGED),
        ({"encoder": {"weights": "a", "sha256": "b", "licence": None}}, "do not fit cnn-bn"),
        ({"split": None}, DAMAGED),
        ({"split": {"S0001": "trein"}}, "a patient has the unknown role 'trein'"),
        ({"metrics": {"auc": torch.zeros(1)}}, DAMAGED),
        ({"metrics": {"val": {"auc": float("nan")}}}, DAMAGED),
        ({"config": {"epochs": float("inf")}}, DAMAGED),
        ({"input": {}}, DAMAGED),
        *(({"input": INPUT | change}, DAMAGED) for change in IMPOSSIBLE_INPUTS),
        (lambda bias: bias * float("nan"), "not a finite number"),
        (lambda bias: torch.zeros(1).expand(2**40), "do not fit"),
        (lambda bias: bias[None], "do not fit"),
        (lambda bias: torch.empty(bias.shape, device="meta"), DAMAGED),
        (lambda bias: bias.to_sparse(), DAMAGED),
        (lambda bias: bias.to(torch.complex64), DAMAGED),
        (lambda bias: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8), DAMAGED),
        (lambda bias: bias.tolist(), DAMAGED),
    ],
)
def test_an_impossible_field_or_weight_is_refused(
    trained: Checkpoint, tmp_path: Path, changes: Any, message: str
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates quantized tensors
        if callable(changes):
            name = "classifier.bias"
            changes = {"state": {**trained.state, name: changes(trained.state[name])}}
        save_checkpoint(tmp_path / "best.pt", trained)
        content = torch.load(tmp_path / "best.pt", weights_only=True)
        torch.save(content | changes, tmp_path / "wrong.pt")
        assert_refused(tmp_path / "wrong.pt", message)


def test_a_file_of_another_kind_is_refused(trained: Checkpoint, tmp_path: Path):
    save_checkpoint(tmp_path / "best.pt", trained)
    data = (tmp_path / "best.pt").read_bytes()
    cut = [data[: int(len(data) * part)] for part in (0.1, 0.5, 0.99)]
    path = tmp_path / "other.pt"
    for content in (b"", b"hello\n", b"PK\x03\x04", b"\x80\x02K\x01.", *cut):
        path.write_bytes(content)
        assert_refused(path, r"other.pt: not a readable checkpoint \(BadZipFile\); give a .pt file")
    torch.save([1, 2], path)
    assert_refused(path, "not a wsi-idc-checkpoint")
    assert_refused(tmp_path / "none.pt", "none.pt: no such file; give a .pt file")
    assert_refused(tmp_path, "is a folder; give a .pt file")


@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_a_file_that_never_ends_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "best.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 10**12)
    reason = r"larger than 20000 MB" if kind == "endless" else "not a regular file"
    assert_refused(path, rf"best.pt: cannot be read \({reason}\); give a .pt file")
    with pytest.raises(CheckpointError, match=reason):
        load_tensors(path, remedy="x")


def test_a_checkpoint_that_inflates_is_refused(trained: Checkpoint, tmp_path: Path):
    save_checkpoint(tmp_path / "best.pt", trained)
    path = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "best.pt") as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, bytes(10**7) if name.endswith("/data/0") else source.read(name))
    assert path.stat().st_size < 10**7
    assert_refused(path, "its members claim more bytes than the file has")


def test_too_little_memory_is_not_a_damaged_checkpoint(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path / "best.pt", trained)
    reason = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    for error in (MemoryError(), RuntimeError(reason)):
        with monkeypatch.context() as context:
            context.setattr(torch, "load", Mock(side_effect=error))
            with pytest.raises(MemoryError):
                load_checkpoint(tmp_path / "best.pt")


def test_the_file_check_needs_no_torch():
    code = (
        "import sys; from pathlib import Path; from wsi_idc.models.checkpoint_files import *\n"
        "check_checkpoint_file(bundled_checkpoint())\n"
        "try: check_checkpoint_file(Path('none.pt'))\n"
        "except Exception as error: print(error, 'torch' in sys.modules)\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert printed == "none.pt: no such file; give a .pt file that wsi-idc train wrote False"


def test_the_fingerprint_is_that_of_the_bytes_that_were_read(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "best.pt"
    save_checkpoint(path, trained)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    load = torch.load

    def load_and_replace(*arguments: Any, **options: Any) -> object:
        content = load(*arguments, **options)
        path.write_bytes(b"the file of another process")
        return content

    monkeypatch.setattr(torch, "load", load_and_replace)
    assert load_checkpoint(path).fingerprint == expected


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "wsi-idc-checkpoint", "state": _Bomb()}, "bomb.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(_Bomb()))
    for name in ("bomb.pt", "pickle.pt"):
        assert_refused(Path(name), "not a readable checkpoint")
    assert not Path("exploded").exists()


def test_the_bundled_model_is_small_and_loads():
    assert bundled_checkpoint().stat().st_size < 25_000_000
    bundled = load_checkpoint(bundled_checkpoint())
    assert bundled.architecture == "mobilenet-v2-s16"
    assert bundled.neighbors is not None
    rows = csv.DictReader((REPOSITORY / "jobs/bundled/all.csv").read_text().splitlines())
    assert bundled.split == {row["patient"]: row["split"] for row in rows}

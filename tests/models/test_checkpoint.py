import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.models.classifier import to_images
from wsi_idc.models.registry import architecture


def test_a_checkpoint_comes_back_as_it_was(trained: Checkpoint, tmp_path: Path):
    path = tmp_path / "copy.pt"
    save_checkpoint(path, trained)
    copy = load_checkpoint(path)
    for name, value in trained.state.items():
        assert torch.equal(copy.state[name], value)
    assert replace(copy, state={}) == replace(trained, state={})
    assert copy.fingerprint is not None
    assert len(copy.fingerprint) == 64


def test_a_checkpoint_alone_rebuilds_the_classifier(trained: Checkpoint):
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


def write(path: Path, trained: Checkpoint, **changes: object) -> Path:
    save_checkpoint(path, trained)
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "other"}, "not a wsi-idc-checkpoint file"),
        ({"smoothing": {"sigma_um": -1.0, "temperature": 1.0, "threshold": 0.5}}, "out of range"),
        ({"smoothing": {"sigma_um": 100.0}}, "damaged checkpoint"),
        ({"schema_version": 99}, "version 99, this program reads 1"),
        ({"architecture": "vgg"}, "unknown model 'vgg'"),
        ({"architecture": "cnn"}, "do not fit cnn"),
        ({"temperature": "warm"}, "damaged checkpoint"),
        ({"input": {}}, "damaged checkpoint"),
        ({"split": None}, "damaged checkpoint"),
        ({"state": {}}, "do not fit cnn-bn"),
        ({"temperature": 0.0}, "temperature or threshold out of range"),
        ({"threshold": float("nan")}, "temperature or threshold out of range"),
        ({"class_names": ["one"]}, "1 classes, not 2"),
        ({"cam_layer": "nothing"}, "no CAM is taken from the layer 'nothing'"),
        ({"metrics": {"auc": torch.zeros(1)}}, "damaged checkpoint"),
        ({"metrics": {"val": {"auc": float("nan")}}}, "damaged checkpoint"),
        ({"config": {"epochs": float("inf")}}, "damaged checkpoint"),
        ({"temperature": 1e-320}, "temperature or threshold out of range"),
        ({"temperature": 1e13}, "temperature or threshold out of range"),
        ({"smoothing": {"sigma_um": 1e13, "temperature": 1.0, "threshold": 0.5}}, "reaches 1e"),
        ({"smoothing": {"sigma_um": 1.0, "temperature": 1e-320, "threshold": 0.5}}, "of range"),
        ({"split": {"S0001": "trein"}}, "no patient has the role 'trein'"),
        ({"architecture": "regnet_y_128gf"}, "no CAM is taken from the layer"),
    ],
)
def test_a_wrong_content_is_named(
    trained: Checkpoint, tmp_path: Path, changes: dict[str, object], reason: str
):
    path = write(tmp_path / "wrong.pt", trained, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *({"mpp": "four"}, {"mpp": 1e-320}, {"mpp": 1e13}, {"mean": (0.5, 0.5)}, {"input_px": 0}),
        *({"std": (0.0, 1.0, 1.0)}, {"mean": (float("nan"), 0.5, 0.5)}, {"input_px": 10**6}),
        *({"patch_px": 10**9}, {"mean": (1e30, 0.5, 0.5)}),
    ],
)
def test_an_input_that_makes_no_sense_is_refused(
    trained: Checkpoint, tmp_path: Path, change: dict[str, object]
):
    path = write(tmp_path / "wrong.pt", trained, input=asdict(trained.input) | change)
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(trained: Checkpoint, tmp_path: Path):
    state = dict(trained.state) | {"classifier.bias": torch.tensor([float("nan"), 0.0])}
    path = write(tmp_path / "nan.pt", trained, state=state)
    with pytest.raises(CheckpointError, match="not a finite number"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "forge",
    [
        lambda value: torch.zeros(1).expand(2**40),
        lambda value: torch.empty(value.shape, device="meta"),
        lambda value: value.to_sparse(),
        lambda value: value.to(torch.complex64),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda value: value.tolist(),
        lambda value: value[None],
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(
    trained: Checkpoint, tmp_path: Path, forge: Callable[[torch.Tensor], object]
):
    bias = trained.state["classifier.bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give quantised tensors up
        state = dict(trained.state) | {"classifier.bias": forge(bias)}
        path = write(tmp_path / "forged.pt", trained, state=state)
        with pytest.raises(CheckpointError, match=r"damaged checkpoint|do not fit") as caught:
            load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_list_is_no_checkpoint(tmp_path: Path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a wsi-idc-checkpoint"):
        load_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", b"\x80\x02K\x01."])
def test_any_other_file_is_refused_in_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "text.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cut_short_is_refused(trained: Checkpoint, tmp_path: Path):
    path = tmp_path / "cut.pt"
    save_checkpoint(path, trained)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_the_fingerprint_is_that_of_the_bytes_that_were_read(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "best.pt"
    save_checkpoint(path, trained)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    load = torch.load

    def replace_meanwhile(*arguments: object, **options: object) -> object:
        content = load(*arguments, **options)
        path.write_bytes(b"another one's")
        return content

    monkeypatch.setattr(torch, "load", replace_meanwhile)
    assert load_checkpoint(path).fingerprint == expected


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "wsi-idc-checkpoint", "state": _Bomb()}, "bomb.pt")
    Path("plain.pt").write_bytes(pickle.dumps(_Bomb()))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(Path(name))
    assert not Path("exploded").exists()


def test_missing_files_and_folders_are_told_apart(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_the_bundled_model_is_small_and_loads():
    assert bundled_checkpoint().stat().st_size < 25_000_000
    bundled = load_checkpoint(bundled_checkpoint())
    assert bundled.architecture == "mobilenet_v2"
    assert bundled.patients("train").isdisjoint(bundled.patients("val", "test"))

import copy
import hashlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint, find_weights
from wsi_idc.models.pretrained import (
    cached_imagenet,
    fetch_imagenet,
    load_imagenet,
    load_weights_file,
    weights_file,
)
from wsi_idc.models.registry import architecture
from wsi_idc.training.config import TrainConfig, weights_fingerprint


def random_state(name: str, *, num_classes: int = 1000) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return architecture(name).build(num_classes).state_dict()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


def assert_all_but_the_head_set(
    network: nn.Module, weights: dict[str, Tensor], before: dict[str, Tensor], head: str
) -> None:
    for name, value in network.state_dict().items():
        expected = before if name.startswith(f"{head}.") else weights
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mnasnet0_5"])
def test_cached_weights_set_all_but_the_head(name: str):
    arch, weights = architecture(name), random_state(name)
    write(weights_file(arch), weights)
    assert cached_imagenet() == [name]
    network = arch.build(2)
    before = copy.deepcopy(network.state_dict())
    assert load_imagenet(network, arch) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert_all_but_the_head_set(network, weights, before, arch.head)


def test_weights_with_auxiliary_heads_have_their_own_normalization():
    arch, weights = architecture("googlenet"), random_state("googlenet")
    auxiliary = {"aux1.fc1.weight": torch.zeros(3), "aux2.conv.bn.bias": torch.ones(1)}
    write(weights_file(arch), weights | auxiliary)
    network = arch.build(2)
    assert load_imagenet(network, arch) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(network.conv1.conv.weight, weights["conv1.conv.weight"])


def test_a_densenet_file_may_have_old_names():
    arch, weights = architecture("densenet121"), random_state("densenet121")
    old = {}
    for name, value in weights.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    write(weights_file(arch), old)
    network = arch.build(2)
    load_imagenet(network, arch)
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(network.state_dict()[name], weights[name])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cnn", None, "cnn has no ImageNet weights"),
        ("resnet50", None, r"not on this machine \({home}/.*/resnet50-11ad3fa6.pth\); run `wsi"),
        ("mobilenet_v3_small", None, r"/mobilenet_v3_small-047dcff4.pth\); run `wsi-idc fetch-wei"),
        *(
            ("resnet18", content, "delete it and run `wsi-idc fetch-weights resnet18`")
            for content in (b"", b"not weights", b"PK\x03\x04 broken zip")
        ),
        ("resnet50", "resnet18", "not weights of resnet50"),
    ],
)
def test_unusable_cached_weights_are_refused(name: str, content: bytes | str | None, message: str):
    arch = architecture(name)
    if content is not None:
        write(weights_file(arch), random_state(content) if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=message.format(home=Path.home() / ".cache")):
        load_imagenet(arch.build(2), arch)


def test_weights_are_fetched_once_and_a_damaged_copy_again(tmp_path: Path):
    source = tmp_path / f"small-{hashlib.sha256(b'the weights').hexdigest()[:8]}.pth"
    source.write_bytes(b"the weights")
    imagenet: Any = SimpleNamespace(url=source.as_uri())
    arch = replace(architecture("resnet18"), imagenet=imagenet)
    file = fetch_imagenet(arch)
    assert file == weights_file(arch) and file.read_bytes() == b"the weights"
    written = file.stat().st_mtime_ns
    assert fetch_imagenet(arch).stat().st_mtime_ns == written
    file.write_bytes(b"cut")
    assert fetch_imagenet(arch).read_bytes() == b"the weights"
    file.unlink()
    message = f"could not fetch {source.as_uri()} .*; download it with another program to {file}"
    for change in (lambda: source.write_bytes(b"something else"), source.unlink):
        change()
        with pytest.raises(CheckpointError, match=message):
            fetch_imagenet(arch)
        assert not file.exists()
    with pytest.raises(CheckpointError, match="has no ImageNet weights"):
        fetch_imagenet(architecture("cnn"))


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        OrderedDict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {name: value.double() for name, value in state.items()},
    ],
)
def test_a_state_dict_sets_all_but_the_head(tmp_path: Path, wrap: Any):
    arch, weights = architecture("squeezenet1_1"), random_state("squeezenet1_1", num_classes=10)
    torch.save(wrap(weights), tmp_path / "weights.pth")
    network = arch.build(2)
    before = copy.deepcopy(network.state_dict())
    assert load_weights_file(network, arch, tmp_path / "weights.pth") is None
    assert_all_but_the_head_set(network, weights, before, arch.head)


def test_bundled_names_the_bundled_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_weights(Path("bundled")) == bundled_checkpoint()
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "best.pt").touch()
    assert find_weights(Path("bundled")) == Path("bundled/best.pt")


def test_a_folder_has_a_file_of_weights(tmp_path: Path):
    arch = architecture("resnet18")
    state, network = random_state("resnet18"), arch.build(2)
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors, pytorch"):
        load_weights_file(network, arch, tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    load_weights_file(network, arch, tmp_path)
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    config = TrainConfig(model="resnet18", weights=str(tmp_path))
    of_file = replace(config, weights=str(tmp_path / "pytorch_model.bin"))
    assert weights_fingerprint(config) == weights_fingerprint(of_file)


def test_a_checkpoint_also_gives_its_head_and_its_normalization(
    trained: Checkpoint, tmp_path: Path
):
    save_checkpoint(tmp_path / "best.pt", trained)
    arch, other = architecture("cnn-bn"), architecture("cnn")
    network = arch.build(2)
    normalization = load_weights_file(network, arch, tmp_path / "best.pt")
    assert normalization == (trained.input.mean, trained.input.std)
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.state[name])
    with pytest.raises(CheckpointError, match=r"a checkpoint of cnn-bn; give .* of cnn$"):
        load_weights_file(other.build(2), other, tmp_path / "best.pt")


STATE = random_state("squeezenet1_1")
STEM = "features.0.weight"
NO_STATE_DICT = "not a state dict of weights"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], NO_STATE_DICT),
        ({}, NO_STATE_DICT),
        ({"format": "wsi-idc-training-state", "network": STATE}, NO_STATE_DICT),
        ({"epoch": 3}, NO_STATE_DICT),
        ({STEM: torch.zeros(2).to_sparse()}, NO_STATE_DICT),
        (
            random_state("mobilenet_v3_small"),
            r"not weights of squeezenet1_1: no features.0.weight, no features.0.bias, .* "
            r"and \d+ more; give a checkpoint or a state dict of squeezenet1_1",
        ),
        ({k: v for k, v in STATE.items() if k != STEM}, f"squeezenet1_1: no {STEM};"),
        (STATE | {"extra.bias": torch.ones(2)}, "unknown extra.bias;"),
        (STATE | {STEM: torch.ones(2, 3)}, f"{STEM} 2x3 instead of 64x3x3x3;"),
        (STATE | {STEM: STATE[STEM] * float("nan")}, "a weight is not a finite number"),
        ({"state_dict": Path("code")}, "not a readable checkpoint"),
        (b"hello", "not a readable checkpoint"),
        (None, "weights.pth: no such file"),
        ("folder", "is a folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_an_unusable_file_is_refused_and_changes_nothing(
    tmp_path: Path, content: Any, message: str
):
    arch, path = architecture("squeezenet1_1"), tmp_path / "weights.pth"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        write(path, content)
    network = arch.build(2)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights_file(network, arch, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

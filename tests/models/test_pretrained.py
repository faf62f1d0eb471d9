import hashlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.models.pretrained import (
    fetch_imagenet,
    load_imagenet,
    load_weights_file,
    weights_file,
)
from wsi_idc.models.registry import Architecture, architecture


def random_state(name: str, *, num_classes: int = 1000) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return architecture(name).build(num_classes).state_dict()


def put_in_cache(arch: Architecture, state: dict[str, Tensor]) -> None:
    weights_file(arch).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, weights_file(arch))


def assert_taken_but_for_the_head(
    found: dict[str, Tensor], given: dict[str, Tensor], before: dict[str, Tensor], head: str
) -> None:
    for name, value in found.items():
        expected = before if name.startswith(f"{head}.") else given
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mnasnet0_5"])
def test_weights_from_the_cache_fill_all_but_the_head(name: str):
    arch, given = architecture(name), random_state(name)
    put_in_cache(arch, given)
    network = arch.build(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scale = load_imagenet(network, arch)
    assert scale == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert_taken_but_for_the_head(network.state_dict(), given, before, arch.head)


def test_a_file_with_auxiliary_heads_and_its_own_scale():
    arch, given = architecture("googlenet"), random_state("googlenet")
    put_in_cache(
        arch, given | {"aux1.fc1.weight": torch.zeros(3), "aux2.conv.bn.bias": torch.ones(1)}
    )
    network = arch.build(2)
    assert load_imagenet(network, arch) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(network.conv1.conv.weight, given["conv1.conv.weight"])


def test_a_densenet_with_the_names_of_old():
    arch, given = architecture("densenet121"), random_state("densenet121")
    old = {}
    for name, value in given.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    put_in_cache(arch, old)
    network = arch.build(2)
    load_imagenet(network, arch)
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(network.state_dict()[name], given[name])


def test_missing_weights_name_the_file_and_the_command():
    for name, file in {
        "resnet50": "resnet50-11ad3fa6.pth",
        "mobilenet_v3_small": "mobilenet_v3_small-047dcff4.pth",
    }.items():
        arch = architecture(name)
        with pytest.raises(CheckpointError) as caught:
            load_imagenet(arch.build(2), arch)
        assert str(Path.home() / ".cache" / "torch" / "hub" / "checkpoints" / file) in str(
            caught.value
        )
        assert f"`wsi-idc fetch-weights {name}`" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken zip"])
def test_damaged_weights_are_refused(content: bytes):
    arch = architecture("resnet18")
    weights_file(arch).parent.mkdir(parents=True)
    weights_file(arch).write_bytes(content)
    with pytest.raises(CheckpointError, match="delete it and run `wsi-idc fetch-weights resnet18`"):
        load_imagenet(arch.build(2), arch)


def test_weights_of_another_model_in_the_cache_are_refused():
    small, large = architecture("resnet18"), architecture("resnet50")
    put_in_cache(large, random_state("resnet18"))
    with pytest.raises(CheckpointError, match="not weights of resnet50"):
        load_imagenet(large.build(2), large)
    assert not weights_file(small).exists()


def test_a_model_from_scratch_has_nothing_to_load_or_fetch():
    arch = architecture("cnn")
    for refused in (fetch_imagenet, lambda arch: load_imagenet(arch.build(2), arch)):
        with pytest.raises(CheckpointError, match="trained from scratch"):
            refused(arch)


@pytest.fixture
def served(tmp_path: Path) -> tuple[Architecture, bytes]:
    """Return an architecture whose weights are at a file:// address, and their bytes."""
    content = b"the weights"
    file = tmp_path / f"small-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    imagenet: Any = SimpleNamespace(url=file.as_uri())
    return replace(architecture("resnet18"), imagenet=imagenet), content


def test_weights_are_fetched_once_and_a_damaged_copy_anew(served: tuple[Architecture, bytes]):
    arch, content = served
    file = fetch_imagenet(arch)
    assert file == weights_file(arch)
    assert file.read_bytes() == content
    written = file.stat().st_mtime_ns
    assert fetch_imagenet(arch).stat().st_mtime_ns == written
    file.write_bytes(b"cut")
    assert fetch_imagenet(arch).read_bytes() == content


def test_a_failed_download_names_address_and_file(served: tuple[Architecture, bytes]):
    arch, _ = served
    url = arch.imagenet.url
    Path(url.removeprefix("file://")).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="could not fetch") as caught:
        fetch_imagenet(arch)
    assert url in str(caught.value)
    assert str(weights_file(arch)) in str(caught.value)
    assert not weights_file(arch).exists()
    Path(url.removeprefix("file://")).unlink()
    with pytest.raises(CheckpointError, match="could not fetch"):
        fetch_imagenet(arch)


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
def test_a_state_dict_fills_all_but_the_head(tmp_path: Path, wrap: Any):
    arch, given = architecture("squeezenet1_1"), random_state("squeezenet1_1", num_classes=10)
    torch.save(wrap(given), tmp_path / "weights.pth")
    network = arch.build(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert load_weights_file(network, arch, tmp_path / "weights.pth") is None
    assert_taken_but_for_the_head(network.state_dict(), given, before, arch.head)


def test_a_checkpoint_gives_its_head_and_its_scale_too(trained: Checkpoint, tmp_path: Path):
    save_checkpoint(tmp_path / "best.pt", trained)
    arch = architecture("cnn-bn")
    network = arch.build(2)
    scale = load_weights_file(network, arch, tmp_path / "best.pt")
    assert scale == (trained.input.mean, trained.input.std)
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.state[name])


def test_a_checkpoint_of_another_model_is_refused(trained: Checkpoint, tmp_path: Path):
    save_checkpoint(tmp_path / "best.pt", trained)
    arch = architecture("cnn")
    with pytest.raises(CheckpointError, match=r"a checkpoint of cnn-bn; give .* of cnn$"):
        load_weights_file(arch.build(2), arch, tmp_path / "best.pt")


STATE = random_state("squeezenet1_1")
STEM = "features.0.weight"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "not a state dict of weights"),
        ({}, "not a state dict of weights"),
        ({"format": "wsi-idc-training-state", "network": STATE}, "not a state dict of weights"),
        ({"epoch": 3}, "not a state dict of weights"),
        pytest.param(
            {STEM: torch.zeros(2).to_sparse()},
            "not a state dict of weights",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
        ),
        (
            random_state("mobilenet_v3_small"),
            r"not weights of squeezenet1_1: no features.0.weight, no features.0.bias, .* "
            r"and \d+ more; give a checkpoint or a state dict of squeezenet1_1",
        ),
        ({k: v for k, v in STATE.items() if k != STEM}, f"squeezenet1_1: no {STEM};"),
        (STATE | {"extra.bias": torch.ones(2)}, "unknown extra.bias;"),
        (STATE | {STEM: torch.ones(2, 3)}, f"{STEM} 2x3 instead of 64x3x3x3;"),
        (STATE | {STEM: STATE[STEM] * float("nan")}, "a weight is not a finite number"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: object, reason: str):
    torch.save(content, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth", reason)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    assert_refused(tmp_path / "none.pth", "none.pth: no such file")
    assert_refused(tmp_path, "is a folder")
    (tmp_path / "text.pth").write_text("hello")
    assert_refused(tmp_path / "text.pth", "not a readable checkpoint")
    torch.save({"state_dict": Path("code")}, tmp_path / "code.pth")
    assert_refused(tmp_path / "code.pth", "not a readable checkpoint")


def assert_refused(path: Path, reason: str) -> None:
    arch = architecture("squeezenet1_1")
    network = arch.build(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_weights_file(network, arch, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

"""Checkpoints of linear probes that contain only the head, and the weights of their encoders."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.packs import make_small_cohort
from tests.training.test_probe import PROBE, fit
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from wsi_idc.models.encoder_source import WEIGHTS_ENV, EncoderSource
from wsi_idc.models.pretrained import check_storable, weights_file
from wsi_idc.models.registry import architecture

NAME = "shufflenet_v2_x0_5"
PUBLISHED = replace(PROBE, model=NAME, weights="imagenet", input_size=64)
HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Return a pack in a folder of the test, which also has the cache of the features."""
    return make_small_cohort(tmp_path / "small.h5")


def write_weights(path: Path, *, seed: int = 3) -> Path:
    """Write random weights in the layout of the published ones."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(architecture(NAME).build(1000).state_dict(), path)
    return path


@pytest.fixture
def published() -> Path:
    """Write random weights into torchvision's cache."""
    return write_weights(weights_file(architecture(NAME)))


def assert_equal(first: Checkpoint, second: Checkpoint) -> None:
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_the_file_has_the_head_and_names_the_published_weights(
    pack: Pack, tmp_path: Path, published: Path
):
    checkpoint, path = fit(pack, tmp_path / "a", PUBLISHED), tmp_path / "a" / "best.pt"
    content = torch.load(path, weights_only=True)
    assert content["schema_version"] == 2
    assert content["state"].keys() == HEAD
    assert content["encoder"] == asdict(checkpoint.encoder)
    assert (checkpoint.encoder.weights, checkpoint.encoder.licence) == ("imagenet", "bsd-3-clause")
    stem = "conv1.0.weight"
    weights = torch.load(published, weights_only=True)
    assert torch.equal(load_checkpoint(path).state[stem], weights[stem])
    # The encoder is not necessary to describe the file.
    published.rename(tmp_path / "elsewhere.pth")
    assert read_checkpoint(path).state.keys() == HEAD
    assert_refused(
        path,
        rf"best\.pt contains only the head: ImageNet weights of {NAME} are not on this machine "
        rf"\({published}\); run `wsi-idc fetch-weights {NAME}` on a machine with internet access$",
    )
    write_weights(published, seed=4)
    assert_refused(path, f"needs weights of {NAME} with the SHA-256 [0-9a-f]{{12}}, but those of")


def test_weights_of_a_file_are_found_where_they_were_beside_the_checkpoint_or_as_given(
    pack: Pack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recorded = write_weights(tmp_path / "weights" / "net.pth")
    monkeypatch.chdir(tmp_path)
    checkpoint = fit(pack, tmp_path / "a", replace(PUBLISHED, weights="weights/net.pth"))
    assert checkpoint.encoder.weights == str(recorded)
    path = tmp_path / "a" / "best.pt"
    moved = recorded.rename(path.parent / "net.pth")
    assert_equal(load_checkpoint(path), checkpoint)
    moved = moved.rename(tmp_path / "net.pth")
    assert_refused(path, rf"the weights of its encoder are in none of {recorded}, {path.parent}")
    for given in (moved, tmp_path):
        monkeypatch.setenv(WEIGHTS_ENV, str(given))
        assert_equal(load_checkpoint(path), checkpoint)
    other = write_weights(tmp_path / "other.pth", seed=4)
    monkeypatch.setenv(WEIGHTS_ENV, str(other))
    assert_refused(path, rf"those of {other} have [0-9a-f]{{12}}; set {WEIGHTS_ENV} to the file")
    monkeypatch.setenv(WEIGHTS_ENV, str(path))  # a file that names itself
    assert_refused(path, "not a state dict of weights")


def test_all_weights_are_stored_on_request_also_later(pack: Pack, tmp_path: Path, published: Path):
    first = fit(pack, tmp_path / "a", PUBLISHED)
    direct = fit(pack, tmp_path / "b", PUBLISHED, store_encoder=True)
    later = fit(pack, tmp_path / "a", PUBLISHED, store_encoder=True)
    published.unlink()
    for checkpoint, run in ((direct, "b"), (later, "a")):
        assert checkpoint.encoder is None
        assert_equal(load_checkpoint(tmp_path / run / "best.pt"), first)
    assert torch.load(tmp_path / "a" / "best.pt", weights_only=True)["schema_version"] == 1
    # The weights stay.
    assert fit(pack, tmp_path / "a", PUBLISHED).encoder is None


def test_weights_are_stored_only_if_their_licence_permits_it(caplog: pytest.LogCaptureFixture):
    for licence in ("apache-2.0", "MIT", "cc-by-nc-4.0"):
        check_storable(EncoderSource("imagenet", "", licence), "timm:a")
    assert not caplog.text
    for licence, text in (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), (None, "not known")):
        with pytest.raises(CheckpointError, match=rf"the licence of timm:a \({text}\) is not kn"):
            check_storable(EncoderSource("imagenet", "", licence), "timm:a")
    caplog.set_level(logging.WARNING)
    check_storable(EncoderSource("/a/net.pth", ""), "timm:a")
    assert "contains the weights of /a/net.pth: read their licence" in caplog.text


def test_weights_of_a_checkpoint_are_stored_unless_it_has_a_source_itself(
    pack: Pack, tmp_path: Path, published: Path
):
    first = fit(pack, tmp_path / "a", PUBLISHED)
    of_head = replace(PUBLISHED, weights=str(tmp_path / "a" / "best.pt"))
    second = fit(pack, tmp_path / "b", of_head)
    assert second.encoder == first.encoder
    save_checkpoint(tmp_path / "all.pt", replace(first, encoder=None))
    third = fit(pack, tmp_path / "c", replace(PUBLISHED, weights=str(tmp_path / "all.pt")))
    assert third.encoder is None
    assert_equal(third, second)

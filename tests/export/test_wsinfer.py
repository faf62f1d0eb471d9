import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from wsi_idc.core.errors import CheckpointError
from wsi_idc.export import wsinfer
from wsi_idc.export.wsinfer import write_wsinfer, wsinfer_config
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.models.registry import architecture
from wsi_idc.synthetic.tissue import draw_slide

TRANSFORMS = {name: getattr(transforms, name) for name in ("Resize", "ToTensor", "Normalize")}


def checkpoint_of(name: str = "bundled", input_px: int | None = None, **changes: Any) -> Checkpoint:
    """Return the bundled checkpoint, or one of another architecture with random weights."""
    bundled = load_checkpoint(bundled_checkpoint())
    if name != "bundled":
        torch.manual_seed(0)
        arch = architecture(name)
        state = arch.build(2).state_dict()
        changes |= {"architecture": name, "state": state, "cam_layer": arch.cam_layer}
    return replace(bundled, input=replace(bundled.input, input_px=input_px), **changes)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model folder of the bundled checkpoint."""
    folder = tmp_path_factory.mktemp("bundled")
    write_wsinfer(checkpoint_of(), folder)
    return folder


def load(folder: Path) -> torch.jit.ScriptModule:
    """Read the model as WSInfer does."""
    with wsinfer._quiet():
        return torch.jit.load(folder / "torchscript_model.pt", map_location="cpu")


@pytest.mark.parametrize(
    ("name", "input_px", "tolerance"),
    # Pillow rounds a resized px to a whole number; without resizing nothing differs.
    [
        *(("bundled", None, 1e-5), ("bundled", 100, 0.1)),
        *(("resnet18", 128, 0.02), ("mobilenet_v3_small", 64, 0.02)),
    ],
)
def test_torchscript_and_transform_give_calibrated_logits(
    name: str, input_px: int | None, tolerance: float, tmp_path: Path
):
    patches = np.random.default_rng(3).integers(0, 256, (7, 50, 50, 3), dtype=np.uint8)
    checkpoint = checkpoint_of(name, input_px)
    write_wsinfer(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    transform = transforms.Compose(
        [TRANSFORMS[item["name"]](**item.get("arguments", {})) for item in config["transform"]]
    )
    transformed = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
    model, classifier = load(tmp_path), checkpoint.build()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for num in (1, 2, 7):
            images = torch.from_numpy(patches[:num]).permute(0, 3, 1, 2).float() / 255
            expected = classifier(images) / checkpoint.temperature
            logits = model(classifier.preprocess(images))
            assert logits.shape == (num, 2)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(transformed), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "input_px", "tolerance"),
    [
        *(("bundled", 96, 0.02), ("resnet18", 128, 0.02), ("resnet18", None, 0.02)),
        ("bundled", 32, 0.1),  # at a third of its size, rounded pixels matter more to this network
    ],
)
def test_patches_of_level_0_give_the_probabilities_of_a_map(
    name: str, input_px: int | None, tolerance: float
):
    """WSInfer cuts patches from level 0 and then applies every transform in order."""
    checkpoint = checkpoint_of(name, input_px)
    steps = wsinfer_config(checkpoint)["transform"]
    transform = transforms.Compose([TRANSFORMS[s["name"]](**s.get("arguments", {})) for s in steps])
    # A px of the model has 8 x 8 level-0 px, and the tissue has details of 1 px.
    level0 = draw_slide("S1", seed=1, height_px=1600, width_px=2000).rgb
    level0 = level0.reshape(4, 400, 5, 400, 3).swapaxes(1, 2).reshape(-1, 400, 400, 3)
    patches = [cv2.resize(patch, (50, 50), interpolation=cv2.INTER_AREA) for patch in level0]
    classifier = checkpoint.build()
    with torch.no_grad():
        mapped = classifier(torch.from_numpy(np.stack(patches)))
        images = torch.stack([transform(Image.fromarray(patch)) for patch in level0])
        logits = classifier.network(images)
    probability, expected = (torch.softmax(x, 1)[:, 1] for x in (logits, mapped))
    assert (probability - expected).abs().max() < tolerance


@pytest.mark.parametrize(("name", "input_px"), [("bundled", 50), ("resnet18", 224)])
def test_config_follows_the_schema_of_wsinfer(name: str, input_px: int):
    """Check the rules of model-config.schema.json of wsinfer-zoo."""
    checkpoint = checkpoint_of(name, input_px)
    spec, config = checkpoint.input, json.loads(json.dumps(wsinfer_config(checkpoint)))
    assert config == {
        "spec_version": "1.0",
        "architecture": checkpoint.architecture,
        "num_classes": 2,
        "class_names": ["non-IDC", "IDC"],
        "patch_size_pixels": 50,
        "spacing_um_px": 4.0,
        # QuPath resizes to an integer and normalizes by lists.
        "transform": [
            {"name": "Resize", "arguments": {"size": 50, "interpolation": 4}},
            # QuPath applies only the size of the last Resize.
            *([{"name": "Resize", "arguments": {"size": 224}}] if input_px == 224 else []),
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(spec.mean), "std": list(spec.std)}},
        ],
    }
    types = {"num_classes": int, "patch_size_pixels": int, "spacing_um_px": float}
    assert {name: type(config[name]) for name in types} == types


def test_config_has_bicubic_interpolation():
    checkpoint = checkpoint_of("resnet18", 224)
    checkpoint = replace(checkpoint, input=replace(checkpoint.input, interpolation="bicubic"))
    steps = wsinfer_config(checkpoint)["transform"]
    assert steps[1] == {"name": "Resize", "arguments": {"size": 224, "interpolation": 3}}
    patch = torch.rand(3, 50, 50, generator=torch.Generator().manual_seed(0))
    resized = transforms.Resize(**steps[1]["arguments"])(patch)
    classifier = checkpoint.build()
    values = classifier.preprocess(patch[None])[0] * classifier.std[0] + classifier.mean[0]
    torch.testing.assert_close(values, resized, rtol=0, atol=1e-5)


def test_weights_move_with_the_model(bundled: Path):
    """WSInfer reads on the CPU and then moves the model; frozen weights would stay behind."""
    model, network = load(bundled), checkpoint_of().build()
    counts = [sum(p.numel() for p in module.parameters()) for module in (model, network)]
    assert counts[0] == counts[1]
    # A type stands in for a device, because not every machine has a second device.
    with torch.no_grad():
        assert model.to(torch.float64)(torch.zeros(1, 3, 50, 50).double()).dtype == torch.float64


def test_torchscript_has_no_paths_of_this_machine(bundled: Path):
    with zipfile.ZipFile(bundled / "torchscript_model.pt") as file:
        for name in file.namelist():
            assert str(Path(torch.__file__).parent).encode() not in file.read(name)


def test_card_describes_the_model(tmp_path: Path):
    names = ("<b>", "`x`\n# y")
    odd = checkpoint_of(class_names=names, temperature=0.8669, threshold=0.3221)
    files = write_wsinfer(odd, tmp_path)
    assert [file.name for file in files] == ["torchscript_model.pt", "config.json", "README.md"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    card = (tmp_path / "README.md").read_text()
    assert "50 x 50 px at 4 um/px (200 um wide)" in card
    assert "temperature (0.8669, chosen" in card
    assert "**Threshold**: 0.3221 is" in card
    assert "at which a patch is called `?x??# y`" in card
    assert "Research use only" in card


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"threshold_by": "f1"}, " for the largest F1."),
        ({"threshold_by": "youden"}, " for the largest Youden index."),
        ({"threshold_by": "f1", "target_sensitivity": 0.95}, " for a sensitivity of 0.95."),
        ({}, ". WSInfer"),
        ({"threshold_by": ["`"]}, ". WSInfer"),
    ],
)
def test_card_names_the_rule_of_the_threshold(config: dict, rule: str):
    card = wsinfer._card(checkpoint_of(config=config))
    assert f"chosen on val patients{rule}" in " ".join(card.split())


def test_network_changed_by_torchscript_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    wrong = io.BytesIO()
    with wsinfer._quiet():
        other = torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 50, 50))
        torch.jit.save(other, wrong)
    monkeypatch.setattr(wsinfer, "_without_paths", lambda data: wrong.getvalue())
    with pytest.raises((CheckpointError, RuntimeError)):
        write_wsinfer(checkpoint_of(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_classes_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="both classes have the same name"):
        write_wsinfer(checkpoint_of(class_names=("a", "a")), tmp_path)

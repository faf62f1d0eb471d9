"""Networks of timm: their feature maps and CAMs, and their weights on a stand-in of the hub."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor

from tests.classifiers import make_classifier, random_patches
from wsi_idc.core.errors import CheckpointError
from wsi_idc.inference.forward import can_compile
from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.pretrained import load_weights_file
from wsi_idc.models.registry import architecture

timm = pytest.importorskip("timm", reason="timm is not installed")

# Name, side of an image, side of the CAM, and whether the CAM has a closed form.
NETWORKS = [
    ("timm:resnet18", 128, 4, True),
    ("timm:efficientnet_b0", 128, 4, True),
    ("timm:convnext_atto", 128, 4, False),
    ("timm:vit_tiny_patch16_224", 96, 6, False),  # class token
    ("timm:vit_small_patch14_reg4_dinov2", 56, 4, False),  # registers
    ("timm:vit_medium_patch16_gap_240", 96, 6, False),  # mean of the tokens
    ("timm:swin_tiny_patch4_window7_224", 224, 7, True),
    ("timm:levit_128s", 224, 4, False),  # two heads, of which one is used
    ("timm:deit_tiny_distilled_patch16_224", 96, 6, False),
]
REFUSED = {
    "timm:coat_tiny": "has no single feature map",
    "timm:crossvit_9_240": "has several heads",
    "timm:pit_ti_224": "classifies its class token, and has no list of blocks",
    "timm:tnt_s_patch16_224": "the last block does not take one grid of tokens",
    "timm:convnext_nan": "timm has no model 'convnext_nan'; did you mean convnext_nano",
    "timm:?": r"timm has no model '\?'; see timm.list_models\(\)",
}
# For building networks. An hour is enough for all networks of timm.
SECONDS = float(os.environ.get("WSI_IDC_TIMM_SECONDS", "20"))
DOCS = Path(__file__).parents[2] / "docs"


def slow_cam(classifier: PatchClassifier, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits and the Grad-CAM of one image with autograd through the whole network."""
    kept: list[Tensor] = []
    feature_map = classifier.network.get_submodule("feature_map")
    with (
        feature_map.register_forward_hook(lambda *call: kept.append(call[-1])),
        torch.enable_grad(),
    ):
        images = classifier.preprocess(image).requires_grad_()
        logits = classifier.network(images)
        (gradient,) = torch.autograd.grad(logits[0, 1], kept[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return logits[0].detach(), torch.relu((weights * kept[0]).sum(dim=1))[0].detach()


@pytest.mark.parametrize(("name", "input_px", "side", "closed_form"), NETWORKS)
def test_cams_equal_those_of_the_slow_way(name: str, input_px: int, side: int, closed_form: bool):
    classifier, patches = make_classifier(name, input_px=input_px), random_patches(3)
    assert classifier.arch.closed_form == closed_form
    head = classifier.network.get_submodule(classifier.arch.head)
    torch.nn.init.normal_(head.weight, std=0.3)
    logits, cam = logits_and_cam(classifier, patches)
    assert cam.shape == (3, side, side)
    with torch.no_grad():  # the feature map changes nothing
        encoder = classifier.network.encoder
        if classifier.network.head is not None:
            encoder.head_dist = encoder.head
        plain = encoder(classifier.preprocess(patches))
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-4)
    for index in range(3):
        slow_logits, expected = slow_cam(classifier, patches[index : index + 1])
        torch.testing.assert_close(logits[index], slow_logits, atol=1e-5, rtol=1e-4)
        tolerance = 1e-4 * float(expected.max()) + 1e-12
        torch.testing.assert_close(cam[index], expected, atol=tolerance, rtol=0)


def test_a_network_of_timm_is_not_compiled():
    assert not can_compile(make_classifier("timm:resnet18", input_px=64), None)
    assert can_compile(make_classifier("resnet18", input_px=64), None)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_without_a_feature_map_is_refused(name: str):
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        architecture(name)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(SECONDS + 120)
def test_networks_are_supported_or_refused_as_in_the_table():
    """Compare one network of each family, then all others, until the time is over."""
    page = (DOCS / "timm-models.md").read_text()
    with (DOCS / "timm-models.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    is_same_version = f"timm {timm.__version__} has" in page
    assert not is_same_version or table.keys() == set(timm.list_models())
    families = {timm.models._registry._model_to_module[name]: name for name in timm.list_models()}
    end, num_supported, reasons = time.monotonic() + SECONDS, 0, []
    for name in dict.fromkeys([*families.values(), *timm.list_models()]):
        if time.monotonic() > end:
            break
        reason = ""
        try:
            arch = architecture(f"timm:{name}")
        except CheckpointError as error:
            reasons.append(str(error))
            reason = str(error).removeprefix(f"timm:{name}").lstrip(": ")
        else:
            assert arch.input_px and arch.cam_layer == "feature_map"
            num_supported += 1
        if is_same_version:
            assert reason == table[name]["reason"], name
            assert reason or table[name]["input_px"] == str(arch.input_px), name
    assert all(reason.startswith("timm:") and "\n" not in reason for reason in reasons)
    assert num_supported > 3 * len(reasons)


def test_a_network_that_does_not_take_its_usual_input_size_is_refused():
    name = "timm:vit_so400m_patch14_siglip_384"
    with pytest.raises(CheckpointError, match=r"does not take its usual input size: Input height"):
        architecture(name)


def test_a_second_head_for_distillation_is_left_out(tmp_path: Path):
    source = timm.create_model("levit_128s", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "levit.pth")
    classifier = make_classifier("timm:levit_128s", input_px=224)
    load_weights_file(classifier.network, classifier.arch, tmp_path / "levit.pth")
    own = classifier.network.encoder
    assert torch.equal(own.head.bn.weight, source.head.bn.weight)
    assert not any("dist" in name for name in classifier.network.state_dict())
    # With two equal heads, the mean of the logits is that of a single head.
    patches = random_patches(2)
    with torch.no_grad():
        logits = classifier(patches)
        own.head_dist = own.head
        torch.testing.assert_close(logits, own(classifier.preprocess(patches)))


def test_weights_of_timm_and_of_efficientnet_pytorch_are_read(tmp_path: Path):
    source = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    state = {name: torch.rand_like(value.float()) for name, value in source.state_dict().items()}
    source.load_state_dict(state)
    arch = architecture("timm:tf_efficientnet_lite0")
    # The names of the package efficientnet-pytorch, in the same order.
    fixed = {"conv_stem": "_conv_stem", "conv_head": "_conv_head", "classifier": "_fc"}
    renamed = {
        f"{fixed.get(name.split('.')[0], '_' + str(index))}.{name.split('.')[-1]}": value
        for index, (name, value) in enumerate(state.items())
    }
    for number, content in enumerate((state, {"state_dict": state}, renamed)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        network = arch.build(2)
        assert load_weights_file(network, arch, path) is None
        for name, value in network.encoder.state_dict().items():
            if not name.startswith("classifier."):
                assert torch.equal(value.float(), state[name].to(value.dtype).float()), name
    from safetensors.torch import save_file

    safe = tmp_path / "a.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, safe)
    network = arch.build(2)
    load_weights_file(network, arch, safe)
    assert torch.equal(network.encoder.conv_stem.weight, state["conv_stem.weight"])
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: not a readable checkpoint"):
        load_weights_file(network, arch, tmp_path / "b.safetensors")


def hub_cache(folder: Path, repository: str, **options: str) -> dict[str, str]:
    """Write a repository with a small transformer in the layout of the hub's cache.

    Return the environment of a process that uses this cache.
    """
    from safetensors.torch import save_file

    cache = folder / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 48}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    torch.nn.init.constant_(model.pos_embed, 0.25)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": args | options,
        "pretrained_cfg": {
            **{"input_size": [3, 48, 48], "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]},
            **{"num_classes": 0, "classifier": "head", "first_conv": "patch_embed.proj"},
        },
    }
    (snapshot / "config.json").write_text(json.dumps(config))
    return {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def run(*arguments: str, environment: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Run wsi-idc in a new process; return its exit code, output and last line of errors."""
    done = subprocess.run(
        [sys.executable, "-m", "wsi_idc", *arguments],
        **{"capture_output": True, "text": True, "cwd": folder, "env": environment},
    )
    return done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]


@pytest.mark.slow
def test_an_encoder_in_the_cache_of_the_hub_is_trained_and_mapped(small, tmp_path: Path):
    environment = hub_cache(tmp_path, "me/tiny")
    train = ("train", "--model", "hf-hub:me/tiny", "--data", str(small.path))
    options = ("--split", "ratio:50/25/25", "--freeze", "all")
    code, _, error = run(*train, *options, environment=environment, folder=tmp_path)
    assert code == 0, error
    (run_folder,) = (tmp_path / "runs").glob("hf-hub-me-tiny-*")
    record = json.loads((run_folder / "run.json").read_text())
    assert "hf-hub:me/tiny" in json.dumps(record)
    content = torch.load(run_folder / "best.pt", weights_only=True)
    assert content["state"].keys() == {"encoder.head.weight", "encoder.head.bias"}
    mapped = ("map", "--patient", small.patients[0], "--data", str(small.path))
    code, _, error = run(*mapped, environment=environment, folder=tmp_path)
    assert code == 0, error
    (snapshot,) = (tmp_path / "hub").glob("*/snapshots/*")
    (snapshot / "model.safetensors").unlink()
    code, _, error = run(*mapped, "--overwrite", environment=environment, folder=tmp_path)
    assert code == 1
    assert "best.pt contains only the head: the files of hf-hub:me/tiny are not on this" in error
    # Elsewhere, the configuration of the checkpoint is missing.
    absent = {**environment, "HF_HOME": str(tmp_path / "empty")}
    code, _, error = run(*mapped, "--overwrite", environment=absent, folder=tmp_path)
    assert code == 1
    assert "run `wsi-idc fetch-weights hf-hub:me/tiny` on a machine with internet" in error


def test_an_encoder_without_pooling_is_refused(small, tmp_path: Path):
    environment = hub_cache(tmp_path, "me/tokens", global_pool="")
    train = ("train", "--model", "hf-hub:me/tokens", "--data", str(small.path))
    options = ("--split", "ratio:50/25/25")
    code, _, error = run(*train, *options, environment=environment, folder=tmp_path)
    assert code == 1
    assert "hf-hub:me/tokens does not pool its features, so it has no logits" in error


@pytest.fixture
def gated_hub() -> Iterator[str]:
    """Serve a hub on this machine that refuses every file; yield its address."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusal)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_gated_repository_is_one_clear_line(gated_hub: str, tmp_path: Path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": gated_hub}
    environment |= {"HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "wsi_idc", "fetch-weights", "hf-hub:org/gated"],
        **{"capture_output": True, "text": True, "cwd": tmp_path, "env": environment},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: hf-hub:org/gated is gated: request access at https://huggingface.co/org/gated, log "
        "in with `hf auth login`, and run `wsi-idc fetch-weights hf-hub:org/gated` again"
    )
    assert "hf_secret" not in done.stdout + done.stderr


def test_without_timm_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "wsi_idc.models.timm_models")
    with pytest.raises(CheckpointError, match="need the package timm; run pip install timm"):
        architecture("timm:resnet18")


def test_a_new_last_layer_starts_with_small_logits():
    classifier = make_classifier("timm:tf_efficientnet_lite0", input_px=64).eval()
    with torch.no_grad():
        logits = classifier(random_patches(4))
    assert classifier.head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert logits.abs().max() < 2

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli.commands import RunCommand
from tests.packs import make_small_cohort
from wsi_idc.cli.train import _result_lines
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.registry import architecture
from wsi_idc.training.runs import Run


@pytest.mark.parametrize(("ece", "is_stated"), [(0.02, False), (0.04, True)])
def test_a_temperature_that_makes_the_ece_worse_is_stated(
    trained: Checkpoint, ece: float, is_stated: bool
):
    val = {**trained.metrics["val"], "ece": ece, "ece_uncalibrated": 0.03}
    metrics = {**trained.metrics, "val": val}
    checkpoint = replace(trained, temperature=0.8, metrics=metrics)
    lines = _result_lines(Run(Path("runs/a")), checkpoint, was_finished=False)
    text = re.sub(" +", " ", " ".join(lines))
    assert f"(ECE on val 0.030 -> {ece:.3f}" in text
    assert (", worse: a temperature minimizes the cross-entropy" in text) == is_stated
    assert f"; at the threshold {trained.threshold:.3f}: f1 " in text
    uncalibrated = replace(checkpoint, temperature=1.0)
    lines = _result_lines(Run(Path("runs/a")), uncalibrated, was_finished=False)
    assert f"1.000 (ECE on val {ece:.3f}; the fitted temperature increases the ECE)" in re.sub(
        " +", " ", " ".join(lines)
    )


def test_a_probe_is_mapped_described_and_exported_and_its_missing_encoder_is_named(
    tmp_path: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    pack = make_small_cohort(tmp_path / "small.h5")
    torch.save(architecture("shufflenet_v2_x0_5").build(1000).state_dict(), "net.pth")
    options = ("--split", "ratio:50/25/25", "--data", "small.h5", "--device", "cpu")
    network = ("--model", "shufflenet_v2_x0_5", "--input-size", "64", "--weights", "net.pth")
    assert command("train", *network, "--freeze", "all", "--out", "runs/a", *options).code == 0
    mapped = ("map", pack.patients[0], "--data", "small.h5", "--device", "cpu")
    assert command(*mapped).code == 0
    result = command("export", "--format", "wsinfer", "--checkpoint", "runs/a", "--out", "model")
    assert result.code == 0, result.err
    assert "contains the weights of shufflenet_v2_x0_5: read their licence" in result.err
    assert "only the last layer was trained" in Path("model/README.md").read_text()
    Path("net.pth").rename("moved.pth")
    result = command("info", "runs/a", "--json")
    assert json.loads(result.out)["encoder"]["weights"] == str(tmp_path / "net.pth")
    result = command(*mapped, "--overwrite")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        "Error: runs/a/best.pt contains only the head: the weights of its encoder are in none of "
    )
    assert Path("maps", f"{pack.patients[0]}.h5").exists()

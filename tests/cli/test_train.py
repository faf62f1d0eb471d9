import re
from dataclasses import replace
from pathlib import Path

import pytest

from wsi_idc.cli.train import _result_lines
from wsi_idc.models.checkpoint import Checkpoint
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

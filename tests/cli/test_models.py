import json

import pytest

from tests.cli.commands import RunCommand
from wsi_idc.models.registry import MODEL_NAMES


def test_the_usual_networks_are_listed(command: RunCommand):
    lines = command("models").out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *MODEL_NAMES]
    assert lines[2].split() == ["cnn-bn", "0.66", "M", "50", "px", "6", "x", "6", "none", "-"]
    assert "224 px" in lines[5]
    assert max(map(len, lines)) <= 80


def test_networks_of_timm_are_listed_or_refused_with_the_reason(command: RunCommand):
    pytest.importorskip("timm", reason="timm is not installed")
    result = command("models", "coat_lite_mi*")
    assert (result.code, result.out) == (0, "")
    assert "not supported: timm:coat_lite_mini classifies its class token" in result.err
    error = command("models", "timm:coat_lite_mini").error
    assert error.startswith("Error: timm:coat_lite_mini classifies its class token")
    (tagged,) = json.loads(command("models", "timm:test_vit.r160_in1k", "--json").out)["models"]
    assert tagged["name"] == "timm:test_vit.r160_in1k"
    record = json.loads(command("models", "timm:test_vit", "--json").out)
    (model,) = record["models"]
    assert (model["name"], model["input_px"], model["cam_rows"]) == ("timm:test_vit", 160, 10)
    assert (model["weights"], model["licence"]) == ("fetch-weights", "apache-2.0")
    assert command("models", "no-such*").error == (
        "Error: 0 names of timm match 'no-such*'; give a pattern of 1 to 40 names, such as "
        "'convnext_*'"
    )
    assert command("models", "*").error.startswith("Error: 1")

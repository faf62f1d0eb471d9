"""A map imports only the packages that it needs: each further one makes its start slower."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import Checkpoint

# Packages that a map uses. This list may not grow.
NEEDED = "click, cv2, h5py, numpy, pandas, PIL, scipy.ndimage, shapely, torch, tqdm"
# The packages that the needed ones import, too.
IMPORTED = f"import json, sys, {NEEDED}; print(json.dumps([*sys.modules]))"
MAPPED = """
import json, sys
from wsi_idc.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([*sys.modules]))
"""


def modules(code: str, *arguments: str) -> set[str]:
    """Return the modules that a new process has imported when the code has run."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_map_imports_only_what_it_needs(
    is_trained: bool, cohort: Pack, trained: Checkpoint, tmp_path: Path
):
    checkpoint = str(trained.source) if is_trained else "bundled"
    options = ["--data", str(cohort.path), "--all", "--out", str(tmp_path)]
    mapped = modules(MAPPED, "map", *options, "--checkpoint", checkpoint)
    assert (tmp_path / "cohort.csv").exists()
    needed, own = modules(IMPORTED), {"wsi_idc", "__main__"}
    packages, allowed = ({name.split(".")[0] for name in names} for names in (mapped, needed))
    assert packages - allowed - own - sys.stdlib_module_names == set()
    slow = ["torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "sklearn", "scipy.stats"]
    assert mapped.isdisjoint(slow)


RESNET = """
import json, sys
from wsi_idc.models.cam_layers import default_cam_layer
from wsi_idc.models.registry import architecture
arch = architecture("resnet18")
arch.build(2)
default_cam_layer(arch, 224)
print(json.dumps([*sys.modules]))
"""


def test_torchvision_is_imported_without_the_compiler():
    names = modules(RESNET)
    assert "torchvision" in names
    assert names.isdisjoint(["torch._dynamo", "torch._inductor", "sympy"])


COMPILER = """
import json, sys
from wsi_idc.models.light_torchvision import import_torchvision
import_torchvision()
import torch
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.zeros(1, 2)).shape == (1, 2)
print(json.dumps([*sys.modules]))
"""


def test_the_compiler_can_be_used_after_the_import_of_torchvision():
    assert "torch._dynamo.utils" in modules(COMPILER)


REPLACED = """
import json, sys
from wsi_idc.models import light_torchvision
sys.modules["torch._dynamo.utils"] = light_torchvision._light_module()
from torch._dynamo.utils import counters, is_compile_supported
assert is_compile_supported("cpu") in (True, False)
assert counters is sys.modules["torch._dynamo.utils"].counters
print(json.dumps([*sys.modules]))
"""


def test_another_function_of_the_compiler_imports_it():
    assert "torch._dynamo.utils" in modules(REPLACED)

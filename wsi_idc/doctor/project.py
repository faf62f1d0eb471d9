"""Checks of the project: training data, ImageNet weights and runs."""

import os
from collections.abc import Iterator
from pathlib import Path

from wsi_idc.core.constants import DEFAULT_RUNS, SHORT_SHA
from wsi_idc.core.errors import DataError, RunError
from wsi_idc.core.text import count_patches
from wsi_idc.data.open_data import default_data, find_pack, find_patch_tree
from wsi_idc.data.patch_index import has_patches
from wsi_idc.data.patch_store import FolderStore
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.models.pretrained import cached_imagenet, imagenet_folder
from wsi_idc.training.runs import default_checkpoint

_HOW = "make a pack with wsi-idc prepare TREE, or give --data"


def data(data_path: Path | None) -> Iterator[CheckResult]:
    """Report the data of the project. A patch tree or a zip file is reported but not packed."""
    path = data_path or default_data()
    if data_path is None and not path.exists():
        # A wrong path in WSI_IDC_DATA is a problem. Without this variable, the project may be new
        # and have no data yet.
        state = PROBLEM if os.environ.get("WSI_IDC_DATA") else NOTE
        yield CheckResult("data", f"none at {path}", state, _HOW)
        return
    try:
        pack = find_pack(path)
        tree = find_patch_tree(path) if pack is None and path.is_dir() else path
    except DataError as error:
        yield CheckResult("data", "cannot be used", PROBLEM, str(error))
        return
    if pack is not None:
        size, info = count_patches(len(pack), len(pack.patients)), pack.info
        text = f"{pack.path}, {size}, {info.patch_px} px at {info.mpp:g} um/px"
        yield CheckResult("data", text)
        yield CheckResult("data fingerprint", info.source_fingerprint[:SHORT_SHA])
    elif tree.is_dir() and not has_patches(FolderStore(tree)):
        yield CheckResult("data", f"{tree} holds neither a pack nor patches", PROBLEM, _HOW)
    else:
        kind = "a patch tree" if tree.is_dir() else "a zip"
        yield CheckResult("data", f"{tree}, {kind}; the first command that reads it makes a pack")


def weights() -> Iterator[CheckResult]:
    """Report the ImageNet weights on this machine; a training can start from these weights."""
    if names := cached_imagenet():
        yield CheckResult("ImageNet weights", f"{', '.join(names)} in {imagenet_folder()}")
    else:
        advice = "run wsi-idc fetch-weights resnet50 on a machine with internet"
        yield CheckResult("ImageNet weights", f"none in {imagenet_folder()}", NOTE, advice)


def runs() -> Iterator[CheckResult]:
    """Report the checkpoint that commands use by default."""
    try:
        default = default_checkpoint(DEFAULT_RUNS)
    except RunError as error:
        yield CheckResult("default checkpoint", str(error), PROBLEM, "choose one with wsi-idc use")
        return
    size = (default or bundled_checkpoint()).stat().st_size / 1e6
    yield CheckResult("default checkpoint", f"{default or 'the bundled model'}, {size:.1f} MB")

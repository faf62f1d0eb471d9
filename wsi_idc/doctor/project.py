"""What there is to work on and with: data, weights, runs."""

import os
from collections.abc import Iterator
from pathlib import Path

from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import DataError
from wsi_idc.data.open_data import default_data, find_pack, find_patch_tree
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_index import has_patches
from wsi_idc.data.patch_store import FolderStore
from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.models.pretrained import cached_imagenet, imagenet_folder
from wsi_idc.training.runs import newest_finished


def data(given: Path | None) -> Iterator[CheckResult]:
    """Find the data without packing them."""
    path = default_data() if given is None else given
    if given is None and not path.exists():
        advice = "make a pack with wsi-idc prepare TREE, or give --data"
        # A variable that leads nowhere is a mistake; no data yet is none.
        state = PROBLEM if os.environ.get("WSI_IDC_DATA") else NOTE
        yield CheckResult("data", f"none at {path}", state, advice)
        return
    try:
        pack = find_pack(path)
        if pack is None:
            yield _of_tree(path)
            return
    except DataError as error:
        yield CheckResult("data", "cannot be used", PROBLEM, str(error))
        return
    yield from _of_pack(pack)


def _of_pack(pack: Pack) -> Iterator[CheckResult]:
    info = pack.info
    yield CheckResult(
        "data",
        f"{pack.path}, {len(pack)} patches of {len(pack.patients)} patients, {info.patch_px} px "
        f"at {info.mpp:g} um/px",
    )
    yield CheckResult("data fingerprint", info.source_fingerprint)


def _of_tree(path: Path) -> CheckResult:
    tree = find_patch_tree(path) if path.is_dir() else path
    if tree.is_dir() and not has_patches(FolderStore(tree)):
        return CheckResult(
            "data",
            f"{tree} holds neither a pack nor patches",
            PROBLEM,
            "make a pack with wsi-idc prepare TREE, or give --data",
        )
    what = "a patch tree" if tree.is_dir() else "a zip"
    return CheckResult("data", f"{tree}, {what}; it is packed when it is first used")


def weights() -> Iterator[CheckResult]:
    """Find the ImageNet weights that trainings may start from here."""
    names = cached_imagenet()
    value = f"{', '.join(names) or 'none'} in {imagenet_folder()}"
    if names:
        yield CheckResult("ImageNet weights", value)
    else:
        advice = "wsi-idc fetch-weights resnet50, where there is internet"
        yield CheckResult("ImageNet weights", value, NOTE, advice)


def runs() -> Iterator[CheckResult]:
    """Find what a command takes that is given no checkpoint."""
    run = newest_finished(DEFAULT_RUNS)
    yield CheckResult("newest finished run", "none in runs/" if run is None else str(run.folder))
    checkpoint = bundled_checkpoint() if run is None else run.best
    which = "the bundled model" if run is None else str(run.best)
    megabytes = checkpoint.stat().st_size / 1e6
    yield CheckResult("default checkpoint", f"{which}, {megabytes:.1f} MB")

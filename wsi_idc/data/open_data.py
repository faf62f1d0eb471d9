"""Open the data of the option ``--data``: a pack, a patch tree, a zip of a tree, or a data folder.

A patch tree is packed once, and the pack is kept in a cache folder. If many tasks read a network
disk at random positions, the disk becomes slow for all users. Therefore the environment variable
``WSI_IDC_SCRATCH`` can name a scratch folder on the local disk or in the memory of a cluster node.
The pack is copied to this folder, and all tasks of the node read this copy.
"""

import logging
import os
from pathlib import Path

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import BusyError, DataError
from wsi_idc.core.files import is_being_written, remove_partial
from wsi_idc.core.hdf5 import read_format
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.core.text import count
from wsi_idc.data.download import read_download_path
from wsi_idc.data.pack import FORMAT, FORMAT_VERSION, Pack
from wsi_idc.data.patch_index import (
    content_key,
    has_patches,
    lost_patients,
    open_patch_store,
    read_issues,
)
from wsi_idc.data.patch_store import NO_ACCESS, UNREADABLE, FolderStore, is_zip
from wsi_idc.data.pixels import is_decodable
from wsi_idc.data.prepare import REJECTED_CSV, cache_path, prepare
from wsi_idc.data.staging import stage_to_scratch

logger = logging.getLogger(__name__)
DEFAULT_FOLDER = "data"
_ADVICE = "make a pack with wsi-idc prepare TREE, or give --data"


def open_data(path: Path | None = None) -> Pack:
    """Open a pack or a patch tree.

    If ``WSI_IDC_SCRATCH`` is set, the result reads a copy of the pack in this scratch folder.

    Args:
        path: A pack, a patch tree, a zip of a tree, or a folder with one pack. None means
            ``default_data()``.

    Raises:
        DataError: ``path`` has no usable data, or is a folder with several packs.
    """
    if path is None:
        path = default_data()
        if not path.exists():
            raise DataError(f"no data: there is no {path} here; {_ADVICE}")
    pack = find_pack(path)
    if pack is None:
        pack = _open_tree(find_patch_tree(path) if path.is_dir() else path)
    return stage_to_scratch(pack)


def default_data() -> Path:
    """Return the path of the data that a command opens without the option ``--data``.

    This is the path in the environment variable ``WSI_IDC_DATA``. If the variable is not set, this
    is the folder ``data`` in the working folder.
    """
    return Path(os.environ.get("WSI_IDC_DATA") or DEFAULT_FOLDER)


def find_pack(path: Path) -> Pack | None:
    """Open a pack file, or the only pack in a folder.

    Return None if ``path`` is a zip or a folder without a pack.

    Raises:
        DataError: The pack is unusable, or the folder has several packs or a damaged HDF5 file.
    """
    if not path.is_dir():
        return None if is_zip(path) else Pack(path)
    files = [file for file in sorted(path.glob("[!.]*.h5")) if file.is_file()]
    packs = [file for file in files if read_format(file) == FORMAT]
    if len(packs) > 1:
        names = ", ".join(pack.name for pack in packs)
        raise DataError(f"{path} holds {len(packs)} packs ({names}); choose one with --data")
    return Pack(packs[0]) if packs else None


def find_patch_tree(folder: Path) -> Path:
    """Find the patch tree of a folder.

    If ``source.json`` in the folder records a download, the patch tree is this download. Otherwise,
    if the folder has no patches but a zip, the patch tree is the zip. Otherwise, the patch tree is
    the folder itself.

    Raises:
        DataError: The recorded download does not exist any more, or the folder has several zips.
    """
    if tree := read_download_path(folder):
        return tree
    zips = [file for file in sorted(folder.glob("*.zip")) if is_zip(file)]
    if not zips or has_patches(FolderStore(folder)):
        return folder
    if len(zips) > 1:
        names = ", ".join(file.name for file in zips)
        raise DataError(f"{folder} holds {len(zips)} zips ({names}); choose one, such as {zips[0]}")
    return zips[0]


def default_tree() -> Path:
    """Return the patch tree that ``wsi-idc prepare`` packs by default.

    Raises:
        DataError: There is no patch tree.
    """
    folder = Path(DEFAULT_FOLDER)
    tree = find_patch_tree(folder)
    if tree == folder and not FolderStore(folder).list_files().paths:
        raise DataError(
            f"no patches: {folder}/ has no patch tree and no zip; get the data set with wsi-idc "
            "download, or give TREE"
        )
    return tree


def _open_tree(tree: Path) -> Pack:
    """Open the cached pack of a patch tree; pack the tree if it is new or has changed."""
    with open_patch_store(tree) as store:
        paths = store.list_files().paths
        if not paths:
            raise DataError(f"no data: {tree} holds neither a pack nor patches; {_ADVICE}")
        key = content_key(store, paths)
        path = cache_folder() / "packs" / key / f"pack-v{FORMAT_VERSION}.h5"

        def pack_once() -> None:
            # This check is fast. ``prepare`` would read all names of a large tree before its check.
            if is_being_written(cache_path(path)):
                raise BusyError(f"{path}: another process is making this pack")
            # A change of permissions can make a file readable, but does not change ``key``.
            issues = read_issues(path.with_name(REJECTED_CSV))
            reasons = (UNREADABLE, NO_ACCESS)
            unreadable = {issue.path for issue in issues if issue.reason in reasons}
            retry = unreadable.intersection(paths)
            if not path.exists() or any(is_decodable(store, name, PATCH_PX) for name in retry):
                logger.info("packing %s into %s; this is needed only once", tree, path)
                prepare(tree, path)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{cache_folder()} cannot keep the pack of {tree} ({error.strerror}); set "
                "WSI_IDC_CACHE to a folder that can be written"
            ) from None
        # The tasks of a job array start together: one task makes the pack, the other tasks wait.
        what = f"another process that packs {tree} into {path}"
        retry_while_busy(pack_once, log_as=what)
        remove_partial(cache_path(path))  # may remain from a killed process
        try:
            pack = Pack(path)
        except DataError as error:
            # The cached pack is damaged: make the pack again. Another process may have removed it.
            logger.warning("%s", error)
            path.unlink(missing_ok=True)
            retry_while_busy(pack_once, log_as=what)
            pack = Pack(path)
    rejected = path.with_name(REJECTED_CSV)
    if issues := read_issues(rejected):
        logger.warning("%s left out; see %s", count(len(issues), "file"), rejected)
        if lost := lost_patients(store, issues, pack.patients):
            logger.warning("%s left out: %s", count(len(lost), "patient"), ", ".join(lost))
    return pack


def cache_folder() -> Path:
    """Return the folder of cached packs.

    This is the folder in the environment variable ``WSI_IDC_CACHE``. If the variable is not set,
    this is the folder ``wsi-idc`` in the user's cache folder.

    Raises:
        DataError: No environment variable names a cache folder, and the user has no home folder.
    """
    if folder := os.environ.get("WSI_IDC_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsi-idc"
    except RuntimeError:
        raise DataError("no home folder for cached packs; set WSI_IDC_CACHE to a folder") from None

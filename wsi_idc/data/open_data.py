"""What ``--data`` means: a pack, a patch tree or a zip of one, or the default folder.

A tree is packed once, into a cache.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import BusyError, DataError
from wsi_idc.core.hdf5 import read_format
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.data.download import downloaded
from wsi_idc.data.pack import FORMAT, FORMAT_VERSION, Pack
from wsi_idc.data.patch_index import (
    content_key,
    holds_patches,
    is_decodable,
    open_patch_store,
    read_problems,
)
from wsi_idc.data.patch_store import UNREADABLE, FolderStore, PatchStore
from wsi_idc.data.prepare import REJECTED_CSV, is_being_prepared, prepare, remove_partial_pack
from wsi_idc.data.staging import stage_to_scratch
from wsi_idc.data.zip_store import is_zip

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "data"
_HOW = "make a pack with wsi-idc prepare TREE, or give --data"


def open_data(path: Path | None = None) -> Pack:
    """Open a pack or a patch tree; where ``WSI_IDC_SCRATCH`` is set, read from a copy there.

    Args:
        path: A pack, a patch tree, a zip of one, or a folder with one pack in it; None takes
            ``WSI_IDC_DATA``, else ``data`` in the working folder.

    Raises:
        DataError: Nothing there can be used, or it is not clear what to use.
    """
    if path is None:
        path = default_data()
        if not path.exists():
            raise DataError(f"no data: there is no {path} here; {_HOW}")
    return stage_to_scratch(_open(path))


def default_data() -> Path:
    """Return where data are looked for if ``--data`` says nothing."""
    return Path(os.environ.get("WSI_IDC_DATA") or DEFAULT_FOLDER)


def _open(path: Path) -> Pack:
    pack = find_pack(path)
    if pack is not None:
        return pack
    return _open_tree(find_patch_tree(path) if path.is_dir() else path)


def find_pack(path: Path) -> Pack | None:
    """Open the pack that ``path`` is or holds; None where it is a patch tree, or a zip of one.

    Raises:
        DataError: It is no pack that can be used, or a folder of several, or of one that may have
            been a pack and cannot be read.
    """
    if not path.is_dir():
        return None if is_zip(path) else Pack(path)
    files = [file for file in sorted(path.glob("[!.]*.h5")) if file.is_file()]
    packs = [file for file in files if read_format(file) == FORMAT]
    if len(packs) == 1:
        return Pack(packs[0])
    if packs:
        names = ", ".join(pack.name for pack in packs)
        raise DataError(f"{path} holds {len(packs)} packs ({names}); choose one with --data")
    return None


def find_patch_tree(folder: Path) -> Path:
    """Return the patch tree that ``folder`` stands for.

    It is what was downloaded, else the folder itself, or the zip in it if it holds no patch.

    Raises:
        DataError: What was downloaded is there no more, or there are several zips.
    """
    if tree := downloaded(folder):
        return tree
    zips = [file for file in sorted(folder.glob("*.zip")) if is_zip(file)]
    if not zips or holds_patches(FolderStore(folder)):
        return folder
    if len(zips) > 1:
        names = ", ".join(file.name for file in zips)
        raise DataError(
            f"{folder} holds {len(zips)} zips ({names}); say which one, such as {zips[0]}"
        )
    return zips[0]


def default_tree() -> Path:
    """Return the patch tree that is packed where none is named.

    Raises:
        DataError: There is none.
    """
    folder = Path(DEFAULT_FOLDER)
    tree = find_patch_tree(folder)
    if tree == folder and not (folder.is_dir() and FolderStore(folder).listing().paths):
        raise DataError(
            f"no patches: there is no tree or zip of them in {folder}/; get the data set with "
            "wsi-idc download, or give TREE"
        )
    return tree


def _open_tree(tree: Path) -> Pack:
    """Open the cached pack of a tree, made first if the tree has not been seen as it is now."""
    with open_patch_store(tree) as origin:
        paths = origin.listing().paths
        if not paths:
            raise DataError(f"no data: {tree} holds neither a pack nor patches; {_HOW}")
        key = content_key(origin, paths)
        pack = cache_folder() / "packs" / key / f"pack-v{FORMAT_VERSION}.h5"
        build_cached_pack(
            tree, pack, lambda: pack.exists() and not has_newly_readable_files(origin, paths, pack)
        )
    remove_partial_pack(pack)
    try:
        found = Pack(pack)
    except DataError as error:
        # Ours to mend: nobody should have to find it in the cache.
        logger.warning("%s", error)
        pack.unlink(missing_ok=True)  # another process may have found it too
        build_cached_pack(tree, pack, pack.exists)
        found = Pack(pack)
    rejected = pack.with_name(REJECTED_CSV)
    if left_out := read_problems(rejected):
        logger.warning("%d files left out; see %s", len(left_out), rejected)
    return found


def has_newly_readable_files(origin: PatchStore, paths: list[str], pack: Path) -> bool:
    """Return whether any file that was left out of a cached pack as unreadable is not so now.

    Rights and a disk's errors come and go without a trace in names and states.
    """
    rejected = read_problems(pack.with_name(REJECTED_CSV))
    left_out = {one.path for one in rejected if one.reason == UNREADABLE}
    return any(is_decodable(origin, path, PATCH_PX) for path in left_out.intersection(paths))


def build_cached_pack(tree: Path, pack: Path, is_made: Callable[[], bool]) -> None:
    """Make the pack unless it exists, or wait until another process has made it."""

    def prepare_once() -> None:
        # Cheap, before the names of a large tree are read again.
        if is_being_prepared(pack):
            raise BusyError(f"{pack}: another process is making it")
        if not is_made():
            logger.info("packing %s once, into %s", tree, pack)
            prepare(tree, pack)

    # The tasks of a job array start together: one packs, the others wait for it.
    retry_while_busy(prepare_once, log_as=f"another process that packs {tree} into {pack}")


def cache_folder() -> Path:
    """Return ``WSI_IDC_CACHE``, else wsi-idc in the user's cache folder.

    Raises:
        DataError: There is no home folder.
    """
    given = os.environ.get("WSI_IDC_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "wsi-idc"
    except RuntimeError:
        raise DataError("no home folder to keep packs in; set WSI_IDC_CACHE to a folder") from None

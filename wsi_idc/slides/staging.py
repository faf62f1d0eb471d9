"""Copies of slides on a fast local disk: while slides are used, the next slide is copied."""

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wsi_idc.core.errors import BusyError, WsiIdcError
from wsi_idc.core.locks import locked, supports_locks
from wsi_idc.core.scratch import check_space, own_folder, scratch_disk, warn_not_copied
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.slide import companion_files

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 2**24
_PREFIX = "slides-"


def staged_slides(
    rows: Sequence[ManifestRow],
    *,
    is_needed: Callable[[ManifestRow], bool],
    is_stopped: Callable[[], bool],
) -> Generator[tuple[ManifestRow, Path | None], None, None]:
    """Yield each slide and its copy on a fast local disk.

    The environment variable ``WSI_IDC_SCRATCH`` names the folder on this disk. A thread copies the
    next slide while the caller uses a slide and prepares another. A copy is removed when the caller
    has asked for two more slides, so at most three slides are on the disk.

    Args:
        rows: Rows of a manifest.
        is_needed: Function that returns whether a slide will be read completely; only such a slide
            is copied. The copying thread calls this function.
        is_stopped: Function that returns whether copying must end.

    Yields:
        The row, and the path of the copy or None. There is no copy if the variable is not set, if
        the slide is not needed, or if copying fails. The reason for a failure is logged.
    """
    with ExitStack() as stack:
        folder: Path | None = None
        if rows and (scratch := scratch_disk(rows[0].slide)) is not None:
            try:
                folder = stack.enter_context(_temporary_folder(own_folder(scratch)))
            except (WsiIdcError, OSError) as error:
                warn_not_copied(rows[0].slide, error)
        if folder is None:
            yield from ((row, None) for row in rows)
            return

        def copy(number: int) -> Path | None:
            row = rows[number]
            if is_stopped() or not is_needed(row):
                return None
            try:
                return _copy(row.slide, folder / str(number), is_stopped=is_stopped)
            except (WsiIdcError, OSError) as error:
                shutil.rmtree(folder / str(number), ignore_errors=True)
                warn_not_copied(row.slide, error)
                return None

        for number, path in enumerate(prefetch(copy, range(len(rows)))):
            if number >= 2:
                shutil.rmtree(folder / str(number - 2), ignore_errors=True)
            yield rows[number], path


def _copy(slide: Path, folder: Path, *, is_stopped: Callable[[], bool]) -> Path | None:
    """Copy all files of a slide into a folder; return the path of the copy of ``slide``.

    If ``is_stopped`` becomes true, stop copying and return None.
    """
    files = [slide, *companion_files(slide)]
    num_bytes = sum(file.stat().st_size for file in files)
    check_space(folder.parent, num_bytes)
    logger.info("copying %s (%.0f MB) to %s", slide, num_bytes / 1e6, folder)
    for file in files:
        target = folder / file.relative_to(slide.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, target.open("wb") as copy:
            while block := source.read(_BLOCK_BYTES):
                if is_stopped():
                    return None
                copy.write(block)
    return folder / slide.name


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder for copies; remove this folder when the block ends.

    Older folders of killed processes are removed first.
    """
    if supports_locks(parent):
        for lock in parent.glob(f"{_PREFIX}*.lock"):
            with contextlib.suppress(BusyError), locked(lock, what=lock):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
    folder = parent / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with locked(folder.with_suffix(".lock"), what=folder):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)

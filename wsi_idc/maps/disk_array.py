"""Arrays that grow block by block. Large arrays are in temporary files, to save memory."""

import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import full_disk_as_error
from wsi_idc.inference.predict import RawPrediction

_MAX_BYTES_IN_MEMORY = 2**24


class DiskArray:
    """Array that grows along its first axis. Freeing the array removes its temporary file.

    Args:
        folder: Folder of the temporary file.

    Attributes:
        shape: Shape of the array; empty before the first block.
    """

    def __init__(self, folder: Path) -> None:
        self.shape: tuple[int, ...] = ()
        self._folder, self._dtype = folder, np.dtype(np.uint8)
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            _MAX_BYTES_IN_MEMORY, dir=str(folder)
        )
        weakref.finalize(self, _close, self._file)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def append(self, block: NDArray) -> None:
        """Append a block of n rows, shape (n, ...).

        Raises:
            DiskFullError: The disk is full.
        """
        with full_disk_as_error(self._folder):
            self._file.write(np.ascontiguousarray(block).data)
        self.shape, self._dtype = (len(self) + len(block), *block.shape[1:]), block.dtype

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return rows, with an index as for a NumPy array. Do not call ``append`` after a read.

        Raises:
            DiskFullError: The disk has no space for rows that are still in memory.
            WsiIdcError: The temporary file is shorter than the array.
        """
        numbers = np.arange(len(self))[rows]
        values = np.empty((len(numbers), *self.shape[1:]), self._dtype)
        row_bytes, start = values[:1].nbytes, 0
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            if len(run):
                view = values[start : start + len(run)].data.cast("B")
                with full_disk_as_error(self._folder):
                    self._file.seek(int(run[0]) * row_bytes)
                    num_bytes = self._file.readinto(view)
                if num_bytes != len(view):
                    raise WsiIdcError(f"{self._folder}: a temporary file is too short; run again")
                start += len(run)
        return values


def _close(file: Any) -> None:
    with suppress(OSError):  # closing fails on a full disk, but the content is not needed
        file.close()


class StoredPrediction:
    """Predictions for the patches of a patient, collected batch by batch.

    The values of each batch are copied. Otherwise the small arrays of all batches would stay in
    memory, and the network could not use the free memory between these arrays.
    """

    def __init__(self, folder: Path) -> None:
        self._logit, self._cam, self._distance, self._flags = (DiskArray(folder) for _ in range(4))

    def __len__(self) -> int:
        return len(self._logit)

    def append(self, part: RawPrediction) -> None:
        """Append the prediction of the next patches."""
        self._logit.append(part.logit)
        if part.cam is not None:
            self._cam.append(part.cam)
        if part.distance is not None:
            self._distance.append(part.distance)
        if part.flags is not None:
            self._flags.append(part.flags)

    def prediction(self) -> RawPrediction:
        """Return the predictions for all patches. CAMs are a ``DiskArray``; None without CAMs."""
        cam: Any = self._cam if len(self._cam) else None
        distance = self._distance[:] if len(self._distance) else None
        flags = self._flags[:] if len(self._flags) else None
        return RawPrediction(self._logit[:], cam, distance, flags)

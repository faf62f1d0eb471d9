"""Writing of maps in threads, and the report of a run."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wsi_idc.core.errors import DiskFullError, WsiIdcError
from wsi_idc.core.files import retry_while_busy
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap

logger = logging.getLogger(__name__)

SubmitMap = Callable[[str, Callable[[], PatientMap]], None]
_NUM_WRITERS = 2
# Longest wait for another process that is writing the same map.
_LOCK_TIMEOUT_SECONDS = 60.0


@dataclass
class MapReport:
    """Result of a run, by patient.

    Attributes:
        made: Patient to map file, for maps that this run built.
        kept: Patient to map file, for maps that an earlier run built with the same model, settings
            and data.
        failed: Patient to the reason for a missing map.
        patches: Patient to number of patches, for the maps in ``made``.
        idc_fraction: Patient to fraction of patches called IDC, for the maps in ``made``.
    """

    made: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    idc_fraction: dict[str, float] = field(default_factory=dict)

    def record_failure(self, patient: str, error: Exception) -> None:
        """Record the reason for a missing map.

        Raises:
            DiskFullError: ``error`` is one; the maps of the other patients would have no room.
        """
        if isinstance(error, DiskFullError):
            raise error
        self.failed[patient] = str(error)
        logger.warning("%s: %s", patient, error)


@contextmanager
def map_writers(folder: Path, report: MapReport) -> Iterator[SubmitMap]:
    """Write maps in threads while the network computes the next ones.

    Args:
        folder: Folder of the maps.
        report: Receives the result of each map.

    Yields:
        Function that takes a patient and a function that builds the map; it waits while too many
        maps are pending.

    Raises:
        DiskFullError: The disk is full.
    """
    pending: deque[tuple[str, Future[PatientMap]]] = deque()

    def collect() -> None:
        patient, future = pending.popleft()
        try:
            patient_map = future.result()
        except (WsiIdcError, OSError) as error:
            report.record_failure(patient, error)
            return
        report.made[patient] = map_path(folder, patient)
        report.patches[patient] = len(patient_map.probability)
        report.idc_fraction[patient] = patient_map.idc_fraction()

    with ThreadPoolExecutor(_NUM_WRITERS) as pool:

        def submit(patient: str, make: Callable[[], PatientMap]) -> None:
            pending.append((patient, pool.submit(_write, folder, make)))
            # Bounded memory: a slow disk makes the network wait.
            if len(pending) > 2 * _NUM_WRITERS:
                collect()

        try:
            yield submit
        finally:
            while pending:
                collect()


def _write(folder: Path, make: Callable[[], PatientMap]) -> PatientMap:
    """Write one map; wait while another process writes the same file."""
    patient_map = make()
    path = map_path(folder, patient_map.patient)
    retry_while_busy(lambda: write_map(path, patient_map), timeout=_LOCK_TIMEOUT_SECONDS)
    return patient_map

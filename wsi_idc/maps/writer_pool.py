"""Write maps in threads, and note what became of each."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from wsi_idc.core.errors import DiskFullError, WsiIdcError
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.maps.builder import MapBuilder, MapReport
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap

logger = logging.getLogger(__name__)

_WRITERS = 2
# Timeout for another process that is writing the same map.
_TIMEOUT_SECONDS = 60.0


class MapWriterPool:
    """Threads that write maps while the next ones are being computed; a context manager.

    Args:
        work: Where to, and when to stop.
        report: Is told what became of each map.
    """

    def __init__(self, work: MapBuilder, report: MapReport) -> None:
        self._work, self._report = work, report
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._writing: deque[tuple[str, Future[PatientMap]]] = deque()

    def __enter__(self) -> "MapWriterPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._pool:
            while self._writing:
                self._settle(*self._writing.popleft())

    def submit(self, patient: str, make: Callable[[], PatientMap]) -> None:
        """Make and write a patient's map in a thread."""
        self._writing.append((patient, self._pool.submit(_write, self._work.out, make)))
        # A bounded number in memory: a slow disk makes the network wait.
        if len(self._writing) > 2 * _WRITERS:
            self._settle(*self._writing.popleft())

    def _settle(self, patient: str, future: "Future[PatientMap]") -> None:
        """Wait for a map to be written and note what became of it."""
        report = self._report
        try:
            content = future.result()
        except (WsiIdcError, OSError) as error:
            record_failure(report, patient, error)
            return
        report.made[patient] = map_path(self._work.out, patient)
        report.patches[patient] = len(content.probability)
        report.idc_fraction[patient] = content.idc_fraction()


def record_failure(report: MapReport, patient: str, error: Exception) -> None:
    """Note that a patient has no map, and go on.

    Raises:
        DiskFullError: It was this: the next ones would only be computed to have no room.
    """
    if isinstance(error, DiskFullError):
        raise error
    report.failed[patient] = str(error)
    logger.warning("%s: %s", patient, error)


def _write(out: Path, make: Callable[[], PatientMap]) -> PatientMap:
    """Write one map; one that another process is writing at the same time is written after it."""
    content = make()
    path = map_path(out, content.patient)
    retry_while_busy(lambda: write_map(path, content), timeout=_TIMEOUT_SECONDS)
    return content

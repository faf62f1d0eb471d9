"""Make the maps of a pack's patients: one pass over all patches, batches across patients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.maps.builder import MapBuilder, MapReport, stopped
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.writer_pool import MapWriterPool


def build_maps(work: MapBuilder, pack: Pack, patients: Sequence[str]) -> MapReport:
    """Write the map of each patient into the folder ``work.out``, unless it is there already.

    A map is kept only where the same method, settings and data made it. A patient whose map
    cannot be made is set aside with the reason.

    Raises:
        CheckpointError: A checkpoint does not fit the data, or has no such CAM.
        DataError: The pack has no such patient, or its id cannot be a file name.
        MapError: The CAMs of one are more than a map can hold.
        StoppedError: ``work.stop`` was set; the finished maps are there, and the same call goes on.
    """
    validate_job(work, pack, patients)
    for patient in patients:
        map_path(work.out, patient)
    work.warn_training_patients(patients)
    report, identity = MapReport(), cache_key(work, pack)
    due = [
        patient
        for patient in patients
        if work.needs_rebuild(patient, identity, report, data=pack.path)
    ]
    if due:
        work.out.mkdir(parents=True, exist_ok=True)
        work.compute.usage.begin()
        _make(work, pack, due, report=report)
        work.compute.usage.log("mapped")
    return report


def validate_job(work: MapBuilder, pack: Pack, patients: Sequence[str]) -> None:
    """Raise where the maps of a pack's patients cannot be made.

    Raises:
        CheckpointError: A checkpoint does not fit the data, or has no such CAM.
        DataError: The pack has no such patient.
        MapError: The CAMs of one are more than a map can hold.
    """
    work.method.validate_input(pack)
    work.check_cam(patch_px=pack.info.patch_px)
    for patient in patients:
        work.validate_cam_size(len(pack.rows_of(patient)), patch_px=pack.info.patch_px)


def cache_key(work: MapBuilder, pack: Pack) -> dict[str, Any]:
    """Return all that decides what stands in a map of a patient of the pack, JSON-ready."""
    info = pack.info
    return work.identity(data=info.source_fingerprint, mpp=info.mpp, mpp_source=info.mpp_source)


def _make(work: MapBuilder, pack: Pack, patients: list[str], *, report: MapReport) -> None:
    rows = {patient: pack.rows_of(patient) for patient in patients}
    everything = np.concatenate(list(rows.values()))
    found = work.method.predict(
        pack, everything, device_config=work.compute, batch_size=work.batch_size, cam=work.cam
    )
    with (
        # Whatever ends this ends its readers too.
        closing(found),
        progress(len(everything), what="mapping") as bar,
        MapWriterPool(work, report) as writers,
    ):
        for patient, prediction in _by_patient(_counted(found, bar, work), rows):
            writers.submit(patient, partial(patient_map_of, work, pack, patient, prediction))
    # Those that failed are not all of these: some were set aside before.
    settled = report.made.keys() | report.failed.keys()
    if work.stop and not settled.issuperset(patients):
        raise stopped(work, report, num_due=len(patients))


def _counted(found: Iterator[RawPrediction], bar: Any, work: MapBuilder) -> Iterator[RawPrediction]:
    """Pass predictions on, counted on the bar, until a stop is asked for."""
    for part in found:
        if work.stop:
            return
        bar.set_postfix_str(work.compute.usage.summary_line(), refresh=False)
        bar.update(len(part.logit))
        yield part


def _by_patient(
    found: Iterator[RawPrediction], rows: Mapping[str, NDArray[np.int64]]
) -> Iterator[tuple[str, RawPrediction]]:
    """Cut a stream of batches, which knows no patients, into one prediction a patient."""
    parts: list[RawPrediction] = []
    waiting = iter(rows.items())
    patient, members = next(waiting)
    have = 0
    for part in found:
        start = 0
        while start < len(part.logit):
            end = min(len(part.logit), start + len(members) - have)
            parts.append(part.part(start, end))
            have += end - start
            start = end
            if have == len(members):
                yield patient, RawPrediction.concatenate(parts)
                patient, members = next(waiting, (patient, members))
                parts, have = [], 0


def patient_map_of(
    work: MapBuilder, pack: Pack, patient: str, prediction: RawPrediction
) -> PatientMap:
    """Return the map of a patient of the pack, of whose patches a prediction says all."""
    info, rows = pack.info, pack.rows_of(patient)
    columns = pack.index.iloc[rows]
    return work.content(
        patient,
        prediction,
        row_col=pack.cells()[rows],
        patch_um=info.patch_px * info.mpp,
        data=pack.path,
        identity=cache_key(work, pack),
        source="pack",
        patch_px=info.patch_px,
        mpp=info.mpp,
        mpp_source=info.mpp_source,
        coords=columns[["x", "y"]].to_numpy(np.int32),
        label=columns["label"].to_numpy(np.int8),
        patches=pack.read(rows) if work.with_image else None,
    )

"""Source of maps: the patients of a pack. A batch may have patches of several patients."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.disk_array import StoredPrediction
from wsi_idc.maps.map_writer import MapReport
from wsi_idc.maps.patient_map import PatientMap, PatientPatches
from wsi_idc.maps.plan import PlannedMap, shard, sizes_of_patients


@dataclass(frozen=True)
class PackSource:
    """Source of maps: patients of a pack.

    Attributes:
        pack: Pack with the patches of the patients.
        patients: Patient ids; repeated ids count once.
    """

    pack: Pack
    patients: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Ids of the patients, without repetition."""
        return list(dict.fromkeys(self.patients))

    def shard(self, index: int, count: int) -> "PackSource":
        """Return shard ``index`` of ``count`` shards; all have about the same number of patches."""
        sizes = sizes_of_patients(self.pack, self.patients)
        return replace(self, patients=shard(sizes, index, count))

    def validate(self, builder: MapBuilder) -> None:
        """Raise an error if a checkpoint or CAM does not fit the pack."""
        patch_px = self.pack.info.patch_px
        builder.predictor.validate_input(self.pack)
        builder.validate_cam_layer(patch_px=patch_px)
        for patient in self.patients:
            builder.validate_cam_size(len(self.pack.rows_of(patient)), patch_px=patch_px)

    def plan(self, builder: MapBuilder) -> list[PlannedMap]:
        """Return the state and the size of each map; raise the errors of ``validate``."""
        self.validate(builder)
        return [
            builder.plan(self._patches(builder, patient), with_image=builder.with_image)
            for patient in self.names
        ]

    def predict(
        self, builder: MapBuilder, report: MapReport
    ) -> Generator[tuple[str, Callable[[], PatientMap]], None, None]:
        """Run the network on the patches of all patients; see ``MapSource.predict``."""
        key = self._cache_key(builder)
        rows = {
            patient: self.pack.rows_of(patient)
            for patient in self.names
            if builder.select(patient, key, report, data=self.pack.path)
        }
        if not rows:
            return
        builder.out.mkdir(parents=True, exist_ok=True)
        all_rows = np.concatenate(list(rows.values()))
        predictions = builder.predictor.predict(
            self.pack,
            all_rows,
            device_config=builder.device_config,
            batch_size=builder.batch_size,
            cam=builder.cam,
        )
        # The generator is closed to end its reader threads, also after an error.
        with closing(predictions), progress(len(all_rows), what="mapping") as bar:
            batches = _until_stop(predictions, bar, builder)
            for patient, prediction in _by_patient(batches, rows, builder.out):
                yield patient, partial(self.patient_map, builder, patient, prediction)

    def patient_map(
        self, builder: MapBuilder, patient: str, prediction: RawPrediction
    ) -> PatientMap:
        """Build the map of a patient from the predictions of the patient's patches."""
        pixels: Any = None
        if builder.with_image:
            pixels = PatchReader(self.pack, self.pack.rows_of(patient))
        return builder.patient_map(self._patches(builder, patient), prediction, pixels)

    def _patches(self, builder: MapBuilder, patient: str) -> PatientPatches:
        info, rows = self.pack.info, self.pack.rows_of(patient)
        columns = self.pack.index.iloc[rows]
        return PatientPatches(
            patient=patient,
            source="pack",
            provenance={"data": str(self.pack.path), "identity": self._cache_key(builder)},
            patch_px=info.patch_px,
            mpp=info.mpp,
            mpp_source=info.mpp_source,
            coords=columns[["x", "y"]].to_numpy(np.int32),
            row_col=self.pack.cells()[rows],
            label=columns["label"].to_numpy(np.int8),
        )

    def _cache_key(self, builder: MapBuilder) -> dict[str, Any]:
        info = self.pack.info
        data = info.source_fingerprint
        return builder.cache_key(data=data, mpp=info.mpp, mpp_source=info.mpp_source)


@dataclass(frozen=True)
class PatchReader:
    """Pixels of the patches ``rows`` of a pack; ``reader[indices]`` reads some of them."""

    pack: Pack
    rows: NDArray[np.int64]

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.pack.read(self.rows[indices])


def _until_stop(
    predictions: Iterator[RawPrediction], bar: Any, builder: MapBuilder
) -> Iterator[RawPrediction]:
    """Yield the predictions until a stop is requested, and update the progress bar."""
    for prediction in predictions:
        if builder.stop:
            return
        bar.set_postfix_str(builder.device_config.throughput.summary_line(), refresh=False)
        bar.update(len(prediction.logit))
        yield prediction


def _by_patient(
    batches: Iterator[RawPrediction], rows: Mapping[str, NDArray[np.int64]], folder: Path
) -> Iterator[tuple[str, RawPrediction]]:
    """Split and join batches, so that each patient has one prediction with all its patches.

    CAMs are stored in temporary files in ``folder`` if they are large.
    """
    batch, start = None, 0
    for patient, members in rows.items():
        stored = StoredPrediction(folder)
        while missing := len(members) - len(stored):
            if batch is None or start == len(batch.logit):
                batch, start = next(batches, None), 0
                if batch is None:  # a stop was requested
                    return
            part = batch.part(start, start + missing)
            stored.append(part)
            start += len(part.logit)
        yield patient, stored.prediction()

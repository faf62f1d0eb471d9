"""Source of maps: the patients of a pack. A batch may have patches of several maps."""

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
from wsi_idc.maps.patient_map import PatientMap, PatientPatches, SlideView
from wsi_idc.maps.plan import PlannedMap, map_names, shard, sizes_of_patients


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
        """Unique names of the maps: PATIENT, or PATIENT/SLIDE for several slides."""
        return map_names(self.pack, self.patients)

    def rows(self, name: str) -> NDArray[np.int64]:
        """Return the indices of a map's patches in the pack, shape (N,)."""
        patient, _, slide = name.partition("/")
        return self.pack.rows_of(patient, slide or None)

    def shard(self, index: int, count: int) -> "PackSource":
        """Return shard ``index`` of ``count`` shards with about the same number of patches.

        The slides of a patient are in the same shard.
        """
        sizes = sizes_of_patients(self.pack, self.patients)
        return replace(self, patients=shard(sizes, index, count))

    def validate(self, builder: MapBuilder) -> None:
        """Raise an error if a checkpoint or CAM does not fit the pack."""
        patch_px = self.pack.info.patch_px
        builder.predictor.validate_input(self.pack)
        builder.validate_cam_layer(patch_px=patch_px)
        builder.flag_mpp(patch_px, self.pack.info.mpp)
        for name in self.names:
            builder.validate_cam_size(len(self.rows(name)), patch_px=patch_px)

    def plan(self, builder: MapBuilder) -> list[PlannedMap]:
        """Return the state and the size of each map; raise the errors of ``validate``."""
        self.validate(builder)
        return [
            builder.plan(self._patches_of(builder, name), with_image=builder.with_image)
            for name in self.names
        ]

    def predict(
        self, builder: MapBuilder, report: MapReport
    ) -> Generator[tuple[str, Callable[[], PatientMap]], None, None]:
        """Run the network on the patches of all patients; see ``MapSource.predict``."""
        key = self._cache_key(builder)
        rows = {
            name: self.rows(name)
            for name in self.names
            if builder.select(name, key, report, data=self.pack.path)
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
            flag_mpp=builder.flag_mpp(self.pack.info.patch_px, self.pack.info.mpp),
        )
        # The generator is closed to end its reader threads, also after an error.
        with closing(predictions), progress(len(all_rows), what="mapping") as bar:
            batches = _until_stop(predictions, bar, builder)
            for name, prediction in _by_map(batches, rows, builder.out):
                yield name, partial(self.patient_map, builder, name, prediction)

    def patient_map(self, builder: MapBuilder, name: str, prediction: RawPrediction) -> PatientMap:
        """Build a map from the predictions of its patches."""
        pixels: Any = None
        if builder.with_image:
            pixels = PatchReader(self.pack, self.rows(name))
        return builder.patient_map(self._patches_of(builder, name), prediction, pixels)

    def _patches_of(self, builder: MapBuilder, name: str) -> PatientPatches:
        return self.patches(name, identity=self._cache_key(builder))

    def patches(self, name: str, *, identity: Mapping[str, Any]) -> PatientPatches:
        """Return the patches of a map; ``identity`` is the entry of the provenance."""
        info, rows = self.pack.info, self.rows(name)
        columns = self.pack.index.iloc[rows]
        patient, _, slide_name = name.partition("/")
        return PatientPatches(
            patient=patient,
            source="pack",
            provenance={"data": str(self.pack.path), "identity": identity},
            patch_px=info.patch_px,
            mpp=info.mpp,
            mpp_source=info.mpp_source,
            coords=columns[["x", "y"]].to_numpy(np.int32),
            row_col=self.pack.cells(rows),
            label=columns["label"].to_numpy(np.int8),
            slide_name=slide_name,
            slide=self._slide_view(int(columns["slide"].iloc[0])) if self.pack.slides else None,
        )

    def _slide_view(self, code: int) -> SlideView:
        slide = self.pack.slides[code]
        thumbnail, tissue = self.pack.overview(code)
        return SlideView(
            name=Path(slide.path).name,
            mpp=slide.mpp,
            width=slide.width,
            height=slide.height,
            thumbnail=thumbnail,
            tissue=tissue,
            mpp_source=slide.mpp_source,
            bounds=slide.bounds,
        )

    @property
    def data_key(self) -> dict[str, Any]:
        """Values of the pack that determine the content of a map."""
        info = self.pack.info
        return {"data": info.source_fingerprint, "mpp": info.mpp, "mpp_source": info.mpp_source}

    def _cache_key(self, builder: MapBuilder) -> dict[str, Any]:
        return builder.cache_key(**self.data_key)


@dataclass(frozen=True)
class PatchReader:
    """Reader of the patches of a map in a pack. ``reader[indices]`` returns pixels of patches.

    Attributes:
        pack: The pack.
        rows: For each patch of the map, the index of this patch in the pack.
    """

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


def _by_map(
    batches: Iterator[RawPrediction], rows: Mapping[str, NDArray[np.int64]], folder: Path
) -> Iterator[tuple[str, RawPrediction]]:
    """Yield the name of each map, and the predictions for all patches of the map.

    Args:
        batches: Predictions for all patches, in batches.
        rows: For each map name, the patches of the map, in the order of the batches.
        folder: Folder of the temporary files for large CAMs.
    """
    batch, start = None, 0
    for name, members in rows.items():
        stored = StoredPrediction(folder)
        while missing := len(members) - len(stored):
            if batch is None or start == len(batch.logit):
                batch, start = next(batches, None), 0
                if batch is None:  # a stop was requested
                    return
            part = batch.part(start, start + missing)
            stored.append(part)
            start += len(part.logit)
        yield name, stored.prediction()

"""Plan of a run: the state of each map and the space that it takes."""

import math
from dataclasses import dataclass

from wsi_idc.core.errors import MapError
from wsi_idc.geometry.grid import shape_of
from wsi_idc.maps.builder import MapBuilder, PatientPatches

TO_DO, DONE = "to do", "done"
# Copies of a map in memory: the arrays, the file built in memory, and the bytes of the file.
_COPIES_IN_MEMORY = 3


@dataclass(frozen=True)
class PlannedMap:
    """State and size of a map before the run.

    Attributes:
        patient: Id.
        state: "to do", "done", or the reason why the map cannot be built.
        num_patches: Number of patches.
        disk_mb: Size of the file, estimated.
        memory_mb: Memory while the map is built, without the model, estimated.
    """

    patient: str
    state: str
    num_patches: int = 0
    disk_mb: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_mappable(self) -> bool:
        """True if the map exists or can be built."""
        return self.state in (TO_DO, DONE)


def plan_map(builder: MapBuilder, patches: PatientPatches) -> PlannedMap:
    """Return the state and the estimated size of a patient's map."""
    try:
        is_due = builder.needs_rebuild(patches.patient, patches.cache_key, data=patches.data)
        state = TO_DO if is_due else DONE
    except MapError as error:
        state = str(error)
    num_patches, num_cells = len(patches.row_col), math.prod(shape_of(patches.row_col))
    num_bytes = num_patches * 64 + num_cells * 32
    if builder.cam is not None:
        cam_cells = math.prod(builder.cam_shape(patch_px=patches.patch_px))
        num_bytes += 4 * cam_cells * (num_patches + num_cells)
    pixel_bytes = 0
    if builder.with_image:
        num_bytes += 3 * patches.cell_px**2 * num_cells
        pixel_bytes = 3 * patches.patch_px**2 * num_patches
    return PlannedMap(
        patient=patches.patient,
        state=state,
        num_patches=num_patches,
        disk_mb=num_bytes / 1e6,
        memory_mb=(_COPIES_IN_MEMORY * num_bytes + 2 * pixel_bytes) / 1e6,
    )

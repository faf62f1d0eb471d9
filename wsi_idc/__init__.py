"""Map invasive ductal carcinoma: probability maps and Grad-CAM mosaics. Research use only.

The names in ``__all__`` are the Python interface; ``docs/python.md`` explains them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi_idc.api import Map, PatientMaps, map_slides, open_map, open_pack, predict
    from wsi_idc.core.errors import WsiIdcError
    from wsi_idc.data.pack import Pack

__version__ = "0.1.0"

NOTICE = "Research use only, never a diagnosis."  # shown on pictures and pages

__all__ = [
    "Map",
    "Pack",
    "PatientMaps",
    "WsiIdcError",
    "__version__",
    "map_slides",
    "open_map",
    "open_pack",
    "predict",
]

# Modules of names outside ``wsi_idc.api``.
_MODULES = {"Pack": "wsi_idc.data.pack", "WsiIdcError": "wsi_idc.core.errors"}

if not TYPE_CHECKING:  # type checkers report unknown names only if there is no __getattr__

    def __getattr__(name: str) -> object:
        """Import a name of the interface at its first use, so that this module imports nothing."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES.get(name, "wsi_idc.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

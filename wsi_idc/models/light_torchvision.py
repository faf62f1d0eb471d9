"""Import of torchvision without torch's compiler, which would take seconds.

torchvision imports one function of the compiler (``torch._dynamo``, which also imports sympy), for
``roi_align``, which no classifier uses. During the import, a module without the compiler takes the
place of the function's module; it imports the compiler when it is needed.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from wsi_idc.core.errors import MissingPackageError, first_line

_COMPILER = "torch._dynamo.utils"


def import_torchvision() -> Any:
    """Import torchvision.

    Raises:
        MissingPackageError: torchvision was built for another torch than the installed one.
    """
    is_replaced = _COMPILER not in sys.modules
    if is_replaced:
        sys.modules[_COMPILER] = _light_module()
    try:
        import torchvision
    except RuntimeError as error:  # operator torchvision::nms does not exist
        raise MissingPackageError(
            f"torchvision does not fit torch {torch.__version__} ({first_line(error)}); install "
            "both again, in one command and from the same package index"
        ) from error
    finally:
        if is_replaced:
            sys.modules.pop(_COMPILER, None)
    return torchvision


def _light_module() -> ModuleType:
    """Return a module with ``is_compile_supported`` and, when needed, all else of the compiler."""
    module: Any = ModuleType(_COMPILER)
    module.is_compile_supported = lambda *arguments: _real("is_compile_supported")(*arguments)
    module.__getattr__ = _real
    return module


def _real(name: str) -> Any:
    if name.startswith("__"):  # the import system asks for these names
        raise AttributeError(name)
    if getattr(sys.modules.get(_COMPILER), "__file__", None) is None:  # still the light module
        sys.modules.pop(_COMPILER, None)
    return getattr(importlib.import_module(_COMPILER), name)

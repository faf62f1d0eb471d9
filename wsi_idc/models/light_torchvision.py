"""Import of torchvision without torch's compiler, which would take ten times as long.

torchvision imports one function of the compiler (``torch._dynamo``, which also imports sympy), for
``roi_align``, which no classifier uses. During the import, another function takes its place; it
imports the compiler when it is called.
"""

import sys
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


def _is_compile_supported(*arguments: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(*arguments)


def _import() -> ModuleType:
    if _COMPILER in sys.modules:
        import torchvision
    else:
        module: Any = ModuleType(_COMPILER)
        module.is_compile_supported = _is_compile_supported
        sys.modules[_COMPILER] = module
        try:
            import torchvision
        finally:
            del sys.modules[_COMPILER]
    return torchvision


torchvision: Any = _import()

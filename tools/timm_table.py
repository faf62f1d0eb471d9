"""Write docs/timm-families.md: the families of timm that have a CAM here, and those refused.

    python tools/timm_table.py

The first network of each family is built without weights. This takes some minutes.
"""

from pathlib import Path

import timm
from timm.models._registry import _model_to_module

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import architecture

_PAGE = Path(__file__).parents[1] / "docs" / "timm-families.md"
_HEAD = """# Families of timm

`python tools/timm_table.py` writes this page: the first network of each family of timm {version}.
[Other encoders](howto/encoders.md) explains the names. Other networks of a family may differ.

{num_supported} of {num_all} networks are supported.

| family | network | usual size, px | reason for the refusal |
|---|---|---|---|"""


def main() -> None:
    """Build the networks and write the page."""
    families: dict[str, str] = {}
    for name in timm.list_models():
        families.setdefault(_model_to_module[name], name)
    rows, num_supported = [], 0
    for family, name in sorted(families.items()):
        size, reason = "", ""
        try:
            size = str(architecture(f"timm:{name}").input_px)
            num_supported += 1
        except CheckpointError as error:
            text = str(error).removeprefix(f"timm:{name}").lstrip(": ")
            reason = text.replace("|", "/")
        rows.append(f"| {family} | `timm:{name}` | {size} | {reason} |")
    head = _HEAD.format(version=timm.__version__, num_supported=num_supported, num_all=len(rows))
    _PAGE.write_text("\n".join([head, *rows, ""]))


if __name__ == "__main__":
    main()

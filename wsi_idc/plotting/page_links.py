"""Links from the patients of an evaluation page to the patients' pages in a report."""

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from markupsafe import Markup

from wsi_idc.core.constants import SHORT_SHA
from wsi_idc.core.files import write_text

# A patient's page has the tag of its model in the first ``_HEAD_CHARS`` characters.
_TAG, _HEAD_CHARS = Markup('<meta name="wsi-idc-model" content="%s">'), 50_000
_ANCHOR = re.compile(r'<a data-patient="([^"]*)"(?: href="([^"]*)")?>')


def model_key(model: Mapping[str, Any]) -> str:
    """Return the key of a model in pages: the short SHA-256 of each checkpoint of the model."""
    members = model.get("ensemble") or [model]
    return " ".join(str(member["sha256"])[:SHORT_SHA] for member in members)


def model_tag(model: str) -> Markup:
    """Return the HTML tag with the model of a patient's page; ``model`` is its ``model_key``."""
    return _TAG % model


def relative_link(target: Path, page: Path) -> str:
    """Return the address of the file ``target`` for a link on ``page``."""
    return quote(os.path.relpath(target, page.parent))


def link_patients(page: Path, report: Path, model: str) -> None:
    """Link each patient of an evaluation page to the patient's page in the folder ``report``.

    If ``report`` has no page of a patient, the patient's old link is kept if its target exists.

    Args:
        page: Page whose patients are elements ``<a data-patient="ID">``.
        report: Folder of the patients' pages.
        model: Result of ``model_key``. Pages of other models are not linked.
    """

    def link(match: re.Match[str]) -> str:
        target, old = report / f"{html.unescape(match[1])}.html", match[2]
        if _is_of_model(target, model):
            href = relative_link(target, page)
        else:
            href = old if old and (page.parent / unquote(old)).is_file() else ""
        return f'<a data-patient="{match[1]}"' + (f' href="{href}">' if href else ">")

    text = page.read_text(encoding="utf-8")
    if (linked := _ANCHOR.sub(link, text)) != text:
        write_text(page, linked)


def _is_of_model(page: Path, model: str) -> bool:
    try:
        with page.open(encoding="utf-8") as file:
            return model_tag(model) in file.read(_HEAD_CHARS)
    except (OSError, ValueError):
        return False

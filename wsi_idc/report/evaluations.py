"""Find the evaluations of models, to link them with the pages of patients."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wsi_idc.core.constants import DEFAULT_EVALUATIONS, DEFAULT_RUNS, EVALUATION_PAGE, METRICS_JSON
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import parse_json, regular_file
from wsi_idc.plotting.page_links import model_key

_MAX_BYTES = 1e8  # largest metrics.json that is read


class EvaluationPage(NamedTuple):
    """Page of an evaluation, and the result of ``model_key`` for its model."""

    path: Path
    model: str


def find_evaluations() -> Iterator[EvaluationPage]:
    """Yield the pages of the evaluations in the folders of runs and in ``eval``."""
    folders = [*DEFAULT_RUNS.glob("*/*eval-*"), *DEFAULT_EVALUATIONS.glob("*")]
    for folder in sorted(folders):
        page = folder / EVALUATION_PAGE
        try:
            record = parse_json(
                regular_file(folder / METRICS_JSON, _MAX_BYTES).read_text(encoding="utf-8")
            )
            model = model_key(record["provenance"]["method"])
        except (WsiIdcError, OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not an evaluation, or a damaged one
        if page.is_file():
            yield EvaluationPage(page, model)

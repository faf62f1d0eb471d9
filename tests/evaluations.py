"""Evaluations of patches whose probabilities a test chooses, and checks of their pages."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.packs import PATCH_PX, Cell, make_pack
from wsi_idc.core.provenance import provenance
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import compute_metrics
from wsi_idc.evaluation.novelty import novelty_bins
from wsi_idc.evaluation.results import Evaluation, MetricSet
from wsi_idc.geometry.grid import cells_of
from wsi_idc.metrics.bootstrap import resample_patients, roc_and_pr_bands
from wsi_idc.metrics.classification import ece
from wsi_idc.metrics.patients import DISTANCES, border_distances, patient_table, summary

HOSTILE = "<img src=x onerror=alert(1)>"
METHOD = {
    "architecture": "cnn-bn",
    "checkpoint": "best.pt",
    "sha256": "cd" * 32,
    "input": {"patch_px": PATCH_PX, "mpp": 4.0, "input_px": None, "mean": [], "std": []},
    "cam_layer": "features",
    "metrics": {"epoch": 2},
    "tta": False,
    "smooth": False,
}


def patches(*patients: tuple[str, str, list[float]]) -> pd.DataFrame:
    """Return a row of patches of each patient: its name, labels as digits, and probabilities."""
    rows = [
        {"patient": name, "x": PATCH_PX * col, "y": 0, "label": int(label), "probability": value}
        for name, labels, probabilities in patients
        for col, (label, value) in enumerate(zip(labels, probabilities, strict=True))
    ]
    return pd.DataFrame(rows).astype({"probability": np.float32})


TWO_PATIENTS = patches(
    ("a", "00011", [0.1, 0.6, 0.2, 0.9, 0.3]), ("b", "0111", [0.4, 0.8, 0.7, 0.2])
)


def pack_of(path: Path, predictions: pd.DataFrame) -> Pack:
    """Return a pack of these patches."""
    cells = [
        Cell(row["patient"], row["y"] // PATCH_PX, row["x"] // PATCH_PX, row["label"])
        for row in predictions.to_dict("records")
    ]
    return make_pack(path, cells)


def evaluation_of(predictions: pd.DataFrame, *, threshold: float = 0.5, **record) -> Evaluation:
    """Evaluate predictions; a column probability_smoothed is final if there is one."""
    predictions = predictions.copy()
    label, patient = predictions["label"].to_numpy(), predictions["patient"].to_numpy()
    cells = cells_of(predictions[["x", "y"]].to_numpy(np.int32), patch_px=PATCH_PX)
    predictions["border_distance"] = border_distances(label, patient, cells)
    ids, code = np.unique(patient, return_inverse=True)
    weights = resample_patients(len(ids), seed=0, num_resamples=20)

    def metrics_of(column: str, rows: Any = slice(None)) -> MetricSet:
        return compute_metrics(predictions[rows], column, threshold, code[rows], weights)

    raw = final = metrics_of("probability")
    if "probability_smoothed" in predictions:
        final = metrics_of("probability_smoothed")
    masks = {step: (predictions["border_distance"] == step).to_numpy() for step in DISTANCES}
    table = patient_table(predictions, final.column, threshold=threshold)
    probability = predictions[final.column].to_numpy()
    return Evaluation(
        split="test",
        num_patients=len(ids),
        num_patches=len(predictions),
        num_unknown=0,
        final=final,
        raw=None if raw is final else raw,
        ece_uncalibrated=ece(label, predictions["probability"].to_numpy()),
        by_border={step: metrics_of(final.column, mask) for step, mask in masks.items()},
        patient_summary=summary(table, weights),
        novelty=novelty_bins(predictions, final.column, threshold),
        predictions=predictions,
        patients=table,
        bands=roc_and_pr_bands(
            label, probability, code, weights=weights[: 20 if len(ids) > 1 else 0]
        ),
        notes=(),
        record=provenance(
            method={**METHOD, "smooth": final is not raw, **record.pop("method", {})},
            data_fingerprint="ab" * 32,
            seed=0,
            num_resamples=20,
        )
        | record,
    )


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def sources(self) -> list[str]:
        names = ("src", "href", "srcset", "action", "data")
        return [
            value or "" for _, attrs in self.tags for key, value in attrs.items() if key in names
        ]


def check_page(path: Path) -> Page:
    """Assert that a page needs no other file and runs only its own script; return it."""
    page = Page(path)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources())
    assert "http" not in page.text.replace("http-equiv", "")
    assert "url(" not in page.text and "@import" not in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    (policy,) = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    script = re.search(r"<script>(.*)</script>", page.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "Research use only, never a diagnosis." in page.words
    assert not [word for word in (">nan<", ">None<", ">NaN<") if word in page.text]
    return page

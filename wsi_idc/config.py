"""What a training is asked to do, as one immutable value.

A field is spelled the same here, as flag (``learning_rate`` is ``--learning-rate``) and in
``run.json``; its help text is the flag's.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from wsi_idc.errors import RunError

PATCH_PX = 50
MAX_SEED = 2**32 - 1
DEFAULT_RUNS = Path("runs")
DEFAULT_MAPS = Path("maps")
PREDICT_BATCH_SIZE = 64


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides which weights a training ends with, but for the data.

    Raises:
        RunError: A value makes no sense.
    """

    model: str = _option(
        "cnn-bn",
        "Architecture.",
        choices=("cnn", "cnn-bn", "resnet18", "resnet50", "efficientnet-b0"),
    )
    weights: str = _option(
        "auto",
        "Start from ImageNet weights or from scratch; auto: ImageNet where the model has them.",
        choices=("auto", "imagenet", "none"),
    )
    split: str = _option(
        "auto",
        "canonical, canonical+unlisted, ratio:70/15/15, kfold:5/0, a CSV (patient,split), or auto: "
        "canonical where the patients are those of its lists, else ratio:70/15/15.",
    )
    seed: int = _option(0, "Seed of the split, the weights, the order and the augmentation.")
    epochs: int = _option(30, "At most so many passes over the train patches.")
    patience: int = _option(8, "Stop after so many epochs without a better val AP.")
    batch_size: int = _option(64, "Patches a step.")
    learning_rate: float = _option(
        0.0, "Peak of the warm-up and cosine schedule; 0: 1e-3 from scratch, 3e-4 from ImageNet."
    )
    weight_decay: float = _option(0.02, "Of AdamW.")
    imbalance: str = _option(
        "class-weights",
        "Weigh the loss by inverse class frequency, or not.",
        choices=("class-weights", "none"),
    )
    augment: str = _option(
        "light",
        "light: each patch in a random one of its 8 flips and quarter turns.",
        choices=("light", "none"),
    )
    precision: str = _option(
        "auto",
        "auto: bf16 on a GPU that has it, else fp32.",
        choices=("auto", "fp32", "bf16"),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise RunError(f"{option.name} {value!r} is not one of {', '.join(choices)}")
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise RunError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RunError(f"{name} is {getattr(self, name)}; it must be finite, 0 or more")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)

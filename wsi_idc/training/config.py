"""What a training is asked to do, as one immutable value.

A field is spelled the same here, as flag (``learning_rate`` is ``--learning-rate``) and in
``run.json``; its help text is the flag's.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wsi_idc.core.constants import MAX_SEED
from wsi_idc.core.errors import RunError
from wsi_idc.core.metric_table import MONITOR_METRICS

IMBALANCES = ("none", "class-weights", "oversample", "focal")


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides which checkpoint a training ends with, but for the data.

    Raises:
        RunError: A value makes no sense.
    """

    model: str = _option(
        "cnn-bn",
        "cnn, cnn-bn, resnet18, resnet50, efficientnet-b0, or any classifier of torchvision that "
        "ends in a convolutional feature map.",
    )
    weights: str = _option(
        "auto",
        "imagenet, none, or a .pt file to start from; auto: imagenet where the model has them.",
    )
    input_size: int = _option(
        0, "Resize patches to so many px; 0: the model's own size, for the CNNs as stored."
    )
    normalize: str = _option(
        "auto",
        "By mean and deviation of imagenet, of the dataset's train patients, or symmetric "
        "(-1 to 1); auto: as the weights want it, from scratch the dataset's.",
        choices=("auto", "imagenet", "dataset", "symmetric"),
    )
    freeze: int = _option(0, "Train the head alone for so many epochs first.")
    split: str = _option(
        "auto",
        "canonical, canonical+unlisted, ratio:70/15/15, kfold:5/0, a CSV (patient,split), or auto: "
        "canonical where the patients are those of its lists, else ratio:70/15/15.",
    )
    seed: int = _option(0, "Seed of the split, the weights, the order and the augmentation.")
    epochs: int = _option(30, "At most so many passes over the train patches.")
    monitor: str = _option(
        "average_precision",
        "Val metric that chooses the best epoch and stops early.",
        choices=(*MONITOR_METRICS, "loss"),
    )
    patience: int = _option(8, "Stop after so many epochs without a better one.")
    batch_size: int = _option(64, "Patches a step, over all devices.")
    optimizer: str = _option("adamw", "Optimiser.", choices=("adamw", "adam", "sgd"))
    learning_rate: float = _option(
        0.0,
        "Peak of the schedule; 0: 1e-3 from scratch, 3e-4 from given weights, ten times that "
        "for sgd.",
    )
    layer_decay: float = _option(
        1.0, "Learning rate of each stage over that of the next one nearer to the head; 1: equal."
    )
    weight_decay: float = _option(0.02, "Of the weights, not of biases and norms.")
    schedule: str = _option(
        "cosine",
        "Learning rate after the warm-up: half a cosine, a tenth on each plateau, or constant.",
        choices=("cosine", "plateau", "constant"),
    )
    warm_up: float = _option(0.05, "Share of all steps in which the learning rate rises.")
    clip_norm: float = _option(5.0, "Largest norm of the gradient; 0: any.")
    imbalance: str = _option(
        "class-weights",
        "none; class-weights: weigh the loss by inverse class frequency; oversample: draw both "
        "classes equally often; focal: weigh hard patches up.",
    )
    focal_gamma: float = _option(2.0, "Exponent of the focal loss; only with imbalance focal.")
    label_smoothing: float = _option(0.0, "Share of each label that is spread over both classes.")
    augment: str = _option(
        "light",
        "light: flips, quarter turns, a little of brightness, contrast, saturation; strong: also "
        "any angle, hue and stain.",
        choices=("none", "light", "strong"),
    )
    mixup: float = _option(0.0, "Blend pairs of patches by shares of Beta(a, a); 0: don't.")
    ema: float = _option(
        0.99, "Judge and keep a running average of the weights, each step's share 1 - this; 0: not."
    )
    precision: str = _option(
        "auto",
        "auto: bf16 on a GPU that has it, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )

    threshold_by: str = _option(
        "f1",
        "Threshold with the largest F1 on val, or with the largest sum of sensitivity and "
        "specificity (Youden).",
        choices=("f1", "youden"),
    )
    target_sensitivity: float = _option(
        0.0, "Instead, the largest threshold with at least this sensitivity on val; 0: don't."
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            _check_type(option.name, getattr(self, option.name), type(option.default))
        if self.imbalance not in IMBALANCES:
            # Asked for together often enough to deserve a reason.
            twice = {"class-weights", "oversample"} <= set(re.split(r"[+, ]+", self.imbalance))
            why = "both correct it in full, together twice; " if twice else ""
            raise RunError(
                f"imbalance {self.imbalance!r}: {why}choose one of {', '.join(IMBALANCES)}"
            )
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise RunError(f"{option.name} {value!r} is not one of {', '.join(choices)}")
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high or value == math.inf:
                wanted = f"finite, {low} or more" if high == math.inf else f"from {low} to {high}"
                raise RunError(f"{name} is {value}; it must be {wanted}")
        if self.imbalance != "focal" and self.focal_gamma != TrainConfig.focal_gamma:
            raise RunError(
                f"focal_gamma {self.focal_gamma:g} changes nothing where imbalance is "
                f"{self.imbalance}; leave it out, or choose imbalance focal"
            )

    @property
    def of_weights(self) -> dict[str, Any]:
        """The fields that decide the weights: all but how the finished ones are calibrated."""
        return {k: v for k, v in asdict(self).items() if k not in CALIBRATION}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)


# The fields that may change when a training is finished: they do not touch its weights.
CALIBRATION = ("threshold_by", "target_sensitivity")
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, MAX_SEED),
    "input_size": (0, 1024),
    "freeze": (0, math.inf),
    "learning_rate": (0, math.inf),
    "layer_decay": (0.01, 1),
    "weight_decay": (0, math.inf),
    "warm_up": (0, 1),
    "clip_norm": (0, math.inf),
    "focal_gamma": (0, 10),
    "label_smoothing": (0, 0.5),
    "mixup": (0, math.inf),
    "ema": (0, 0.99999),
    "target_sensitivity": (0, 1),
}


def _check_type(name: str, value: Any, wanted: type) -> None:
    """Raise RunError where a value is not of its field's type; a job file may hold anything."""
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or isinstance(value, bool):
        raise RunError(f"{name} is {value!r}; it must be of type {wanted.__name__}")

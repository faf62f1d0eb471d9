"""Settings of a training, as an immutable object; importing this module does not import torch.

A setting has the same name here, on the command line and in ``run.json``. The flag of
``learning_rate`` is ``--learning-rate``. Each help text here is also the help text of the flag.
"""

import functools
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_idc.core.constants import INTERPOLATIONS, MAX_SEED
from wsi_idc.core.errors import RunError
from wsi_idc.core.files import regular_file, sha256
from wsi_idc.core.metric_table import MONITOR_METRICS
from wsi_idc.models.checkpoint_files import MAX_BYTES, find_weights

if TYPE_CHECKING:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.splits import Split

ALL_FROZEN = "all"  # value of ``freeze``
IMBALANCES = ("none", "class-weights", "oversample", "focal")
# Settings that a linear probe does not support.
_NOT_FROZEN = ("label_smoothing", "mixup", "cutmix", "cell_loss")
# Settings that may change after a training, because they do not change the weights.
CALIBRATION_FIELDS = ("threshold_by", "target_sensitivity")
# Settings that were added after version 0.1.0, with their defaults.
_ADDED_FIELDS = {"cutmix": 0.0, "cell_loss": 0.0, "interpolation": "bilinear", "views": 1}
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "patience", "batch_size"), (1, math.inf)),
    **dict.fromkeys(("freeze", "learning_rate", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("clip_norm", "mixup", "cell_loss"), (0, math.inf)),
    **dict.fromkeys(("warm_up", "cutmix", "target_sensitivity"), (0, 1)),
    "seed": (0, MAX_SEED),
    "input_size": (0, 1024),
    "views": (1, 8),
    "layer_decay": (0.01, 1),
    "focal_gamma": (0, 10),
    "label_smoothing": (0, 0.5),
    "ema": (0, 0.99999),
}
# For each usual model: the input size in px (0: patches are not resized), and whether ImageNet
# weights exist. This table makes it unnecessary to import ``models.registry`` and torch.
KNOWN_MODELS = {
    **dict.fromkeys(("cnn", "cnn-bn"), (0, False)),
    "mobilenet-v2-s16": (96, False),
    **dict.fromkeys(("resnet18", "resnet50", "efficientnet-b0"), (224, True)),
}


def _option(
    default: Any, help_text: str, choices: tuple[str, ...] = (), words: tuple[str, ...] = ()
) -> Any:
    """Return a field of a setting; ``words`` are texts that a number may have as its value."""
    return field(default=default, metadata={"help": help_text, "choices": choices, "words": words})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training; RunError is raised for a wrong type or value."""

    model: str = _option(
        "cnn-bn",
        "Network: cnn, cnn-bn, mobilenet-v2-s16, resnet18, resnet50, efficientnet-b0, another "
        "classifier of torchvision, timm:NAME, or hf-hub:OWNER/NAME.",
    )
    weights: str = _option(
        "auto",
        "Initial weights: imagenet (the published weights of the model), none, bundled, a file "
        "(.pt, .safetensors), or a folder with model.safetensors or pytorch_model.bin. auto: "
        "imagenet if the model has published weights, else none.",
    )
    input_size: int = _option(
        0, "Side in px to which patches are resized; 0: usual size (cnn, cnn-bn: not resized)."
    )
    interpolation: str = _option(
        "auto",
        "Interpolation that resizes patches. auto: as the configuration of a network of timm "
        "demands; bilinear for other networks.",
        choices=("auto", *INTERPOLATIONS),
    )
    normalize: str = _option(
        "auto",
        "Source of the mean and deviation that normalize the input. dataset: train patients; "
        "symmetric: both are 0.5, for an input from -1 to 1; auto: initial weights, else dataset.",
        choices=("auto", "imagenet", "dataset", "symmetric"),
    )
    freeze: int | str = _option(
        0,
        "Number of epochs at the start that train only the head. all: fit the head to the features "
        "of a frozen network, by logistic regression (a linear probe).",
        words=(ALL_FROZEN,),
    )
    views: int = _option(
        1,
        "With --freeze all: views of each train patch, 1 to 8. View 1 is the patch, the others are "
        "its quarter turns and flips. Each view costs the time and the disk space of one.",
    )
    split: str = _option(
        "auto",
        "Split: canonical, canonical+unlisted, ratio:70/15/15, kfold:5/0, a CSV (patient,split) or "
        "auto. auto: canonical if its lists have 80 % of the patients, canonical+unlisted if they "
        "have half of them, else ratio:70/15/15.",
    )
    seed: int = _option(0, "Seed of the split, the weights, the order and the augmentation.")
    epochs: int = _option(30, "Largest number of passes over the train patches.")
    monitor: str = _option(
        "average_precision",
        "Metric on val that selects the best epoch and stops the training early. f1 and "
        "balanced_accuracy have their largest value over all thresholds.",
        choices=(*MONITOR_METRICS, "loss"),
    )
    patience: int = _option(8, "The training stops after this many epochs without a better value.")
    batch_size: int = _option(64, "Number of patches in a step, on all devices together.")
    optimizer: str = _option("adamw", "Optimizer.", choices=("adamw", "adam", "sgd"))
    learning_rate: float = _option(
        0.0,
        "Largest learning rate of the schedule. 0: 1e-3 without initial weights, 3e-4 with initial "
        "weights; for sgd, ten times as large.",
    )
    layer_decay: float = _option(
        1.0,
        "Learning rate of a stage, divided by the rate of the next stage; the head is the last "
        "stage. 1: equal rates.",
    )
    weight_decay: float = _option(0.02, "Weight decay of all weights, except biases and norms.")
    schedule: str = _option(
        "cosine",
        "Learning rate after the warm-up. cosine: falls like half a cosine; plateau: falls to a "
        "tenth after several epochs without a better value.",
        choices=("cosine", "plateau", "constant"),
    )
    warm_up: float = _option(
        0.05, "Length of the warm-up, in which the learning rate rises, as a fraction of all steps."
    )
    clip_norm: float = _option(5.0, "Largest norm of the gradient; 0: no limit.")
    imbalance: str = _option(
        "class-weights",
        "Correction of unequal class sizes: none, class-weights, oversample or focal. "
        "class-weights: weight the loss by inverse class frequency; oversample: draw both classes "
        "equally often; focal: give hard patches a larger weight.",
    )
    focal_gamma: float = _option(2.0, "Exponent of the focal loss; needs --imbalance focal.")
    label_smoothing: float = _option(
        0.0, "Fraction of each label that is spread over both classes."
    )
    augment: str = _option(
        "light",
        "Random changes of train patches. light: flips, quarter turns and small changes of "
        "brightness, contrast and saturation; strong: also rotations by any angle and changes of "
        "hue and stain.",
        choices=("none", "light", "strong"),
    )
    mixup: float = _option(
        0.0, "Mixup: pairs of patches are mixed with weights from Beta(MIXUP, MIXUP); 0: no mixup."
    )
    cutmix: float = _option(
        0.0,
        "Fraction of the train patches in which a random rectangle is replaced by that of another "
        "patch, instead of mixup.",
    )
    cell_loss: float = _option(
        0.0,
        "Weight of an additional loss: each cell of the last feature map predicts the label of the "
        "patch. The network needs average pooling and a linear head.",
    )
    ema: float = _option(
        0.99,
        "Decay of the running average of the weights; the average is evaluated and saved. 0: no "
        "average.",
    )
    precision: str = _option(
        "auto",
        "Number format. auto: bf16 on a GPU that supports bf16, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )

    threshold_by: str = _option(
        "f1",
        "Rule for the threshold. f1: largest F1 on val; youden: largest sum of sensitivity and "
        "specificity on val.",
        choices=("f1", "youden"),
    )
    target_sensitivity: float = _option(
        0.0,
        "Sensitivity that the threshold must reach on val. If it is not 0, the largest such "
        "threshold is used, and --threshold-by is ignored.",
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, kind = getattr(self, option.name), type(option.default)
            if isinstance(value, str) and value in option.metadata["words"]:
                continue
            is_valid = isinstance(value, (int, float) if kind is float else kind)
            if not is_valid or isinstance(value, bool):
                raise RunError(f"{option.name} is {value!r}; it must be of type {kind.__name__}")
            choices = option.metadata["choices"]
            if choices and value not in choices:
                raise RunError(f"{option.name} {value!r} is not one of {', '.join(choices)}")
        if self.imbalance not in IMBALANCES:
            # Users often combine class-weights and oversample, so the message explains the error.
            combined = {"class-weights", "oversample"} <= set(re.split(r"[+, ]+", self.imbalance))
            reason = "class-weights and oversample cannot be combined; " if combined else ""
            raise RunError(
                f"imbalance {self.imbalance!r}: {reason}choose one of {', '.join(IMBALANCES)}"
            )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, str):
                continue
            if not low <= value <= high or value == math.inf:
                limits = f"from {low} to {high}"
                if high == math.inf:
                    limits = f"at least {low}" if low else "finite, 0 or more"
                raise RunError(f"{name} is {value}; it must be {limits}")
        if self.imbalance != "focal" and self.focal_gamma != TrainConfig.focal_gamma:
            raise RunError(
                f"focal_gamma {self.focal_gamma:g} has no effect with imbalance {self.imbalance}; "
                "remove it, or choose imbalance focal"
            )
        if self.views > 1 and not self.is_probe:
            raise RunError(
                f"views {self.views} has no effect without freeze {ALL_FROZEN}: --augment changes "
                "the patches of other trainings; remove it"
            )
        if self.is_probe:
            unused = [name for name in _NOT_FROZEN if getattr(self, name)]
            unused += ["imbalance focal"] if self.imbalance == "focal" else []
            if unused:
                raise RunError(
                    f"freeze {ALL_FROZEN} fits only a linear layer, without {unused[0]}; leave out "
                    "one of them"
                )

    @property
    def is_probe(self) -> bool:
        """True if only the last layer is fitted, to the features of a frozen network."""
        return self.freeze == ALL_FROZEN

    @property
    def training_settings(self) -> dict[str, Any]:
        """Settings that the weights depend on.

        All settings except ``CALIBRATION_FIELDS``. A setting that version 0.1.0 did not have is
        left out while it has its default, so that finished runs of 0.1.0 are not repeated.
        """
        values = {k: v for k, v in asdict(self).items() if k not in CALIBRATION_FIELDS}
        return {k: v for k, v in values.items() if _ADDED_FIELDS.get(k) != v}


def resolved_config(config: TrainConfig, pack: "Pack", split: "Split") -> dict[str, Any]:
    """Return a dictionary with everything that determines the weights of a training.

    The dictionary contains settings, and fingerprints of the data, the split and the initial
    weights.
    """
    settings = resolve(config).training_settings
    # The result depends on the content of a file of initial weights, not on its path.
    settings["weights"] = weights_fingerprint(config) or settings["weights"]
    roles = json.dumps(sorted(split.roles.items()))
    return {
        **settings,
        "split": split.spec,
        "data": pack.info.source_fingerprint,
        "mpp": pack.info.mpp,
        "roles": hashlib.sha256(roles.encode()).hexdigest(),
    }


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the settings with the defaults of the model in place of "auto" and 0.

    The settings ``weights``, ``interpolation`` and ``normalize`` can be "auto". The settings
    ``input_size`` and ``learning_rate`` can be 0. With initial weights, ``normalize`` stays "auto".
    """
    name = config.model.replace("_", "-")
    interpolation = "bilinear"
    if name in KNOWN_MODELS:
        input_px, has_imagenet = KNOWN_MODELS[name]
    else:
        from wsi_idc.models.registry import architecture

        arch = architecture(config.model)
        name, input_px, has_imagenet = arch.name, arch.input_px or 0, arch.imagenet is not None
        interpolation = arch.interpolation
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if has_imagenet else "none"
    rate = (1e-3 if weights == "none" else 3e-4) * (10 if config.optimizer == "sgd" else 1)
    is_open = config.normalize == "auto" and weights == "none"
    return replace(
        config,
        model=name,
        weights=weights,
        normalize="dataset" if is_open else config.normalize,
        input_size=config.input_size or input_px,
        interpolation=interpolation if config.interpolation == "auto" else config.interpolation,
        learning_rate=config.learning_rate or rate,
    )


def monitored_value(record: dict[str, Any], metric: str) -> float:
    """Return the value of a metric in an epoch's record; a larger value is better.

    For the metric "loss", the result is the negative loss.
    """
    # Records of version 0.1.0 have only the value at a threshold of 0.5.
    value = float(record.get(f"val_largest_{metric}", record[f"val_{metric}"]))
    return -value if metric == "loss" else value


def is_weights_file(weights: str) -> bool:
    """Return whether ``weights``, a value of ``TrainConfig.weights``, is the path of a file."""
    return weights not in ("auto", "imagenet", "none")


def weights_fingerprint(config: TrainConfig) -> str | None:
    """Return the SHA-256 of the file of initial weights; None if ``weights`` is not a path."""
    if not is_weights_file(config.weights):
        return None
    try:
        path = regular_file(find_weights(Path(config.weights)), MAX_BYTES)
        status = path.stat()
        return _sha256(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise RunError(
            f"--weights {config.weights}: {error.strerror}; give imagenet, none or a .pt file"
        ) from None


@functools.cache
def _sha256(path: Path, *_version: int) -> str:
    """Return the SHA-256 of a file; a file is read again only if it has changed."""
    return sha256(path)

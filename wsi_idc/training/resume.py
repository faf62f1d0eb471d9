"""A training's state on disk: the checkpoint to use, and the state to go on from."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from wsi_idc.core.errors import RunError
from wsi_idc.models.checkpoint import Checkpoint, InputSpec
from wsi_idc.models.serialization import is_dense_tensor, load_state, read_state, write_state
from wsi_idc.training.runs import is_plain_number
from wsi_idc.training.state import Training, TrainState

logger = logging.getLogger(__name__)

STATE_FORMAT = "wsi-idc-training-state"
# What loading a state made to deceive, or of another run, can raise.
_UNFIT = (
    *(KeyError, TypeError, ValueError, RuntimeError, AttributeError),
    *(IndexError, OverflowError, RecursionError),
)
_COUNTS = ("epoch", "step", "best_epoch")
_SGD_STATE, _ADAM_STATE = {"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}


def to_checkpoint(training: Training) -> Checkpoint:
    """Return the present weights as a checkpoint, uncalibrated and without metrics."""
    classifier, info = training.judged, training.pack.info
    spec = InputSpec(
        patch_px=info.patch_px,
        mpp=info.mpp,
        input_px=classifier.input_px,
        mean=tuple(classifier.mean.flatten().tolist()),
        std=tuple(classifier.std.flatten().tolist()),
    )
    return Checkpoint(
        architecture=training.config.model,
        state=classifier.network.state_dict(),
        input=spec,
        class_names=info.class_names,
        cam_layer=classifier.arch.cam_layer,
        temperature=1.0,
        threshold=0.5,
        metrics={},
        split=dict(training.split.roles),
        split_spec=training.split.spec,
        provenance=training.record,
        config=training.config.as_dict(),
        inherited=training.inherited,
    )


def save_state(training: Training) -> None:
    """Write the run's last.pt in one atomic step, if this is the process that writes."""
    if not training.world.is_writer:
        return
    average = training.average
    content = {
        "format": STATE_FORMAT,
        "network": training.classifier.network.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        # Memory that ran out would run out again; what was merely asked for may change.
        "micro_batch": training.micro_batch if training.micro_batch_reduced else None,
        "compute": str(training.compute),
        "place": asdict(training.place),
    }
    write_state(training.run.last, content)


def resume(training: Training) -> None:
    """Go on where the run's last.pt is.

    Raises:
        RunError: The state is not of this run.
    """
    path = training.run.last
    content = read_state(path, kind=STATE_FORMAT)
    try:
        load_state(training.classifier.network, content["network"])
        if training.average is not None:
            training.average.load_state_dict(content["average"])
            if int(training.average.n_averaged) < 0:
                raise ValueError("the average is of no number of steps")
        _load_optimizer(content["optimizer"], training.optimizer)
        training.scaler.load_state_dict(content["scaler"])
        if content["micro_batch"] is not None:
            training.micro_batch = max(1, min(training.micro_batch, int(content["micro_batch"])))
            training.micro_batch_reduced = True
        before, now = str(content["compute"]), str(training.compute)
        training.place = _train_state(content["place"], monitor=training.config.monitor)
    except _UNFIT as error:
        raise RunError(
            f"{path}: the state does not fit this run ({type(error).__name__}); "
            "delete it to train anew"
        ) from None
    if before != now:
        logger.warning("begun on %s, going on on %s: not the very same numbers", before, now)


def _train_state(content: Mapping[str, Any], *, monitor: str) -> TrainState:
    """Return the place that a file states; ValueError where no training can be there."""
    place = TrainState(**content)
    if any(type(getattr(place, name)) is not int or getattr(place, name) < 0 for name in _COUNTS):
        raise ValueError("an epoch or step is no count")
    # Of ``best``, minus infinity is the beginning.
    if not all(math.isfinite(one) for one in (place.loss_sum, max(place.best, 0.0))):
        raise ValueError("a sum is not a finite number")
    if not 0 <= place.seconds < math.inf:
        raise ValueError("the time spent is no time")
    epochs = [record["epoch"] for record in place.history]
    counted = len(epochs) == place.epoch and epochs == list(range(1, len(epochs) + 1))
    if not counted or place.best_epoch > place.epoch:
        raise ValueError("the history is not that of its epochs")
    for record in place.history:
        if not all(is_plain_number(value) for value in record.values()):
            raise ValueError("the history holds something else than numbers")
        if f"val_{monitor}" not in record:
            raise ValueError(f"the history lacks val {monitor}")
    return place


def _load_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load an optimiser's state, all but its settings, which the configuration decides.

    Raises:
        ValueError: It is of another optimiser, or of other parameters.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    order = [number for group in content["param_groups"] for number in group["params"]]
    if order != list(range(len(parameters))):
        raise ValueError("the optimiser's parameters are in another order")
    wanted = _SGD_STATE if isinstance(optimizer, torch.optim.SGD) else _ADAM_STATE
    for number, state in content["state"].items():
        if set(state) != wanted:
            raise ValueError("the state is of another optimiser")
        for name, value in state.items():
            shape = () if name == "step" else parameters[number].shape
            if not is_dense_tensor(value) or value.shape != shape or not value.is_floating_point():
                raise ValueError("the optimiser's state is of other parameters")
        if not 0 <= float(state.get("step", 0)) < math.inf:
            raise ValueError("the optimiser's steps are no count")
    # Copied: two places of a tensor that came from a file may be one in memory.
    copies = {
        number: {name: value.clone() for name, value in state.items()}
        for number, state in content["state"].items()
    }
    optimizer.load_state_dict({**content, "state": copies})
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)

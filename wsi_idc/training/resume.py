"""Save the state of a training, and resume from it."""

import logging
from dataclasses import asdict

from wsi_idc.core.errors import RunError
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_state, read_state, write_state
from wsi_idc.training.state import Training, TrainState

logger = logging.getLogger(__name__)
STATE_FORMAT = "wsi-idc-training-state"


def to_checkpoint(training: Training) -> Checkpoint:
    """Return a checkpoint of the current weights, without calibration and metrics."""
    classifier, info = training.ema_model, training.pack.info
    return Checkpoint(
        architecture=training.config.model,
        state=classifier.network.state_dict(),
        input=InputSpec(
            patch_px=info.patch_px,
            mpp=info.mpp,
            input_px=classifier.input_px,
            mean=tuple(classifier.mean.flatten().tolist()),
            std=tuple(classifier.std.flatten().tolist()),
        ),
        class_names=info.class_names,
        cam_layer=classifier.arch.cam_layer,
        temperature=1.0,
        threshold=0.5,
        metrics={},
        split=dict(training.split.roles),
        split_spec=training.split.spec,
        provenance=training.provenance,
        config=asdict(training.config),
        inherited=training.pretraining_patients,
    )


def save_state(training: Training) -> None:
    """Write the state of a training to last.pt, atomically; only the main process writes."""
    if not training.world.is_main:
        return
    average = training.average
    content = {
        "format": STATE_FORMAT,
        "network": training.classifier.network.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        # None if the size was not reduced: then, a resumed training may have another size.
        "micro_batch": training.micro_batch if training.micro_batch_reduced else None,
        "compute": str(training.device_config),
        "place": asdict(training.state),
    }
    write_state(training.run.last, content)


def resume(training: Training) -> None:
    """Read the state of a training from last.pt into ``training``."""
    path = training.run.last
    content, _ = read_state(path, kind=STATE_FORMAT)
    try:
        load_state(training.classifier.network, content["network"])
        if training.average is not None:
            training.average.load_state_dict(content["average"])
        training.optimizer.load_state_dict(content["optimizer"])
        for parameter, state in training.optimizer.state.items():
            if any(value.ndim and value.shape != parameter.shape for value in state.values()):
                raise ValueError("the optimizer's state has the shapes of another network")
        training.scaler.load_state_dict(content["scaler"])
        training.state = TrainState(**content["place"])
        epochs = [record["epoch"] for record in training.state.history]
        if epochs != list(range(1, training.state.epoch + 1)):
            raise ValueError("the history does not match the number of epochs")
        if content["micro_batch"] is not None:
            training.micro_batch = max(1, min(training.micro_batch, content["micro_batch"]))
            training.micro_batch_reduced = True
        before, now = content["compute"], str(training.device_config)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(
            f"{path}: the state does not fit this run ({type(error).__name__}); delete the file "
            "to train from the start"
        ) from None
    if before != now:
        logger.warning("started on %s, resumed on %s: results may differ slightly", before, now)

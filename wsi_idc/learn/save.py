"""A training's state on disk: the checkpoint to use, and the state to go on from."""

import logging
from dataclasses import asdict

from wsi_idc.errors import RunError
from wsi_idc.learn.state import Place, Training
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_dict, load_state, save_dict

logger = logging.getLogger(__name__)

STATE_FORMAT = "wsi-idc-training-state"


def as_checkpoint(training: Training) -> Checkpoint:
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
        "micro_batch": training.micro_batch if training.was_halved else None,
        "compute": str(training.compute),
        "place": asdict(training.place),
    }
    save_dict(training.run.last, content)


def resume(training: Training) -> None:
    """Go on where the run's last.pt is.

    Raises:
        RunError: The state is not of this run.
    """
    path = training.run.last
    content = load_dict(path, kind=STATE_FORMAT)
    try:
        load_state(training.classifier.network, content["network"])
        if training.average is not None:
            training.average.load_state_dict(content["average"])
        training.optimizer.load_state_dict(content["optimizer"])
        training.scaler.load_state_dict(content["scaler"])
        if content["micro_batch"] is not None:
            training.micro_batch = min(training.micro_batch, int(content["micro_batch"]))
            training.was_halved = True
        before, now = content["compute"], str(training.compute)
        training.place = Place(**content["place"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(
            f"{path}: the state does not fit this run ({type(error).__name__}); "
            "delete it to train anew"
        ) from None
    if before != now:
        logger.warning("begun on %s, going on on %s: not the very same numbers", before, now)

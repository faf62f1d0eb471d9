"""One step of a training: augment, run the network, follow the gradient."""

import contextlib
import logging
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wsi_idc.core.errors import RunError
from wsi_idc.data.augmentation import AugmentParams, augment, mix
from wsi_idc.models.classifier import to_images
from wsi_idc.training.batches import Batch
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)


def prepare_model(training: Training) -> None:
    """Put the network into the mode of the present epoch, and wrap it as the devices want it."""
    classifier, place = training.classifier, training.place
    is_frozen = place.epoch < training.config.freeze
    classifier.train()
    head = classifier.network.get_submodule(classifier.arch.head)
    for parameter in classifier.network.parameters():
        parameter.requires_grad_(not is_frozen)
    head.requires_grad_(True)
    if is_frozen:
        # A frozen batch norm keeps its statistics too.
        classifier.eval()
        head.train()
    is_wrapped = training.model is not classifier
    if is_wrapped and place.epoch != training.config.freeze:
        return
    model: nn.Module = classifier
    if training.compute.compiled:
        model = cast(nn.Module, torch.compile(model))
    if training.world.size > 1:
        # It notes once, here, which weights are trained.
        model = DistributedDataParallel(model)
    training.model = model


def step(training: Training, batch: Batch) -> None:
    """Do one step; its loss is added to ``training.pending_loss``.

    A device that runs out of memory gets the batch in smaller parts, from now on.

    Raises:
        RunError: Not even one patch fits, or several processes train together.
    """
    while not _fits(training, batch):
        training.optimizer.zero_grad(set_to_none=True)
        if training.compute.device.type == "cuda":
            torch.cuda.empty_cache()
        _halve(training)
    optimizer, scaler = training.optimizer, training.scaler
    if training.config.clip_norm:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(training.classifier.parameters(), training.config.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    if training.average is not None:
        training.average.update_parameters(training.classifier)


def _fits(training: Training, batch: Batch) -> bool:
    """Compute the gradient; return whether the device had the memory for it."""
    try:
        training.pending_loss += _backward(training, batch)
    except torch.OutOfMemoryError:
        return False
    return True


def _halve(training: Training) -> None:
    smaller = training.micro_batch // 2
    if smaller == 0 or training.world.size > 1:
        raise RunError(
            f"out of memory on {training.compute.device} with {training.micro_batch} patches at "
            f"once; give --micro-batch {max(1, smaller)}, or a smaller --input-size or --model"
        )
    training.micro_batch, training.micro_batch_reduced = smaller, True
    logger.warning(
        "out of memory on %s: from here on %d patches at once, still %d a step",
        training.compute.device,
        smaller,
        training.config.batch_size,
    )


def _backward(training: Training, batch: Batch) -> Tensor:
    """Add up the gradient of a batch, part by part; return the loss of this process's patches."""
    device, objective, world = training.compute.device, training.objective, training.world
    training.optimizer.zero_grad(set_to_none=True)
    # The network draws from the global generators: dropout.
    torch.manual_seed(batch.seed + world.rank)
    total = objective.total(batch.all_labels.to(device))
    loss_sum = torch.zeros((), device=device)
    # As many parts in each process: batch norm over all of them waits in each.
    largest = -(-len(batch.all_labels.label) // world.size)
    num_parts = -(-largest // training.micro_batch)
    for number in range(num_parts):
        part = slice(*(len(batch) * at // num_parts for at in (number, number + 1)))
        with _not_yet_shared(training.model, more=number + 1 < num_parts):
            images = _images(batch, part, device)
            with training.compute.autocast():
                logits = training.model(images)
            loss = objective.sum(logits, batch.labels.take(part).to(device)) / total
            # The processes' gradients are averaged, and the loss is a sum over all of them.
            training.scaler.scale(loss * world.size).backward()
        loss_sum += loss.detach()
    return loss_sum


def _images(batch: Batch, part: slice, device: torch.device) -> Tensor:
    """Return the augmented images (n, 3, H, W) of a part of a batch, on the device."""

    def images(patches: Tensor, draws: AugmentParams) -> Tensor:
        on_device = patches[part].to(device, non_blocking=True)
        return augment(to_images(on_device), draws.take(part))

    found = images(batch.patches, batch.draws)
    if batch.others is None:
        return found
    assert batch.labels.share is not None
    return mix(found, images(*batch.others), batch.labels.share[part].to(device))


def _not_yet_shared(model: nn.Module, *, more: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context in which gradients stay in this process while ``more`` is to come."""
    if more and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()

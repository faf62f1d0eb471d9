"""One training step: augmentation, forward and backward pass, update of the weights."""

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
    """Prepare the model for the current epoch: freeze layers, compile, and wrap with DDP."""
    classifier, epoch = training.classifier, training.state.epoch
    is_frozen = epoch < training.config.freeze
    classifier.train(not is_frozen)  # eval mode: a frozen batch norm keeps its statistics
    classifier.network.requires_grad_(not is_frozen)
    head = classifier.network.get_submodule(classifier.arch.head)
    head.train()
    head.requires_grad_(True)
    if training.model is not classifier and epoch != training.config.freeze:
        return  # the model is already compiled or wrapped
    model: nn.Module = classifier
    if training.device_config.compiled:
        model = cast(nn.Module, torch.compile(model))
    if training.world.size > 1:
        # DDP does not notice later changes of frozen weights, so each change needs a new wrapper.
        model = DistributedDataParallel(model)
    training.model = model


def train_step(training: Training, batch: Batch) -> None:
    """Train on one batch, and add its loss to ``training.pending_loss``.

    If the device runs out of memory, this batch and all later batches are computed in
    smaller parts.
    """
    while not _fits_in_memory(training, batch):
        training.optimizer.zero_grad(set_to_none=True)
        if training.device_config.device.type == "cuda":
            torch.cuda.empty_cache()
        _halve_micro_batch(training)
    optimizer, scaler = training.optimizer, training.scaler
    if training.config.clip_norm:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(training.classifier.parameters(), training.config.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    if training.average is not None:
        training.average.update_parameters(training.classifier)


def _fits_in_memory(training: Training, batch: Batch) -> bool:
    """Compute the gradient of a batch; return False if the device ran out of memory."""
    with contextlib.suppress(torch.OutOfMemoryError):
        training.pending_loss += _compute_gradient(training, batch)
        return True
    return False


def _halve_micro_batch(training: Training) -> None:
    device, smaller = training.device_config.device, training.micro_batch // 2
    if smaller == 0 or training.world.size > 1:
        raise RunError(
            f"out of memory on {device} with {training.micro_batch} patches at once; give "
            f"--micro-batch {max(1, smaller)}, or a smaller --input-size or --model"
        )
    training.micro_batch, training.micro_batch_reduced = smaller, True
    message = "out of memory on %s: computing %d patches at once from now on, still %d per step"
    logger.warning(message, device, smaller, training.config.batch_size)


def _compute_gradient(training: Training, batch: Batch) -> Tensor:
    """Compute the gradient of a batch, part by part; return the loss of this process's patches."""
    device, world = training.device_config.device, training.world
    training.optimizer.zero_grad(set_to_none=True)
    # Dropout uses the global random generators, so they are seeded for each batch.
    torch.manual_seed(batch.seed + world.rank)
    normalizer = training.loss.normalizer(batch.all_targets.to(device))
    loss_sum = torch.zeros((), device=device)
    # Synchronized batch norm needs the same number of parts in each process.
    max_patches = -(-len(batch.all_targets.label) // world.size)
    num_parts, num_patches = -(-max_patches // training.micro_batch), len(batch.patches)
    for number in range(num_parts):
        part = slice(num_patches * number // num_parts, num_patches * (number + 1) // num_parts)
        sync: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if number + 1 < num_parts and isinstance(training.model, DistributedDataParallel):
            sync = training.model.no_sync()  # gradients are exchanged after the last part
        with sync:
            images = _augmented_images(batch, part, device)
            with training.device_config.autocast():
                logits = training.model(images)
            targets = batch.targets.take(part).to(device)
            loss = training.loss.loss_sum(logits, targets) / normalizer
            # DDP computes the mean of the gradients over all processes, but their sum is needed.
            training.scaler.scale(loss * world.size).backward()
        loss_sum += loss.detach()
    return loss_sum


def _augmented_images(batch: Batch, part: slice, device: torch.device) -> Tensor:
    """Augment a part of a batch on the device; return the images, shape (n, 3, H, W)."""

    def images_of(patches: Tensor, params: AugmentParams) -> Tensor:
        on_device = patches[part].to(device, non_blocking=True)
        return augment(to_images(on_device), params.take(part))

    images = images_of(batch.patches, batch.params)
    if batch.mixed_in is None:
        return images
    others, params, weight = batch.mixed_in
    return mix(images, images_of(others, params), weight[part].to(device))

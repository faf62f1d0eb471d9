"""One training step: augmentation, forward and backward pass, update of the weights."""

import contextlib
import logging
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from wsi_idc.core.errors import RunError
from wsi_idc.data.augmentation import AugmentParams, augment, mix
from wsi_idc.models.classifier import to_images
from wsi_idc.training.batches import Batch
from wsi_idc.training.loss import Targets
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)


def prepare_model(training: Training) -> None:
    """Prepare the model for the current epoch: freeze layers, compile, and wrap with DDP."""
    classifier, epoch, num_frozen = (
        training.classifier,
        training.state.epoch,
        training.config.freeze,
    )
    assert isinstance(num_frozen, int)
    is_frozen = epoch < num_frozen
    classifier.train(not is_frozen)  # eval mode: a frozen batch norm keeps its statistics
    classifier.network.requires_grad_(not is_frozen)
    head = classifier.network.get_submodule(classifier.arch.head)
    head.train()
    head.requires_grad_(True)
    if training.model is not classifier and epoch != num_frozen:
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
            targets = batch.targets.take(part).to(device)
            with training.device_config.autocast(), _last_feature_map(training) as features:
                logits = training.model(images)
            loss = training.loss.loss_sum(logits, targets)
            if training.config.cell_loss:
                weight = None if batch.mixed_in is None else batch.mixed_in[2][part].to(device)
                loss = loss + training.config.cell_loss * _cell_loss(
                    training, features[-1], targets, weight
                )
            loss = loss / normalizer
            # DDP computes the mean of the gradients over all processes, but their sum is needed.
            training.scaler.scale(loss * world.size).backward()
        loss_sum += loss.detach()
    return loss_sum


@contextlib.contextmanager
def _last_feature_map(training: Training) -> Iterator[list[Tensor]]:
    """Context manager that yields a list. A forward pass adds the last feature map to this list."""
    outputs: list[Tensor] = []
    if not training.config.cell_loss:
        yield outputs
        return
    classifier = training.classifier
    layer = classifier.network.get_submodule(classifier.arch.cam_layer)
    with layer.register_forward_hook(lambda *call: outputs.append(call[-1])):
        yield outputs


def _cell_loss(
    training: Training, features: Tensor, targets: Targets, weight: Tensor | None
) -> Tensor:
    """Return the sum over all patches of the mean loss of the cells of the last feature map.

    Args:
        training: State of the training.
        features: Last feature map, shape (n, C, h, w).
        targets: Targets of the patches.
        weight: Weight of each px of the patches, shape (n, 1, H, W) or (n, 1, 1, 1); the patch that
            is mixed in has the rest. None without mixing.
    """
    head = training.classifier.head
    # Average pooling and the head are linear, so the logits of a patch are the mean of its cells.
    cells = torch.einsum("nchw,kc->nkhw", features.float(), head.weight.float())
    cells = cells + head.bias.float()[:, None, None]
    if weight is not None:
        lam = F.adaptive_avg_pool2d(weight, (cells.shape[2], cells.shape[3]))
        targets = targets._replace(lam=lam[:, 0])
    return training.loss.cell_loss_sum(cells, targets)


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

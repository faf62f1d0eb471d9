"""Search over settings of a training: one run a trial, any number of processes on one search.

Every process does the same: claim a trial, train it in its own run directory, tell what came of
it, until none is left. A trial of a process that was stopped or killed goes on where it was.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from wsi_idc.core.errors import CheckpointError, DataError, JobError, RunError, StoppedError
from wsi_idc.core.files import write_json
from wsi_idc.core.provenance import provenance
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, make_split
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.pretrained import weights_file
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.search.config import SearchSpec, format_point
from wsi_idc.search.results import SearchResult, rank_trials, run_folder, write_result
from wsi_idc.search.study import Pruned, Study, TrialLease, wait_for_search_lock
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.resolve_config import resolve, weights_fingerprint
from wsi_idc.training.runs import Run, describe_changes
from wsi_idc.training.train import train

logger = logging.getLogger(__name__)

FORMAT = "wsi-idc-search"
_LONGEST_VALUE = 120


def search(
    spec: SearchSpec,
    pack: Pack,
    *,
    folder: Path,
    device: str = "auto",
    stop: StopRequest | None = None,
) -> SearchResult:
    """Do the trials that are left of a search, beside other processes that do the same.

    Args:
        spec: What to search over.
        pack: The data.
        folder: Of the study, the results and the trials' runs.
        device: As ``select_device`` takes it.
        stop: Asks to save and leave.

    Returns:
        All trials as they are now, also those of other processes.

    Raises:
        StoppedError: ``stop`` was set; everything is saved and the same call goes on.
        JobError: ``folder`` holds something else than this search.
        CheckpointError: There is no such model, or its ImageNet weights are not on this machine.
        DataError: A split cannot be made.
        DeviceError: There is no such device, or not with this precision.
    """
    asked = {**spec.as_dict(), "data": pack.info.source_fingerprint}
    # Whatever can be refused is refused before the folder is made.
    _check_folder(folder, asked)
    _check_settings(spec, pack, device)
    with wait_for_search_lock(folder, stop):
        if not _check_folder(folder, asked):
            record = {"format": FORMAT, "asked": asked, "provenance": provenance()}
            write_json(folder / "search.json", record)
    study = Study(spec, folder, stop=stop)
    while True:
        raise_if_stopped(stop, f", saved in {folder}")
        with study.claimed() as claim:
            if claim is None:
                break
            _log_start(study, claim)
            run = Run(run_folder(folder, claim.number))
            _run_trial(spec, claim, pack, run=run, device=device, stop=stop)
    # Reading and writing under one lock: whoever is last has seen all that was told.
    with study.locked():
        result = SearchResult(spec, folder, rank_trials(study.trials()))
        write_result(result)
    return result


def _check_folder(folder: Path, asked: dict[str, Any]) -> bool:
    """Return whether the search was begun; raise where the folder holds something else."""
    file = folder / "search.json"
    if not file.exists():
        if folder.exists() and not folder.is_dir():
            raise JobError(f"{folder} is a file; give another name")
        if any(not path.name.startswith(".") for path in folder.glob("*")):
            raise JobError(f"{folder} is not empty and no search; give another name")
        return False
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{file}: not readable ({error}); give another name") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise JobError(f"{file}: not of a search; give another name")
    if changed := describe_changes(record.get("asked"), asked, max_length=_LONGEST_VALUE):
        raise JobError(f"{folder} holds another search ({changed}); give this one another name")
    return True


def _check_settings(spec: SearchSpec, pack: Pack, device: str) -> None:
    """Raise where there is no such device, model or file of weights, or no split can be made."""
    for config in map(spec.config, spec.points("precision")):
        select_device(device, config.precision)
    for config in map(resolve, map(spec.config, spec.points("model", "weights", "input_size"))):
        arch = architecture(config.model)
        check_input_px(arch, config.input_size or pack.info.patch_px)
        weights_fingerprint(config)
        # A trial that failed stays so, and this can be mended.
        if config.weights == "imagenet" and arch.imagenet and not weights_file(arch).exists():
            raise CheckpointError(
                f"ImageNet weights of {arch.name} are not on this machine; run `wsi-idc "
                f"fetch-weights {arch.name}` where there is internet, or search with weights none"
            )
    if {"seed", "split"} & spec.axes.keys():
        logger.warning("trials with another seed or split may be measured on other val patients")
    for config in map(spec.config, spec.points("split")):
        make_split(pack, config.split, seed=config.seed)


def _log_start(study: Study, claim: TrialLease) -> None:
    over = sum(trial.state in ("complete", "pruned", "failed") for trial in study.trials())
    total = max(study.spec.num_trials, claim.number + 1)
    logger.info(
        "trial %d (%d of %d done): %s", claim.number, over, total, format_point(claim.point)
    )


def _run_trial(
    spec: SearchSpec,
    claim: TrialLease,
    pack: Pack,
    *,
    run: Run,
    device: str,
    stop: StopRequest | None,
) -> None:
    """Train one trial and tell what came of it; what is the trial's own fault fails it alone."""
    try:
        config = spec.config(claim.point)
        checkpoint = train(
            config,
            pack,
            _split_of(config, pack),
            run=run,
            device_config=select_device(device, config.precision),
            stop=stop,
            on_epoch=claim.on_epoch if spec.prune else None,
        )
    except StoppedError:
        claim.pause()
        raise
    except Pruned:
        claim.prune()
        logger.info("trial %d pruned", claim.number)
        return
    except (RunError, CheckpointError) as error:
        _fail(claim, error)
        return
    except torch.OutOfMemoryError:
        _fail(claim, "the device has too little memory; use a smaller batch_size or model")
        return
    metrics = dict(checkpoint.metrics["val"])
    value = metrics[spec.metric]
    if not math.isfinite(value):
        _fail(claim, f"its {spec.metric} is not a number")
        return
    claim.complete(
        value,
        metrics=metrics,
        best_epoch=checkpoint.metrics["epoch"],
        config={**checkpoint.config, "split": checkpoint.split_spec},
    )
    logger.info("trial %d: val %s %.4f", claim.number, spec.metric, value)


def _split_of(config: TrainConfig, pack: Pack) -> Split:
    try:
        return make_split(pack, config.split, seed=config.seed)
    except DataError as error:  # of this seed, while another one may do
        raise RunError(str(error)) from None


def _fail(claim: TrialLease, reason: object) -> None:
    claim.fail(str(reason))
    logger.warning("trial %d failed: %s", claim.number, reason)

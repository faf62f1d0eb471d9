"""Search for good training settings. Several processes may work on the same search.

Each process claims a trial, trains in the run directory of the trial, and records the result. The
process repeats these steps until no trial is left. If a process is stopped or killed, its trial is
resumed later.
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
from wsi_idc.data.splits import make_split
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.pretrained import check_imagenet
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.search.config import SearchSpec, format_point
from wsi_idc.search.results import SearchResult, rank_trials, run_folder, write_result
from wsi_idc.search.study import Pruned, Study, TrialLease, TrialState, wait_for_search_lock
from wsi_idc.training.config import resolve, weights_fingerprint
from wsi_idc.training.runs import Run, describe_changes
from wsi_idc.training.train import train

logger = logging.getLogger(__name__)

FORMAT = "wsi-idc-search"


def search(
    spec: SearchSpec,
    pack: Pack,
    *,
    folder: Path,
    device: str = "auto",
    stop: StopRequest | None = None,
) -> SearchResult:
    """Train the remaining trials of a search. Other processes may train trials at the same time.

    Args:
        spec: Specification of the search.
        pack: Pack that contains the train and val patches of all trials.
        folder: Folder for the study, the results and the runs of the search.
        device: Name of the device, as for ``select_device``.
        stop: Request of the user to save and stop.

    Returns:
        Results of all trials, including the trials of other processes.

    Raises:
        StoppedError: ``stop`` was set. The state is saved, and the same call resumes the search.
        JobError: ``folder`` contains files that do not belong to this search.
        CheckpointError: A model does not exist, or its ImageNet weights are not on this machine.
        DataError: The patients cannot be split as a trial requires.
        DeviceError: The device does not exist or does not support the precision of a trial.
    """
    settings = {**spec.as_dict(), "data": pack.info.source_fingerprint}
    # Check the arguments before the folder is created.
    _is_started(folder, settings)
    _check_settings(spec, pack, device)
    with wait_for_search_lock(folder, stop):
        if not _is_started(folder, settings):
            record = {"format": FORMAT, "asked": settings, "provenance": provenance()}
            write_json(folder / "search.json", record)
    study = Study(spec, folder, stop=stop)
    while True:
        raise_if_stopped(stop, f", saved in {folder}")
        with study.claimed() as lease:
            if lease is None:
                break
            _train_trial(study, lease, pack, device=device, stop=stop)
    # Read and write under one lock, so that no process overwrites newer results with older results.
    with wait_for_search_lock(folder, stop):
        result = SearchResult(spec, folder, rank_trials(study.trials()))
        write_result(result)
    return result


def _is_started(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether the search was started in ``folder``.

    Raises:
        JobError: The folder contains other files, or a search with other settings.
    """
    file = folder / "search.json"
    if not file.exists():
        if folder.exists() and not folder.is_dir():
            raise JobError(f"{folder} is a file; give the search another name")
        if any(not path.name.startswith(".") for path in folder.glob("*")):
            raise JobError(f"{folder} has files but no search; give the search another name")
        return False
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{file}: not readable ({error}); give the search another name") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise JobError(f"{file}: this is not a record of a search; give the search another name")
    if changes := describe_changes(record.get("asked"), settings, max_length=120):
        raise JobError(f"{folder} holds another search ({changes}); give this search another name")
    return True


def _check_settings(spec: SearchSpec, pack: Pack, device: str) -> None:
    """Check that the device, and the models, weights and splits of all trials can be used.

    If not, raise an error before the first trial starts.
    """
    for config in map(spec.config, spec.points("precision")):
        select_device(device, config.precision, training=True)
    for config in map(resolve, map(spec.config, spec.points("model", "weights", "input_size"))):
        arch = architecture(config.model)
        check_input_px(arch, config.input_size or pack.info.patch_px)
        weights_fingerprint(config)
        # Missing weights end the search here. The user can download them and run the search again.
        if config.weights == "imagenet" and arch.imagenet:
            check_imagenet(arch)
    if {"seed", "split"} & spec.axes.keys():
        logger.warning("trials with different seeds or splits may have different val patients")
    for config in map(spec.config, spec.points("split")):
        make_split(pack, config.split, seed=config.seed)


def _train_trial(
    study: Study, lease: TrialLease, pack: Pack, *, device: str, stop: StopRequest | None
) -> None:
    """Train a trial and record its result.

    If the settings of the trial cause an error, record the error, so that the search continues.
    """
    spec, number = study.spec, lease.number
    trials = study.trials()
    num_done = sum(trial.state in ("complete", "pruned", "failed") for trial in trials)
    total, point = max(spec.num_trials, number + 1), format_point(lease.point)
    logger.info("trial %d (%d of %d trials are done): %s", number, num_done, total, point)
    for trial in trials:
        # Training is deterministic: the same point gives the same result.
        if trial.state == "complete" and trial.same_as is None and trial.point == lease.point:
            names = ("metrics", "best_epoch", "config")
            result = {name: getattr(trial, name) for name in names} | {"same_as": trial.number}
            lease.finish(TrialState.COMPLETE, trial.value, result=result)
            logger.info("trial %d repeats trial %d; the result is copied", number, trial.number)
            return
    try:
        config = spec.config(lease.point)
        try:
            split = make_split(pack, config.split, seed=config.seed)
        except DataError as error:  # a trial with another seed may succeed
            raise RunError(str(error)) from None
        checkpoint = train(
            config,
            pack,
            split,
            run=Run(run_folder(study.folder, number)),
            device_config=select_device(device, config.precision, training=True),
            stop=stop,
            on_epoch=lease.on_epoch if spec.prune else None,
        )
        value = checkpoint.metrics["val"][spec.metric]
        if not math.isfinite(value):
            raise RunError(f"{spec.metric} on val is not a number")
    except StoppedError:
        lease.pause()
        raise
    except Pruned:
        lease.finish(TrialState.PRUNED)
        logger.info("trial %d pruned", number)
    except (RunError, CheckpointError, torch.OutOfMemoryError) as error:
        reason = str(error)
        if isinstance(error, torch.OutOfMemoryError):
            reason = "the device has too little memory; use a smaller batch_size or model"
        lease.finish(TrialState.FAIL, reason=reason)
        logger.warning("trial %d failed: %s", number, reason)
    else:
        result = {
            "metrics": {**checkpoint.metrics["val"], "threshold": checkpoint.threshold},
            "best_epoch": checkpoint.metrics["epoch"],
            "config": {**checkpoint.config, "split": checkpoint.split_spec},
        }
        lease.finish(TrialState.COMPLETE, value, result=result)
        logger.info("trial %d: val %s %.4f", number, spec.metric, value)

"""One trial of a learning-rate search: trained, and judged on validation images after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.trials import NetworkSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.inputs import check_inputs
from tasks.trials.memory import peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model
from tasks.trials.result import EpochRecord
from tasks.trials.search_result import SearchResult, SearchStatus, ValidationScore, capped
from tasks.trials.seeding import deterministic
from tasks.trials.training import EVALUATION_BATCH_SIZE, evaluate, in_parts, resident, train

GoOn = Callable[[int, float], bool]
"""Given an epoch and the validation loss after it, capped, tells whether to train on."""


class _Ended(Exception):
    """Training ends early."""

    def __init__(self, status: SearchStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def run_search_trial(
    network: NetworkSpec,
    data: TrialData,
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    micro_batch: int | None = None,
    go_on: GoOn | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> SearchResult:
    """Train a network on one side of a validation split and return its validation loss after every epoch.

    The network is built, seeded and trained as the sweep's own trial of it is, but for the number of images.

    Args:
        network: which network, how trained.
        data: from :func:`tasks.prepared.validation.load_validation`; all of it is used.
        device: see :func:`tasks.trials.trial.run_trial`, likewise the rest.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory.
        micro_batch: images that pass the network at once.
        go_on: asked after every epoch but the last; None trains to the end.
        on_epoch: called with the record of every epoch that did not diverge, once it is judged.

    Raises:
        ConfigError: see :func:`tasks.trials.trial.run_trial`; likewise the rest.
        DataError: for pixels or labels out of range.
        torch.OutOfMemoryError: when the GPU's memory, or its share, is used up.
        MemoryError: when the machine's memory is used up.
    """
    if network.model.pretrained:
        found = f"{network.model.name} is pretrained"
        raise ConfigError("A search trains networks from random weights", found)
    check_inputs(network.model_copy(update={"train_size": len(data.train_images)}), data)
    device = torch.device(device)
    with trial_memory(device, gpu_fraction), deterministic(device, num_threads):
        curve: list[ValidationScore] = []
        ended = _train(network, data, device, micro_batch, curve, go_on, on_epoch)
        return SearchResult(
            status=ended.status,
            reason=ended.reason,
            epochs=len(curve) + (ended.status == SearchStatus.DIVERGED),
            curve=tuple(curve),
            num_train=len(data.train_images),
            num_validation=len(data.test_images),
            num_classes=data.num_classes,
            chance_loss=math.log(data.num_classes),
            device=str(device),
            num_threads=num_threads,
            peak_memory_bytes=peak_bytes(device),
            micro_batch=micro_batch,
        )


def _train(
    network: NetworkSpec,
    data: TrialData,
    device: torch.device,
    micro_batch: int | None,
    curve: list[ValidationScore],
    go_on: GoOn | None,
    on_epoch: Callable[[EpochRecord], None] | None,
) -> _Ended:
    """Train, adding to ``curve``; return how it ended."""
    model = _build(network, data).to(device)
    images, labels, held_out, held_out_labels = (
        resident(array, device)
        for array in (data.train_images, data.train_labels, data.test_images, data.test_labels)
    )

    at_once = in_parts(EVALUATION_BATCH_SIZE, network.recipe, micro_batch)

    def judge(record: EpochRecord) -> None:
        found = evaluate(model, held_out, held_out_labels, at_once=at_once)
        if not math.isfinite(found.loss):
            reason = f"the validation loss was {found.loss} after epoch {record.epoch}"
            raise _Ended(SearchStatus.DIVERGED, reason)
        curve.append(ValidationScore(epoch=record.epoch, loss=found.loss, accuracy=found.accuracy))
        if on_epoch is not None:
            on_epoch(record)
        loss = capped(found.loss, math.log(data.num_classes))
        if go_on is not None and record.epoch < network.recipe.epochs and not go_on(record.epoch, loss):
            raise _Ended(SearchStatus.PRUNED, f"others were better at epoch {record.epoch}")

    try:
        history = train(
            model,
            images,
            labels,
            network.recipe,
            seed=derive_seed("training", network.derived_seed),
            device=device,
            on_epoch=judge,
            micro_batch=micro_batch,
        )
    except _Ended as ended:
        return ended
    if history and history[-1].diverged:
        last = history[-1]
        return _Ended(SearchStatus.DIVERGED, f"the training loss was {last.train_loss} in epoch {last.epoch}")
    if not curve:  # a recipe of no epochs
        found = evaluate(model, held_out, held_out_labels, at_once=at_once)
        curve.append(ValidationScore(epoch=0, loss=found.loss, accuracy=found.accuracy))
    return _Ended(SearchStatus.COMPLETE, "")


def _build(network: NetworkSpec, data: TrialData) -> PixelModel:
    recipe = network.recipe
    return build_model(
        network.model,
        num_outputs=recipe.num_outputs or data.num_classes,
        in_channels=data.train_images.shape[1],
        image_size=data.train_images.shape[2],
        input_scale=recipe.input_scale,
        dropout=recipe.dropout,
        seed=derive_seed("weights", network.derived_seed),
    )

"""One trial as a pure function: its spec and its images go in, a result record comes out.

Nothing is read or written, and nothing of the process's random state, thread counts or determinism
switches is left changed. On a CPU the same spec, data and ``num_threads`` give the same numbers to the last
bit, whatever ran before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import ConfigError, DataError, SweepError
from search_spaces.fingerprint import derive_seed
from search_spaces.trials import NetworkSpec, TrialSpec
from tasks.measures.dimension import IntrinsicDimension
from tasks.measures.intrinsic_dimension import intrinsic_dimension
from tasks.prepared.subsets import TrialData
from tasks.trials.attacks import CleanPass, attack_all, attack_batch_size, pass_clean
from tasks.trials.memory import peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.representations import features_read
from tasks.trials.result import AttackRecord, EpochRecord, NetworkScores, Timings, TrialResult, TrialStatus
from tasks.trials.seeding import deterministic
from tasks.trials.training import evaluate, resident, train


def run_trial(
    spec: TrialSpec,
    data: TrialData,
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    micro_batch: int | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrialResult:
    """Train, evaluate, measure d_repr and attack one network.

    Args:
        spec: which network, how trained, on how many images, and what is measured on it.
        data: the subset's arrays, which may be read-only; the first ``train_size`` rows are trained on.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory this process may take; None sets no limit.
        micro_batch: images that pass the network at once in training, where memory is short; the steps are
            those of whole batches, but batch norm sees parts. Recorded in the outcome.
        on_epoch: called with the record of every finished epoch.

    Raises:
        ConfigError: for a spec that cannot be carried out (image too small for the architecture, fewer logits
            than classes, a batch too small for batch norm).
        DataError: for fewer training images than asked for, or pixels or labels out of range.
        torch.OutOfMemoryError: when the GPU's memory, or its share, is used up; cached memory is freed first.
        MemoryError: when the machine's memory is used up.
    """
    _check_inputs(spec.network, data)
    device = torch.device(device)
    with trial_memory(device, gpu_fraction), deterministic(device, num_threads):
        return _Trial(spec, data, device, num_threads, micro_batch).run(on_epoch)


class _Trial:
    """The stages of one trial and what they add to its result."""

    def __init__(
        self,
        spec: TrialSpec,
        data: TrialData,
        device: torch.device,
        num_threads: int,
        micro_batch: int | None,
    ) -> None:
        self.spec, self.data, self.device, self.num_threads = spec, data, device, num_threads
        self.micro_batch = micro_batch
        self.network = spec.network
        self.seed = spec.derived_seed
        self.scores: NetworkScores | None = None
        self.d_repr: dict[str, IntrinsicDimension] = {}
        self.attacks: list[AttackRecord] = []
        self.history: list[EpochRecord] = []
        self.timings: dict[str, float] = {}

    def run(self, on_epoch: Callable[[EpochRecord], None] | None) -> TrialResult:
        """Run the stages in order; stop where the network has diverged."""
        size = self.network.train_size
        images, labels, test_images, test_labels = (
            resident(array, self.device)
            for array in (
                self.data.train_images[:size],
                self.data.train_labels[:size],
                self.data.test_images,
                self.data.test_labels,
            )
        )
        with self._timed("build"):
            model = self._build()
        with self._timed("train"):
            reason = self._train(model, images, labels, on_epoch)
        if not reason:
            with self._timed("evaluate"):
                features, clean, reason = self._evaluate(model, images, labels, test_images, test_labels)
        if reason:
            return self._result(reason)
        with self._timed("d_repr"):
            self._measure_representation(features)
        with self._timed("attack"):
            self._attack(model, test_images, test_labels, clean)
        return self._result("")

    def _build(self) -> PixelModel:
        recipe = self.network.recipe
        return build_model(
            self.network.model,
            num_outputs=recipe.num_outputs or self.data.num_classes,
            in_channels=self.data.train_images.shape[1],
            image_size=self.data.train_images.shape[2],
            input_scale=recipe.input_scale,
            dropout=recipe.dropout,
            seed=derive_seed("weights", self.seed),
        ).to(self.device)

    def _train(
        self,
        model: PixelModel,
        images: Tensor,
        labels: Tensor,
        on_epoch: Callable[[EpochRecord], None] | None,
    ) -> str:
        seed = derive_seed("training", self.seed)
        history = train(
            model,
            images,
            labels,
            self.network.recipe,
            seed=seed,
            device=self.device,
            on_epoch=on_epoch,
            micro_batch=self.micro_batch,
        )
        self.history = [record for record in history if not record.diverged]
        if history and history[-1].diverged:
            return f"the training loss was {history[-1].train_loss} in epoch {history[-1].epoch}"
        return ""

    def _evaluate(
        self, model: PixelModel, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor
    ) -> tuple[NDArray[np.float32], CleanPass, str]:
        """Pass every image once: features come with the train loss, attack directions with the test loss."""
        rule = self.network.recipe.test_loss
        with features_read(model, len(images)) as features:
            train = evaluate(model, images, labels, rule=rule)
        batch_size = attack_batch_size(self.network.recipe)
        clean = pass_clean(model, test_images, test_labels, batch_size=batch_size)
        test = clean.evaluation(rule=rule)
        for name, evaluation in (("train", train), ("test", test)):
            if not math.isfinite(evaluation.loss):
                return features.array, clean, f"the trained network's {name} loss is {evaluation.loss}"
        self.scores = NetworkScores(
            num_parameters=num_parameters(model),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
        )
        return features.array, clean, ""

    def _measure_representation(self, features: NDArray[np.float32]) -> None:
        """Estimate d_repr; it is undefined for too few points, or where all images map to one point."""
        asked = self.spec.representation
        try:
            estimates = intrinsic_dimension(
                features,
                num_neighbors=asked.num_neighbors,
                estimators=asked.estimators,
                discard_fraction=self.network.subset.twonn_discard_fraction,
                seed=derive_seed("d_repr", self.seed),
            )
        except SweepError as error:  # features that are not finite
            reason = str(error)
            self.d_repr = {
                name: IntrinsicDimension(
                    name, None, None, len(features), asked.num_neighbors, "", reason=reason
                )
                for name in asked.estimators
            }
            return
        self.d_repr = {name: _finite(estimate) for name, estimate in estimates.items()}

    def _attack(self, model: PixelModel, images: Tensor, labels: Tensor, clean: CleanPass) -> None:
        rule = self.network.recipe.test_loss
        self.attacks = attack_all(model, images, labels, self.spec.attacks, rule=rule, clean=clean)

    def _result(self, reason: str) -> TrialResult:
        return TrialResult(
            status=TrialStatus.DIVERGED if reason else TrialStatus.DONE,
            reason=reason,
            seed=self.seed,
            device=str(self.device),
            num_threads=self.num_threads,
            scores=self.scores,
            d_repr=self.d_repr,
            attacks=tuple(self.attacks),
            history=tuple(self.history),
            timings=Timings(**self.timings),
            peak_memory_bytes=peak_bytes(self.device),
            micro_batch=self.micro_batch,
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.timings[stage] = time.perf_counter() - start


def _finite(estimate: IntrinsicDimension) -> IntrinsicDimension:
    if estimate.value is None or math.isfinite(estimate.value):
        return estimate
    return replace(estimate, value=None, std_error=None, reason=f"the value is {estimate.value}")


def _check_inputs(network: NetworkSpec, data: TrialData) -> None:
    if network.train_size > len(data.train_images):
        raise DataError(
            "A subset must hold at least as many training images as train_size",
            f"{len(data.train_images)} images for train_size {network.train_size}",
            "choose a smaller train_size or a smaller test_size",
        )
    num_outputs = network.recipe.num_outputs
    if num_outputs is not None and num_outputs < data.num_classes:
        raise ConfigError(
            "A network needs at least one output per class",
            f"num_outputs {num_outputs} for {data.num_classes} classes",
            "leave num_outputs out of the recipe to get one output per class",
        )
    for name, images, labels in (
        ("training", data.train_images[: network.train_size], data.train_labels[: network.train_size]),
        ("test", data.test_images, data.test_labels),
    ):
        _check_arrays(name, images, labels, data.num_classes)


def _check_arrays(name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    # The comparison is false for NaN as well.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 255):
        raise DataError(
            "Pixels must be numbers from 0 to 255",
            f"{images.min()} to {images.max()} in the {name} images",
            "scale the images to [0, 255] and prepare them again",
        )
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"Labels must be integers from 0 to {num_classes - 1}",
            f"{labels.min()} to {labels.max()} in the {name} labels",
            "prepare the dataset again, or correct num_classes",
        )

"""One trial as a pure function: its spec and its images go in, a result record comes out.

Nothing is read or written, and nothing of the process's random state, thread counts or determinism
switches is left changed. On a CPU the same spec, data and ``num_threads`` give the same numbers to the last
bit, whatever ran before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import ConfigError, CorruptStoreError
from search_spaces.fingerprint import derive_seed
from search_spaces.trials import Measurement, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.attacks import CleanPass, attack_batch_size, pass_clean
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.classification import classification_scores
from tasks.trials.energy import EnergyMeter
from tasks.trials.inputs import check_inputs
from tasks.trials.measured import EpochScore, KeptFile, epochs_to_look_at
from tasks.trials.measuring import Measuring
from tasks.trials.memory import peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.representations import features_read
from tasks.trials.result import EpochRecord, NetworkScores, Timings, TrialResult, TrialStatus
from tasks.trials.seeding import contained, deterministic
from tasks.trials.step import update_of
from tasks.trials.training import EVALUATION_BATCH_SIZE, evaluate, in_parts, resident, train
from tasks.trials.weights import load_into, to_bytes

RESTORED_TOLERANCE = 1e-3
"""Relative and absolute; another device or number of threads changes a test loss by far less."""


def run_trial(
    spec: TrialSpec,
    data: TrialData,
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    micro_batch: int | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_score: Callable[[EpochScore], None] | None = None,
    keep: Callable[[bytes], KeptFile | str] | None = None,
    keep_predictions: Callable[[bytes], KeptFile | str] | None = None,
    checkpoints: Checkpoints | None = None,
    pretrained: bytes | None = None,
) -> TrialResult:
    """Train, evaluate, measure d_repr and attack one network.

    Args:
        spec: which network, how trained, on how many images, and what is measured on it.
        data: the subset's arrays, which may be read-only; the first ``train_size`` rows are trained on.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory this process may take; None sets no limit.
        micro_batch: images that pass the network at once in training, where memory is short, and others in
            as many parts; steps are those of whole batches, but batch norm sees parts. It is in the outcome.
        on_epoch: called with the record of every finished epoch.
        on_score: called before it where the test images were passed after that epoch.
        keep: given the trained network's weights; text says why they could not be kept, which is noted.
        keep_predictions: given the predictions, a Parquet file, where ``spec`` asks for them; likewise.
        checkpoints: where training leaves off and goes on; None for none.
        pretrained: weights that a pretrained network starts from.

    Raises:
        ConfigError: for a spec that cannot be carried out (image too small for the architecture, fewer logits
            than classes, a batch too small for batch norm).
        DataError: for fewer training images than asked for, or pixels or labels out of range.
        torch.OutOfMemoryError: when the GPU's memory, or its share, is used up; cached memory is freed first.
        MemoryError: when the machine's memory is used up.
    """
    check_inputs(spec.network, data)
    if spec.network.model.pretrained and pretrained is None:
        raise ConfigError("A pretrained network must be given its weights", spec.network.model.name)
    device = torch.device(device)
    with _alone(spec, device, num_threads, gpu_fraction):
        meter = EnergyMeter(device)
        trial = _Trial(spec, data, device, num_threads, micro_batch, keep_predictions)
        result = trial.run(on_epoch, on_score, keep, checkpoints, pretrained)
        start = hashlib.sha256(pretrained).hexdigest() if pretrained is not None else ""
        more = {"energy_j": meter.joules(), "energy_note": meter.note, "pretrained": start}
        return result.model_copy(update=more)


def measure_trial(
    spec: TrialSpec,
    data: TrialData,
    weights: bytes,
    known: TrialResult,
    missing: Sequence[Measurement],
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    keep_predictions: Callable[[bytes], KeptFile | str] | None = None,
) -> TrialResult:
    """Measure on a network's kept weights what was not measured yet; nothing is trained.

    Args:
        spec: what is asked for now.
        data: see :func:`run_trial`.
        weights: of the network, from :func:`tasks.trials.weights.to_bytes`.
        known: what was found before; everything in it stays as it is, to the last bit.
        missing: what is to be measured.
        device: see :func:`run_trial`, likewise the rest.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory.
        keep_predictions: see :func:`run_trial`.

    Raises:
        CorruptStoreError: when the weights are not those of this network, or it needs more than its weights
            to give the loss that is known; and as :func:`run_trial`.
    """
    check_inputs(spec.network, data)
    device = torch.device(device)
    with _alone(spec, device, num_threads, gpu_fraction):
        trial = _Trial(spec, data, device, num_threads, None, keep_predictions)
        return trial.measure(weights, known, missing)


@contextmanager
def _alone(
    spec: TrialSpec, device: torch.device, num_threads: int, gpu_fraction: float | None
) -> Iterator[None]:
    """Let nothing of the process decide a trial's numbers, and leave nothing of it changed.

    The generators matter to networks that draw numbers in evaluation too.
    """
    with (
        trial_memory(device, gpu_fraction),
        contained(derive_seed("evaluation", spec.derived_seed), device),
        deterministic(device, num_threads),
    ):
        yield


class _Trial:
    """The stages of one trial and what they add to its result."""

    def __init__(
        self,
        spec: TrialSpec,
        data: TrialData,
        device: torch.device,
        num_threads: int,
        micro_batch: int | None,
        keep_predictions: Callable[[bytes], KeptFile | str] | None,
    ) -> None:
        self.spec, self.data, self.device, self.num_threads = spec, data, device, num_threads
        self.micro_batch, self.keep_predictions = micro_batch, keep_predictions
        self.network, self.seed = spec.network, spec.derived_seed
        self.scores: NetworkScores | None = None
        self.test_history: list[EpochScore] = []
        self.history: list[EpochRecord] = []
        self.timings: dict[str, float] = {}
        size, recipe = self.network.train_size, self.network.recipe
        train = data.train_images[:size], data.train_labels[:size]
        self.images, self.labels, self.test_images, self.test_labels = (
            resident(array, device) for array in (*train, data.test_images, data.test_labels)
        )
        self.rule, at_once = recipe.test_loss, in_parts(EVALUATION_BATCH_SIZE, recipe, micro_batch)
        self._score = partial(evaluate, rule=self.rule, at_once=at_once)

    def run(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        on_score: Callable[[EpochScore], None] | None,
        keep: Callable[[bytes], KeptFile | str] | None,
        checkpoints: Checkpoints | None,
        pretrained: bytes | None,
    ) -> TrialResult:
        """Run the stages in order; stop where the network has diverged."""
        with self._timed("build"):
            model = self._build(pretrained)
        with self._timed("train"):
            reason = self._train(model, on_epoch, on_score, checkpoints)
        if not reason:
            with self._timed("evaluate"):
                features, clean, reason = self._evaluate(model)
        if reason:
            return self._result(reason)
        kept = keep(to_bytes(model)) if keep else None
        found = self._measuring(model, features, clean).measure(self.spec.measurements)
        return self._result("", kept).model_copy(update={**found, "timings": Timings(**self.timings)})

    def measure(self, weights: bytes, known: TrialResult, missing: Sequence[Measurement]) -> TrialResult:
        """Measure ``missing`` on kept weights, and add it to what is known."""
        model = self._build()
        load_into(model, weights)
        measuring = self._measuring(model)
        self._check_restored(measuring, known)
        found = measuring.measure(missing)
        new = {(attack.method, attack.epsilon) for attack in found["attacks"]}
        kept = tuple(attack for attack in known.attacks if (attack.method, attack.epsilon) not in new)
        return known.model_copy(
            update={
                "d_repr": {**known.d_repr, **found["d_repr"]},
                "d_repr_stages": found["d_repr_stages"] or known.d_repr_stages,
                "attacks": kept + found["attacks"],
                "robustness": found["robustness"] or known.robustness,
                "predictions": found["predictions"] or known.predictions,
                "predictions_note": found["predictions_note"],
            }
        )

    def _check_restored(self, measuring: Measuring, known: TrialResult) -> None:
        """See that the network is the trained one: somebody's own may keep more than its weights."""
        found = measuring.pass_clean().evaluation(rule=self.rule).loss
        if known.scores is not None and not math.isclose(
            found, known.scores.test_loss, rel_tol=RESTORED_TOLERANCE, abs_tol=RESTORED_TOLERANCE
        ):
            raise CorruptStoreError(
                "A network made from kept weights must have the test loss that was found",
                f"{found:.6g} instead of {known.scores.test_loss:.6g}",
                "let its forward pass depend on parameters and buffers alone",
            )

    def _measuring(
        self, model: PixelModel, features: NDArray[np.float32] | None = None, clean: CleanPass | None = None
    ) -> Measuring:
        return Measuring(
            self.spec,
            model,
            self.images,
            self.test_images,
            self.test_labels,
            self.data.test_rows,
            self._timed,
            self.keep_predictions,
            features,
            clean,
            self.micro_batch,
        )

    def _build(self, pretrained: bytes | None = None) -> PixelModel:
        recipe = self.network.recipe
        return build_model(
            self.network.model,
            num_outputs=recipe.num_outputs or self.data.num_classes,
            in_channels=self.data.train_images.shape[1],
            image_size=self.data.train_images.shape[2],
            input_scale=recipe.input_scale,
            dropout=recipe.dropout,
            seed=derive_seed("weights", self.seed),
            pretrained=pretrained,
        ).to(self.device)

    def _train(
        self,
        model: PixelModel,
        on_epoch: Callable[[EpochRecord], None] | None,
        on_score: Callable[[EpochScore], None] | None,
        checkpoints: Checkpoints | None,
    ) -> str:
        recipe = self.network.recipe
        _, self.step_note = update_of(model, recipe, self.device)
        notes: list[dict[str, Any]] = [] if checkpoints is None else checkpoints.notes

        def after(record: EpochRecord) -> None:
            if record.epoch in epochs_to_look_at(recipe.epochs):
                found = self._score(model, self.test_images, self.test_labels)
                if math.isfinite(found.loss):
                    note = {"epoch": record.epoch, "test_loss": found.loss, "test_accuracy": found.accuracy}
                    notes.append(note)
                    if on_score is not None:
                        on_score(EpochScore.model_validate(note))
            if on_epoch is not None:
                on_epoch(record)

        history = train(
            model,
            self.images,
            self.labels,
            recipe,
            seed=derive_seed("training", self.seed),
            device=self.device,
            on_epoch=after,
            micro_batch=self.micro_batch,
            checkpoints=checkpoints,
        )
        self.history = [record for record in history if not record.diverged]
        self.test_history = [EpochScore.model_validate(note) for note in notes]
        if history and history[-1].diverged:
            return f"the training loss was {history[-1].train_loss} in epoch {history[-1].epoch}"
        return ""

    def _evaluate(self, model: PixelModel) -> tuple[NDArray[np.float32], CleanPass, str]:
        """Pass every image once: features come with the train loss, attack directions with the test loss."""
        with features_read(model, len(self.images)) as features:
            train = self._score(model, self.images, self.labels)
        at_once = attack_batch_size(self.network.recipe, self.micro_batch)
        clean = pass_clean(model, self.test_images, self.test_labels, batch_size=at_once)
        test = clean.evaluation(rule=self.rule)
        for name, evaluation in (("train", train), ("test", test)):
            if not math.isfinite(evaluation.loss):
                return features.array, clean, f"the trained network's {name} loss is {evaluation.loss}"
        self.scores = NetworkScores(
            num_parameters=num_parameters(model),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            classification=classification_scores(
                clean.logits.cpu().numpy(), self.test_labels.cpu().numpy(), self.data.num_classes
            ),
        )
        return features.array, clean, ""

    def _result(self, reason: str, kept: KeptFile | str | None = None) -> TrialResult:
        best = min(self.test_history, key=lambda score: score.test_loss, default=None)
        return TrialResult(
            status=TrialStatus.DIVERGED if reason else TrialStatus.DONE,
            reason=reason,
            seed=self.seed,
            device=str(self.device),
            num_threads=self.num_threads,
            scores=self.scores,
            history=tuple(self.history),
            test_history=tuple(self.test_history),
            best_epoch=best.epoch if best else None,
            weights=kept if isinstance(kept, KeptFile) else None,
            weights_note=kept if isinstance(kept, str) else "",
            timings=Timings(**self.timings),
            peak_memory_bytes=peak_bytes(self.device),
            micro_batch=self.micro_batch,
            step_note=self.step_note,
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.timings[stage] = time.perf_counter() - start

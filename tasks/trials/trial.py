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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import ConfigError, CorruptStoreError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import (
    AttackMeasurement,
    AttackSpec,
    Measurement,
    NetworkSpec,
    PredictionMeasurement,
    RepresentationMeasurement,
    RobustnessMeasurement,
    TrialSpec,
)
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.prepared.subsets import TrialData
from tasks.trials.attacks import CleanPass, attack_all, attack_batch_size, measure_radii, pass_clean
from tasks.trials.isolation import EnergyMeter, contained, deterministic, peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.records import (
    AttackRecord,
    EpochRecord,
    EpochScore,
    KeptFile,
    NetworkScores,
    RadiusRecord,
    SearchResult,
    SearchStatus,
    StageRecord,
    Timings,
    TrialResult,
    TrialStatus,
    ValidationScore,
    capped,
    epochs_to_look_at,
)
from tasks.trials.representations import (
    StageRows,
    estimate_dimension,
    extract_features,
    features_read,
    stages,
)
from tasks.trials.scores import classification_scores, to_parquet
from tasks.trials.training import (
    EVALUATION_BATCH_SIZE,
    Checkpoints,
    check_inputs,
    evaluate,
    in_parts,
    resident,
    train,
    update_of,
)
from tasks.trials.weights import load_into, to_bytes

# One trial of a learning-rate search: trained, and judged on validation images after every epoch.

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
        data: from :func:`tasks.prepared.subsets.load_validation`; all of it is used.
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


# What is measured on a trained network, whether it was trained a moment ago or came from kept weights.


@dataclass
class Measuring:
    """A trained network, the images it is measured on, and what is known of it already.

    Attributes:
        spec: what is asked for.
        model: the network, on the device of the images.
        images: ``(train_size, channels, height, width)`` that it was trained on.
        test_images: likewise.
        test_labels: ``(test_size,)`` int64.
        test_rows: which images of the prepared dataset the test images are.
        timed: counts the seconds of a stage.
        keep_predictions: given a Parquet file; text says why it could not be kept. None keeps none.
        features: ``(train_size, num_features)``, the last hidden layer, where the images have passed.
        clean: the pass over the test images, where there was one.
        micro_batch: images of a batch that passed at once in training; None for whole batches.
    """

    spec: TrialSpec
    model: PixelModel
    images: Tensor
    test_images: Tensor
    test_labels: Tensor
    test_rows: NDArray[np.int64] | None
    timed: Callable[[str], AbstractContextManager[None]]
    keep_predictions: Callable[[bytes], KeptFile | str] | None = None
    features: NDArray[np.float32] | None = None
    clean: CleanPass | None = None
    micro_batch: int | None = None

    def measure(self, missing: Sequence[Measurement]) -> dict[str, Any]:
        """Return fields of a :class:`~tasks.trials.records.TrialResult`: what of ``missing`` was found."""
        representations = [m for m in missing if isinstance(m, RepresentationMeasurement)]
        with self.timed("d_repr"):
            d_repr = self._d_repr([m for m in representations if not m.stages])
            d_repr_stages = self._d_repr_stages([m for m in representations if m.stages])
        kept: KeptFile | str | None = None
        if self.keep_predictions and any(isinstance(m, PredictionMeasurement) for m in missing):
            logits = self.pass_clean().logits.cpu().numpy()
            kept = self.keep_predictions(to_parquet(logits, self.test_labels.cpu().numpy(), self.test_rows))
        with self.timed("attack"):
            attacks = self._attacked([m for m in missing if isinstance(m, AttackMeasurement)])
        return {
            "d_repr": d_repr,
            "d_repr_stages": d_repr_stages,
            "attacks": attacks,
            "robustness": self._radii([m for m in missing if isinstance(m, RobustnessMeasurement)]),
            "predictions": kept if isinstance(kept, KeptFile) else None,
            "predictions_note": kept if isinstance(kept, str) else "",
        }

    def pass_clean(self) -> CleanPass:
        """Pass the test images, once."""
        if self.clean is None:
            self.clean = pass_clean(self.model, self.test_images, self.test_labels, batch_size=self._at_once)
        return self.clean

    @property
    def _at_once(self) -> int:
        """Images whose gradients are taken at once."""
        return attack_batch_size(self.spec.network.recipe, self.micro_batch)

    def _d_repr(self, asked: Sequence[RepresentationMeasurement]) -> dict[str, IntrinsicDimension]:
        if not asked:
            return {}
        features = extract_features(self.model, self.images) if self.features is None else self.features
        return self._estimated(features, asked)

    def _d_repr_stages(self, asked: Sequence[RepresentationMeasurement]) -> tuple[StageRecord, ...]:
        if not asked:
            return ()
        rows = [StageRows(self.model, name, self.images) for name in stages(self.model, self.images[:1])]
        return tuple(
            StageRecord(
                module=row.module,
                num_features=math.prod(row.row_shape),
                d_repr=self._estimated(row, asked, block_rows=row.block_rows),
            )
            for row in rows
        )

    def _estimated(
        self,
        features: NDArray[np.float32] | StageRows,
        asked: Sequence[RepresentationMeasurement],
        block_rows: int = BLOCK_ROWS,
    ) -> dict[str, IntrinsicDimension]:
        return estimate_dimension(
            features,
            [measurement.estimator for measurement in asked],
            num_neighbors=self.spec.representation.num_neighbors,
            discard_fraction=self.spec.network.subset.twonn_discard_fraction,
            seed=derive_seed("d_repr", self.spec.derived_seed),
            block_rows=block_rows,
        )

    def _attacked(self, asked: Sequence[AttackMeasurement]) -> tuple[AttackRecord, ...]:
        records: list[AttackRecord] = []
        rule = self.spec.network.recipe.test_loss
        for method in dict.fromkeys(attack.method for attack in asked):
            epsilons = tuple(attack.epsilon for attack in asked if attack.method == method)
            attacks = AttackSpec.model_validate({"methods": (method,), "epsilons": epsilons})
            records += attack_all(
                self.model,
                self.test_images,
                self.test_labels,
                attacks,
                at_once=self._at_once,
                passed_at_once=in_parts(EVALUATION_BATCH_SIZE, self.spec.network.recipe, self.micro_batch),
                rule=rule,
                clean=self.pass_clean(),
            )
        return tuple(records)

    def _radii(self, asked: Sequence[RobustnessMeasurement]) -> RadiusRecord | None:
        if not asked:
            return None
        robustness = asked[0].robustness
        with self.timed("robustness"):
            return measure_radii(
                self.model,
                self.test_images,
                self.test_labels,
                self.images,
                num_images=robustness.num_images,
                at_once=self._at_once,
                # Of the data, not of the network: all networks of a subset are asked about the same images.
                seed=derive_seed("r_hat", self.spec.network.subset),
                num_steps=robustness.num_steps,
                num_bisections=robustness.num_bisections,
            )


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

"""One trial as a pure function: its spec and its images go in, a result record comes out.

No files are read or written, except through the callbacks that the caller passes. The random state,
thread counts and determinism switches of the process are restored at the end. On a CPU the same
spec, data and ``num_threads`` give the same numbers to the last bit, whatever ran before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import ConfigError, CorruptStoreError, DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import (
    AttackMeasurement,
    FurtherTestMeasurement,
    Measurement,
    NetworkSpec,
    PredictionMeasurement,
    RepresentationMeasurement,
    RobustnessMeasurement,
    RobustnessSpec,
    TrialSpec,
)
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.prepared.subsets import FurtherTestImages, TrialData
from tasks.trials.attacks import CleanPass, attack_all, attack_batch_size, run_clean_pass
from tasks.trials.isolation import EnergyMeter, contained, deterministic, peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.records import (
    EVALUATION_PASS,
    ON_ONE_THREAD,
    AttackRecord,
    ComputeOptions,
    EpochRecord,
    EpochScore,
    FurtherTestRecord,
    KeptFile,
    NetworkScores,
    RobustnessRecord,
    SearchResult,
    SearchStatus,
    StageRecord,
    Timings,
    TrialResult,
    TrialStatus,
    ValidationScore,
    scored_epochs,
)
from tasks.trials.representations import (
    StageRows,
    collect_features,
    estimate_dimension,
    extract_features,
    stages,
)
from tasks.trials.robustness import measure_robustness
from tasks.trials.scores import classification_scores, to_parquet
from tasks.trials.training import (
    Checkpoints,
    Evaluation,
    LossRule,
    evaluate,
    scaled_batch_size,
    to_device,
    train,
)
from tasks.trials.weights import load_into, to_bytes

RESTORED_TOLERANCE = 1e-3
"""Largest difference, relative and absolute, of a test loss between a trained network and the same
one from stored weights. Another device or number of threads changes it by far less."""

Keep = Callable[[bytes], KeptFile | str]
"""A function that stores a file beside the result. It returns the stored file, or the reason why it
was not stored."""


def run_trial(
    spec: TrialSpec,
    data: TrialData,
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_score: Callable[[EpochScore], None] | None = None,
    keep: Keep | None = None,
    keep_predictions: Keep | None = None,
    checkpoints: Checkpoints | None = None,
    pretrained: bytes | None = None,
) -> TrialResult:
    """Train, evaluate, measure and attack one network.

    Args:
        spec: the network, its recipe, the number of images, and what is measured.
        data: the subset's arrays, which may be read-only. The first ``train_size`` training images
            are used.
        compute: device, threads and memory.
        on_epoch: called with the record of every finished epoch.
        on_score: called with the scores on the test images, before ``on_epoch``, after the epochs
            of :func:`scored_epochs`.
        keep: stores the trained network's weights.
        keep_predictions: stores the predictions, a Parquet file, if ``spec`` requests them.
        checkpoints: where training continues, and saves its state; None for neither.
        pretrained: weights that a pretrained network starts from.

    Raises:
        ConfigError: the spec cannot be run: the image is too small for the architecture, there are
            fewer outputs than classes, or the batch is too small for batch norm.
        DataError: there are fewer training images than requested, or pixels or labels are out of
            range.
        CaptureError: steps cannot be captured. The process must then end.
        torch.OutOfMemoryError: the GPU's memory, or its share, is used up. Cached memory is freed
            first.
        MemoryError: the machine's memory is used up.
    """
    check_inputs(spec.network, data)
    if spec.network.model.pretrained and pretrained is None:
        raise ConfigError(f"The pretrained network {spec.network.model.name} was given no weights")
    with _Trial.isolated(spec, data, compute) as trial:
        meter = EnergyMeter(trial.device)
        result = trial.run(on_epoch, on_score, keep, keep_predictions, checkpoints, pretrained)
        # Read in this order: the meter's note may say why it could not be read.
        update = {"energy_j": meter.joules(), "energy_note": meter.note}
    if pretrained is not None:
        update["pretrained"] = hashlib.sha256(pretrained).hexdigest()
    return result.model_copy(update=update)


def measure_trial(
    spec: TrialSpec,
    data: TrialData,
    weights: bytes,
    earlier: TrialResult,
    requested: Sequence[Measurement],
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    keep_predictions: Keep | None = None,
) -> TrialResult:
    """Measure on stored weights what was not measured before; nothing is trained.

    The result keeps the timings of the earlier one. The seconds of these measurements are not added
    to them.

    Args:
        spec: the network, with all its measurements.
        data: the subset's arrays.
        weights: the stored weights of the network.
        earlier: the network's result so far. Measurements that are not in ``requested`` stay as
            they are, to the last bit.
        requested: the measurements to make now.
        compute: device, threads and memory.
        keep_predictions: see :func:`run_trial`.

    Raises:
        CorruptStoreError: the weights are not those of this network, or do not give its known test
            loss.
        ConfigError: see :func:`run_trial`, as for all other errors.
    """
    check_inputs(spec.network, data)
    with _Trial.isolated(spec, data, compute) as trial:
        trial.build()
        load_into(trial.model, weights)
        trial.check_restored(earlier)
        return trial.measure(requested, keep_predictions).added_to(earlier)


def run_search_trial(
    network: NetworkSpec,
    data: TrialData,
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> SearchResult:
    """Train on the training part of a validation split, and validate after every epoch.

    The network is built, seeded and trained as in the sweep's trial of it, but on the training part
    alone. Errors are those of :func:`run_trial`.

    Args:
        network: the network as in the sweep.
        data: a validation split, from :func:`tasks.prepared.subsets.load_validation`. It has fewer
            training images than the network in the sweep, and its test images are the validation
            images.
        compute: device, threads and memory.
        on_epoch: called with the record of every epoch after its validation.
    """
    if network.model.pretrained:
        raise ConfigError(
            f"{network.model.name} is pretrained, but a search trains from random weights",
            hint="Leave pretrained out of this model",
        )
    num_train = len(data.train_images)
    check_inputs(network.model_copy(update={"train_size": num_train}), data)
    curve: list[ValidationScore] = []
    with _Trial.isolated(TrialSpec(network=network), data, compute) as trial:
        trial.build()

        def validate_epoch(record: EpochRecord) -> None:
            curve.append(trial.validate(record.epoch))
            if on_epoch is not None:
                on_epoch(record)

        status = SearchStatus.COMPLETE
        reason = ""
        try:
            trial.fit(validate_epoch)
            if not curve:  # a recipe of no epochs
                curve.append(trial.validate(0))
        except _Diverged as diverged:
            status = SearchStatus.DIVERGED
            reason = str(diverged)
        num_epochs = len(curve)
        if status is SearchStatus.DIVERGED:
            num_epochs += 1  # the epoch that diverged has no validation loss
        return SearchResult(
            status=status,
            reason=reason,
            epochs=num_epochs,
            curve=tuple(curve),
            num_train=num_train,
            num_validation=len(data.test_images),
            num_classes=data.num_classes,
            chance_loss=math.log(data.num_classes),
            device=str(trial.device),
            num_threads=compute.num_threads,
            peak_memory_bytes=peak_bytes(trial.device),
            micro_batch=compute.micro_batch,
        )


class _Diverged(Exception):
    """A loss is NaN or infinite, so the trial ends. The text is the reason."""


@dataclass(frozen=True)
class _Measured:
    """Measurements on a trained network: fields of :class:`~tasks.trials.records.TrialResult`."""

    d_repr: dict[str, IntrinsicDimension]
    d_repr_stages: tuple[StageRecord, ...]
    attacks: tuple[AttackRecord, ...]
    robustness: RobustnessRecord | None
    further_tests: tuple[FurtherTestRecord, ...]
    predictions: KeptFile | None
    predictions_note: str

    def added_to(self, earlier: TrialResult) -> TrialResult:
        """Return an earlier result with these measurements; the others stay as they are."""
        predictions_note = earlier.predictions_note
        if self.predictions is not None or self.predictions_note:  # predictions were made now
            predictions_note = self.predictions_note
        # A new measurement replaces an earlier one of the same name.
        attacks = {attack.name: attack for attack in (*earlier.attacks, *self.attacks)}
        further_tests = {test.name: test for test in (*earlier.further_tests, *self.further_tests)}
        return earlier.model_copy(
            update={
                "d_repr": {**earlier.d_repr, **self.d_repr},
                "d_repr_stages": self.d_repr_stages or earlier.d_repr_stages,
                "attacks": tuple(attacks.values()),
                "robustness": self.robustness or earlier.robustness,
                "further_tests": tuple(further_tests.values()),
                "predictions": self.predictions or earlier.predictions,
                "predictions_note": predictions_note,
            }
        )


class _Trial:
    """A network, the images it is trained and measured on, and the results so far.

    Attributes:
        device: holds the model and all images.
        eval_batch_size: images per forward pass.
        gradient_batch_size: images per pass that also computes the gradient of the pixels.
        images: the training images.
        labels: labels of the training images.
        features: last hidden layer of the training images; None until :meth:`score_network` has
            run.
        timings: seconds of each phase so far.
    """

    model: PixelModel

    def __init__(self, spec: TrialSpec, data: TrialData, compute: ComputeOptions) -> None:
        self.spec = spec
        self.network = spec.network
        self.recipe = spec.network.recipe
        self.seed = spec.derived_seed
        self.data = data
        self.compute = compute
        self.device = torch.device(compute.device)
        self.graphs = compute.graphs and self.device.type == "cuda"
        # In a search there are fewer images than this.
        train_rows = slice(self.network.train_size)
        self.images = to_device(data.train_images[train_rows], self.device)
        self.labels = to_device(data.train_labels[train_rows], self.device)
        self.test_images = to_device(data.test_images, self.device)
        self.test_labels = to_device(data.test_labels, self.device)
        self.eval_batch_size = scaled_batch_size(EVALUATION_PASS, self.recipe, compute.micro_batch)
        self.gradient_batch_size = attack_batch_size(self.recipe, compute.micro_batch)
        self.features: NDArray[np.float32] | None = None
        self.scores: NetworkScores | None = None
        self.history: list[EpochRecord] = []
        self.timings: dict[str, float] = {}
        self._clean: CleanPass | None = None

    @classmethod
    @contextmanager
    def isolated(
        cls, spec: TrialSpec, data: TrialData, compute: ComputeOptions
    ) -> Iterator[_Trial]:
        """Yield a trial, and restore the process's random state and its settings afterwards.

        Evaluation has a seed too, because some networks draw random numbers in it.
        """
        device = torch.device(compute.device)
        with (
            trial_memory(device, compute.gpu_fraction),
            contained(derive_seed("evaluation", spec.derived_seed), device),
            deterministic(device, compute.num_threads),
        ):
            yield cls(spec, data, compute)

    def run(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        on_score: Callable[[EpochScore], None] | None,
        keep: Keep | None,
        keep_predictions: Keep | None,
        checkpoints: Checkpoints | None,
        pretrained: bytes | None,
    ) -> TrialResult:
        """Run all phases in order, until a loss diverges. Arguments as :func:`run_trial`."""
        with self._timed("build"):
            self.build(pretrained)
        # The scores on the test images continue after a restart, so they are in the checkpoints.
        test_history: list[EpochScore] = [] if checkpoints is None else checkpoints.test_history

        def score_epoch(record: EpochRecord) -> None:
            if record.epoch in scored_epochs(self.recipe.epochs):
                scores = self._test_scores(self.recipe.test_loss)
                if math.isfinite(scores.loss):
                    score = EpochScore(
                        epoch=record.epoch, test_loss=scores.loss, test_accuracy=scores.accuracy
                    )
                    test_history.append(score)
                    if on_score is not None:
                        on_score(score)
            if on_epoch is not None:
                on_epoch(record)

        try:
            with self._timed("train"):
                self.fit(score_epoch, checkpoints)
            with self._timed("evaluate"):
                self.score_network()
        except _Diverged as diverged:
            return self._result(TrialStatus.DIVERGED, test_history, reason=str(diverged))
        weights, weights_note = _stored(keep, lambda: to_bytes(self.model))
        measured = self.measure(self.spec.measurements, keep_predictions)
        result = self._result(TrialStatus.DONE, test_history)
        return result.model_copy(
            update={"weights": weights, "weights_note": weights_note, **vars(measured)}
        )

    def build(self, pretrained: bytes | None = None) -> None:
        """Build the network with its seeded weights."""
        _, num_channels, image_size, _ = self.data.train_images.shape
        self.model = build_model(
            self.network.model,
            num_outputs=self.recipe.num_outputs or self.data.num_classes,
            in_channels=num_channels,
            image_size=image_size,
            input_scale=self.recipe.input_scale,
            dropout=self.recipe.dropout,
            seed=derive_seed("weights", self.seed),
            pretrained=pretrained,
        ).to(self.device)

    def fit(
        self, on_epoch: Callable[[EpochRecord], None], checkpoints: Checkpoints | None = None
    ) -> None:
        """Train the network.

        Raises:
            _Diverged: the training loss of an epoch is NaN or infinite.
        """
        history = train(
            self.model,
            self.images,
            self.labels,
            self.recipe,
            seed=derive_seed("training", self.seed),
            device=self.device,
            on_epoch=on_epoch,
            micro_batch=self.compute.micro_batch,
            checkpoints=checkpoints,
            graphs=self.graphs,
        )
        self.history = [record for record in history if not record.diverged]
        if history and history[-1].diverged:
            last = history[-1]
            raise _Diverged(f"the training loss was {last.train_loss} in epoch {last.epoch}")

    def score_network(self) -> None:
        """Compute losses and accuracies of the trained network.

        There is one pass over the training images and one over the test images. The first also
        gives the features, the second the gradients for attacks.

        Raises:
            _Diverged: a loss is NaN or infinite.
        """
        loss_rule = self.recipe.test_loss
        with collect_features(self.model, len(self.images)) as features:
            train_scores = evaluate(
                self.model,
                self.images,
                self.labels,
                rule=loss_rule,
                batch_size=self.eval_batch_size,
            )
        self.features = features.array
        clean = self.clean_pass()
        test_scores = clean.evaluation(loss_rule)
        for name, scores in (("train", train_scores), ("test", test_scores)):
            if not math.isfinite(scores.loss):
                raise _Diverged(f"the trained network's {name} loss is {scores.loss}")
        self.scores = NetworkScores(
            num_parameters=num_parameters(self.model),
            train_loss=train_scores.loss,
            train_accuracy=train_scores.accuracy,
            test_loss=test_scores.loss,
            test_accuracy=test_scores.accuracy,
            classification=classification_scores(
                clean.logits.cpu().numpy(), self.test_labels.cpu().numpy(), self.data.num_classes
            ),
        )

    def _test_scores(self, loss_rule: LossRule) -> Evaluation:
        """Score the test images, which in a search are the validation images."""
        return evaluate(
            self.model,
            self.test_images,
            self.test_labels,
            rule=loss_rule,
            batch_size=self.eval_batch_size,
        )

    def validate(self, epoch: int) -> ValidationScore:
        """Score the validation images after an epoch.

        Raises:
            _Diverged: the loss is NaN or infinite.
        """
        scores = self._test_scores("mean_over_examples")
        if not math.isfinite(scores.loss):
            raise _Diverged(f"the validation loss was {scores.loss} after epoch {epoch}")
        return ValidationScore(epoch=epoch, loss=scores.loss, accuracy=scores.accuracy)

    def clean_pass(self) -> CleanPass:
        """Return logits and gradient signs of the test images, computed at the first call."""
        if self._clean is None:
            self._clean = run_clean_pass(
                self.model, self.test_images, self.test_labels, batch_size=self.gradient_batch_size
            )
        return self._clean

    def check_restored(self, earlier: TrialResult) -> None:
        """Check that the network from stored weights is the trained one.

        A user's own network may depend on more than its weights.

        Raises:
            CorruptStoreError: its test loss is another one.
        """
        if earlier.scores is None:
            return
        trained_loss = earlier.scores.test_loss
        loss = self.clean_pass().evaluation(self.recipe.test_loss).loss
        if not math.isclose(
            loss, trained_loss, rel_tol=RESTORED_TOLERANCE, abs_tol=RESTORED_TOLERANCE
        ):
            raise CorruptStoreError(
                f"The network from the kept weights has the test loss {loss:.6g}, but had "
                f"{trained_loss:.6g} after training",
                hint="Let its forward pass depend on parameters and buffers alone",
            )

    def measure(self, requested: Sequence[Measurement], keep_predictions: Keep | None) -> _Measured:
        """Make the requested measurements on the trained network."""
        representations = _of_type(requested, RepresentationMeasurement)
        of_last_layer = [m.estimator for m in representations if not m.stages]
        of_stages = [m.estimator for m in representations if m.stages]
        with self._timed("d_repr"):
            d_repr = self._measure_d_repr(of_last_layer)
            d_repr_stages = self._measure_d_repr_stages(of_stages)
        predictions = None
        predictions_note = ""
        if _of_type(requested, PredictionMeasurement):
            predictions, predictions_note = _stored(keep_predictions, self._predictions_file)
        with self._timed("attack"):
            attacks = attack_all(
                self.model,
                self.test_images,
                self.test_labels,
                _of_type(requested, AttackMeasurement),
                self.clean_pass(),
                batch_size=self.gradient_batch_size,
                loss_rule=self.recipe.test_loss,
            )
        robustness = None
        for measurement in _of_type(requested, RobustnessMeasurement):  # one at most
            with self._timed("robustness"):
                robustness = self._measure_robustness(self.test_images, measurement.robustness)
        return _Measured(
            d_repr=d_repr,
            d_repr_stages=d_repr_stages,
            attacks=tuple(attacks),
            robustness=robustness,
            further_tests=self._measure_further_tests(_of_type(requested, FurtherTestMeasurement)),
            predictions=predictions,
            predictions_note=predictions_note,
        )

    def _predictions_file(self) -> bytes:
        """Return a Parquet file with the logits and labels of the test images."""
        logits = self.clean_pass().logits.cpu().numpy()
        return to_parquet(logits, self.test_labels.cpu().numpy(), self.data.test_rows)

    def _measure_d_repr(self, estimators: Sequence[str]) -> dict[str, IntrinsicDimension]:
        """Return the intrinsic dimension of the last hidden layer, by estimator."""
        if not estimators:
            return {}
        features = self.features
        if features is None:
            features = extract_features(self.model, self.images)
        return self._estimate_dimension(features, estimators)

    def _measure_d_repr_stages(self, estimators: Sequence[str]) -> tuple[StageRecord, ...]:
        """Return the intrinsic dimension of the activations after every stage."""
        if not estimators:
            return ()
        # All stages are looked up before the first is measured, so that errors come early.
        sources = [
            StageRows(self.model, name, self.images) for name in stages(self.model, self.images[:1])
        ]
        records: list[StageRecord] = []
        for source in sources:
            d_repr = self._estimate_dimension(source, estimators, block_rows=source.block_rows)
            num_features = math.prod(source.row_shape)
            records.append(
                StageRecord(module=source.module, num_features=num_features, d_repr=d_repr)
            )
        return tuple(records)

    def _estimate_dimension(
        self,
        features: NDArray[np.float32] | StageRows,
        estimators: Sequence[str],
        block_rows: int = BLOCK_ROWS,
    ) -> dict[str, IntrinsicDimension]:
        """Return the intrinsic dimension of features, with the options of this trial."""
        return estimate_dimension(
            features,
            estimators,
            num_neighbors=self.spec.representation.num_neighbors,
            discard_fraction=self.network.subset.twonn_discard_fraction,
            seed=derive_seed("d_repr", self.seed),
            block_rows=block_rows,
        )

    def _measure_robustness(self, images: Tensor, spec: RobustnessSpec) -> RobustnessRecord:
        """Measure robustness on ``images``, which have the labels of the test images."""
        return measure_robustness(
            self.model,
            images,
            self.test_labels,
            self.images,
            spec,
            # The seed of the data, not of the network: all networks of a subset, and of its
            # conditions, are measured on the same images.
            seed=derive_seed("r_hat", self.network.subset.without_condition),
            batch_size=self.gradient_batch_size,
        )

    def _measure_further_tests(
        self, requested: Sequence[FurtherTestMeasurement]
    ) -> tuple[FurtherTestRecord, ...]:
        """Score the network on further test sets.

        Raises:
            DataError: the images of a set were not given.
        """
        image_sets = {images.name: images for images in self.data.further_tests}
        records: list[FurtherTestRecord] = []
        for measurement in requested:
            name = measurement.test.name
            if name not in image_sets:
                raise DataError(
                    f"The trial's images have no further test set named {name}",
                )
            records.append(self._measure_further_test(image_sets[name], measurement.robustness))
        return tuple(records)

    def _measure_further_test(
        self, test: FurtherTestImages, robustness: RobustnessSpec | None
    ) -> FurtherTestRecord:
        """Score one further test set: all its images, those that were moved, and the others."""
        images = to_device(test.images, self.device)
        clean = run_clean_pass(
            self.model, images, self.test_labels, batch_size=self.gradient_batch_size
        )
        is_blended = torch.from_numpy(test.is_blended).to(self.device)
        record = FurtherTestRecord(
            name=test.name,
            num_moved=int(is_blended.sum()),
            loss=_finite_mean(clean.losses),
            accuracy=float(clean.correct.double().mean()),
            moved_loss=_finite_mean(clean.losses[is_blended]),
            moved_accuracy=_finite_mean(clean.correct[is_blended]),
            unmoved_loss=_finite_mean(clean.losses[~is_blended]),
            unmoved_accuracy=_finite_mean(clean.correct[~is_blended]),
        )
        if robustness is None:
            return record
        return record.model_copy(
            update={"robustness": self._measure_robustness(images, robustness)}
        )

    def _result(
        self, status: TrialStatus, test_history: Sequence[EpochScore], reason: str = ""
    ) -> TrialResult:
        """Return the result without the measurements; ``reason`` says why the trial diverged."""
        best = min(test_history, key=lambda score: score.test_loss, default=None)
        return TrialResult(
            status=status,
            reason=reason,
            seed=self.seed,
            device=str(self.device),
            num_threads=self.compute.num_threads,
            scores=self.scores,
            history=tuple(self.history),
            test_history=tuple(test_history),
            best_epoch=None if best is None else best.epoch,
            timings=Timings(**self.timings),
            peak_memory_bytes=peak_bytes(self.device),
            micro_batch=self.compute.micro_batch,
            step_path="graph" if self.graphs else "eager",
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Measure the seconds of a phase, until the GPU has finished its work."""
        start = time.perf_counter()
        # A phase that ends because a loss diverged is timed too. After any other error nothing is
        # timed: to wait for a GPU that failed would raise a second error.
        diverged = None
        try:
            yield
        except _Diverged as error:
            diverged = error
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.timings[phase] = time.perf_counter() - start
        if diverged is not None:
            raise diverged


# A kind of measurement.
M = TypeVar("M", bound=Measurement)


def _of_type(measurements: Sequence[Measurement], kind: type[M]) -> list[M]:
    """Return the measurements of one kind."""
    return [measurement for measurement in measurements if isinstance(measurement, kind)]


def _stored(keep: Keep | None, content: Callable[[], bytes]) -> tuple[KeptFile | None, str]:
    """Store a file if ``keep`` is given; return it, or None and the reason why it is not stored."""
    if keep is None:
        return None, ""
    stored = keep(content())
    if isinstance(stored, KeptFile):
        return stored, ""
    return None, stored


def _finite_mean(values: Tensor) -> float | None:
    """Return the mean of ``values`` ``(num_images,)``; None if it is not finite (no image)."""
    mean = float(values.double().mean())
    return mean if math.isfinite(mean) else None


def check_inputs(network: NetworkSpec, data: TrialData) -> None:
    """Check the images, labels and sizes of a trial.

    Raises:
        ConfigError: there are fewer outputs than classes.
        DataError: there are fewer training images than requested, or pixels or labels are out of
            range.
    """
    if network.train_size > len(data.train_images):
        raise DataError(
            f"train_size is {network.train_size}, but the subset has {len(data.train_images)} "
            "training images",
            hint="Choose a smaller train_size or a smaller test_size",
        )
    num_outputs = network.recipe.num_outputs
    if num_outputs is not None and num_outputs < data.num_classes:
        raise ConfigError(
            f"num_outputs is {num_outputs}, but the data have {data.num_classes} classes",
            hint="Leave num_outputs out of the recipe to get one output per class",
        )
    rows = slice(network.train_size)
    _check_arrays("training", data.train_images[rows], data.train_labels[rows], data.num_classes)
    _check_arrays("test", data.test_images, data.test_labels, data.num_classes)


def _check_arrays(
    name: str, images: NDArray[Any], labels: NDArray[np.int64], num_classes: int
) -> None:
    """Check that pixels and labels are in range; ``name`` says which images these are."""
    # A comparison with NaN is false, so NaN is refused as well.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 255):
        raise DataError(
            f"Pixels of the {name} images run from {images.min()} to {images.max()}, "
            "not within 0 to 255",
            hint="Scale the images to [0, 255] and prepare them again",
        )
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"Labels of the {name} images run from {labels.min()} to {labels.max()}, "
            f"but classes are numbered 0 to {num_classes - 1}",
            hint="Prepare the dataset again, or correct num_classes",
        )

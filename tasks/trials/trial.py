"""Run one trial as a pure function of a spec and images. The result is a record.

Only callbacks of the caller read and write files. At the end, the random state, the thread
counts and the determinism settings of the process are restored. On a CPU, two trials with the
same spec, data and ``num_threads`` have equal results, to the last bit. Earlier trials in the
process do not change the results.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import ConfigError, CorruptStoreError, DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import MeasurementRequest, NetworkSpec, TestLoss, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.attacks import attack_batch_size
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.evaluation import Evaluation, evaluate, scaled_batch_size
from tasks.trials.image_tensors import to_device
from tasks.trials.isolation import (
    EnergyMeter,
    deterministic,
    fixed_torch_state,
    peak_bytes,
    trial_memory,
)
from tasks.trials.measurements import (
    NOT_REQUESTED,
    StorageResult,
    StoreFile,
    TrainedNetwork,
    store_if_requested,
)
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.phases import Diverged, PhaseTimer
from tasks.trials.records import (
    EVALUATION_PASS,
    ON_ONE_THREAD,
    ComputeOptions,
    EpochRecord,
    EpochScore,
    NetworkScores,
    SearchResult,
    SearchStatus,
    Timings,
    TrialResult,
    TrialStatus,
    ValidationScore,
    scored_epochs,
)
from tasks.trials.representations import collect_features
from tasks.trials.scores import classification_scores
from tasks.trials.training import train
from tasks.trials.weights import load_into, to_bytes

RESTORED_TOLERANCE = 1e-3
"""Largest allowed difference, relative or absolute, between two test losses of one network.
The first loss was computed after the training, and the second after loading the stored
weights. Another device or number of threads changes the loss by far less."""


def run_trial(
    spec: TrialSpec,
    data: TrialData,
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_score: Callable[[EpochScore], None] | None = None,
    store_weights: StoreFile | None = None,
    store_predictions: StoreFile | None = None,
    checkpoints: Checkpoints | None = None,
    pretrained_weights: bytes | None = None,
) -> TrialResult:
    """Train and evaluate one network, and make the measurements that the spec requests.

    If a loss is NaN or infinite, the function raises no error. It returns a result with the
    status ``diverged`` and without scores.

    Args:
        spec: The spec, with the network, its recipe, the train size and the measurements.
        data: The arrays of the subset. They may be read-only. The network is trained on the
            first ``train_size`` training images.
        compute: Device, threads and memory.
        on_epoch: Function that is called with the record of every finished epoch.
        on_score: Function that is called with the scores on the test images after each epoch
            in :func:`scored_epochs`, before ``on_epoch``.
        store_weights: Function that stores the weights of the trained network; None to store
            no weights.
        store_predictions: Function that stores the predictions as a Parquet file. It is called
            only if ``spec`` requests predictions.
        checkpoints: Object that restores the state of an interrupted training, and saves the
            state after some epochs. If it is None, the trial has no checkpoints.
        pretrained_weights: Content of the file with the initial weights of a pretrained
            network; None for random initial weights.

    Raises:
        ConfigError: The spec cannot be run. For example, the image is too small for the
            architecture, there are fewer outputs than classes, or the batch is too small for
            batch norm.
        DataError: There are fewer training images than requested, or pixels or labels are out
            of range.
        CaptureError: Training steps cannot be captured as CUDA graphs. End the process after
            this error, because the memory of the capture is not freed earlier.
        torch.OutOfMemoryError: The trial needs more memory than is free on the GPU, or more
            than the trial's share of the GPU. The trial's memory is freed before the error is
            raised.
        MemoryError: The trial needs more memory than is free on the machine.
    """
    check_inputs(spec.network, data)
    model = spec.network.model
    if model.pretrained and pretrained_weights is None:
        raise ConfigError(
            f"The model {model.name} has `pretrained: true`, but the weights were not passed",
            hint="Pass pretrained_weights=tasks.trials.weights.download(spec.network.model)",
        )
    with _Trial.isolated(spec, data, compute) as trial:
        meter = EnergyMeter(trial.device)
        with trial.timer.phase("build"):
            trial.build(pretrained_weights)
        if checkpoints is not None:
            # The trial appends its scores to the list object of the checkpoints. So the
            # checkpoints save these scores, and restore them after an interruption.
            trial.test_history = checkpoints.test_history

        def evaluate_epoch(record: EpochRecord) -> None:
            if record.epoch in scored_epochs(trial.recipe.epochs):
                trial.score_epoch(record.epoch, on_score)
            if on_epoch is not None:
                on_epoch(record)

        try:
            with trial.timer.phase("train"):
                trial.fit(evaluate_epoch, checkpoints)
            with trial.timer.phase("evaluate"):
                trained = trial.evaluate_network()
        except Diverged as diverged:
            return trial.result(TrialStatus.DIVERGED, meter, reason=str(diverged))
        weights = store_if_requested(store_weights, lambda: to_bytes(trial.model))
        measurements = trained.measure(spec.requests, trial.timer, store_predictions)
        return measurements.add_to(trial.result(TrialStatus.DONE, meter, weights=weights))


def measure_trial(
    spec: TrialSpec,
    data: TrialData,
    weights: bytes,
    earlier: TrialResult,
    requested: Sequence[MeasurementRequest],
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    store_predictions: StoreFile | None = None,
) -> TrialResult:
    """Make further measurements on a stored network, without training it again.

    The function returns the earlier result with the new measurements added. The timings do not
    include the seconds of these measurements.

    Args:
        spec: The spec of the network, with all its measurements.
        data: The arrays of the subset.
        weights: The stored weights of the network.
        earlier: The earlier result of the network. Its measurements that are not in
            ``requested`` do not change.
        requested: The measurements to make now.
        compute: Device, threads and memory.
        store_predictions: Function that stores the predictions, see :func:`run_trial`.

    Raises:
        CorruptStoreError: The weights belong to another network, or do not reproduce the
            stored test loss.
        ConfigError: See :func:`run_trial`. This function can also raise the other errors of
            :func:`run_trial`.
    """
    check_inputs(spec.network, data)
    with _Trial.isolated(spec, data, compute) as trial:
        trial.build()  # without pretrained weights, because load_into replaces all weights
        load_into(trial.model, weights)
        trained = trial.trained_network()
        trial.check_reproduces_test_loss(trained, earlier)
        measurements = trained.measure(requested, trial.timer, store_predictions)
        return measurements.add_to(earlier)


def run_search_trial(
    network: NetworkSpec,
    data: TrialData,
    compute: ComputeOptions = ON_ONE_THREAD,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> SearchResult:
    """Train one candidate of a learning-rate search, and validate it after every epoch.

    The training images of a trial of the sweep are divided into training and validation
    images. The network is built, seeded and trained as in the sweep, but only on the training
    images of this split. The function raises the same errors as :func:`run_trial`.

    Args:
        network: The spec of the network in the sweep.
        data: The validation split, from :func:`tasks.prepared.subsets.load_validation`. In
            this object, the test images are the validation images.
        compute: Device, threads and memory.
        on_epoch: Function that is called with the record of every epoch, after the validation
            of this epoch.
    """
    if network.model.pretrained:
        raise ConfigError(
            f"The model {network.model.name} has `pretrained: true`, but trainings of a "
            "search start from random weights",
            hint="Remove the key `pretrained` from this model",
        )
    num_train = len(data.train_images)
    check_inputs(network.model_copy(update={"train_size": num_train}), data)
    validation_history: list[ValidationScore] = []
    with _Trial.isolated(TrialSpec(network=network), data, compute) as trial:
        trial.build()

        def validate_epoch(record: EpochRecord) -> None:
            validation_history.append(trial.validate(record.epoch))
            if on_epoch is not None:
                on_epoch(record)

        status = SearchStatus.COMPLETE
        reason = ""
        num_epochs = network.recipe.epochs
        try:
            trial.fit(validate_epoch)
            if not validation_history:  # the recipe has 0 epochs
                validation_history.append(trial.validate(0))
        except Diverged as diverged:
            status = SearchStatus.DIVERGED
            reason = str(diverged)
            # The history does not contain the diverged epoch, but the network was trained in
            # it. If the recipe has 0 epochs, no epoch was trained.
            num_epochs = min(num_epochs, len(validation_history) + 1)
        return SearchResult(
            status=status,
            reason=reason,
            epochs=num_epochs,
            curve=tuple(validation_history),
            num_train=num_train,
            num_validation=len(data.test_images),
            num_classes=data.num_classes,
            chance_loss=math.log(data.num_classes),
            device=str(trial.device),
            num_threads=compute.num_threads,
            peak_memory_bytes=peak_bytes(trial.device),
            micro_batch=compute.micro_batch,
        )


class _Trial:
    """A network, the images of its trial, and the results that exist so far.

    Create a trial with :meth:`isolated`, which restores the settings of the process.

    Attributes:
        spec: The spec of the trial, with the network and its measurements.
        network_spec: The spec of the network to build.
        recipe: The training recipe of the network.
        seed: Seed from which all other seeds of the trial are derived.
        data: The arrays of the subset, on the CPU.
        compute: Device, threads and memory.
        device: The device of the model and of all images.
        uses_cuda_graphs: True if training steps are captured as CUDA graphs.
        images: The training images.
        labels: Labels of the training images.
        held_out_images: The test images; in a search, the validation images.
        held_out_labels: Labels of the held-out images.
        eval_batch_size: Number of images in a forward pass of an evaluation.
        model: The network with its input scaling. This attribute exists only after
            :meth:`build`.
        scores: Scores of the trained network; None before the evaluation.
        train_history: Records of the finished epochs, without a diverged epoch.
        test_history: Scores on the test images after some epochs, see :func:`scored_epochs`.
        pretrained_sha256: SHA-256 of the pretrained initial weights; empty for random weights.
        timer: Timer with the seconds of each finished phase.
    """

    model: PixelModel

    def __init__(self, spec: TrialSpec, data: TrialData, compute: ComputeOptions) -> None:
        self.spec = spec
        self.network_spec = spec.network
        self.recipe = spec.network.recipe
        self.seed = spec.derived_seed
        self.data = data
        self.compute = compute
        self.device = torch.device(compute.device)
        self.uses_cuda_graphs = compute.graphs and self.device.type == "cuda"
        # A search trains on fewer than train_size images. The slice then contains all of them.
        train_rows = slice(self.network_spec.train_size)
        self.images = to_device(data.train_images[train_rows], self.device)
        self.labels = to_device(data.train_labels[train_rows], self.device)
        self.held_out_images = to_device(data.test_images, self.device)
        self.held_out_labels = to_device(data.test_labels, self.device)
        self.eval_batch_size = scaled_batch_size(EVALUATION_PASS, self.recipe, compute.micro_batch)
        self.scores: NetworkScores | None = None
        self.train_history: list[EpochRecord] = []
        self.test_history: list[EpochScore] = []
        self.pretrained_sha256 = ""
        self.timer = PhaseTimer(self.device)

    @classmethod
    @contextmanager
    def isolated(
        cls, spec: TrialSpec, data: TrialData, compute: ComputeOptions
    ) -> Iterator[_Trial]:
        """Yield a trial. After the ``with`` block, restore the random state and settings of
        the process.

        Before the block, the random generators are seeded, because some networks draw random
        numbers in evaluation mode.
        """
        device = torch.device(compute.device)
        with (
            trial_memory(device, compute.gpu_fraction, compute.context_bytes),
            fixed_torch_state(derive_seed("evaluation", spec.derived_seed), device),
            deterministic(device, compute.num_threads),
        ):
            yield cls(spec, data, compute)

    def build(self, pretrained_weights: bytes | None = None) -> None:
        """Build the network with seeded random weights, or with pretrained weights."""
        if pretrained_weights is not None:
            self.pretrained_sha256 = hashlib.sha256(pretrained_weights).hexdigest()
        _, num_channels, image_size, _ = self.data.train_images.shape
        self.model = build_model(
            self.network_spec.model,
            num_outputs=self.recipe.num_outputs or self.data.num_classes,
            in_channels=num_channels,
            image_size=image_size,
            input_scale=self.recipe.input_scale,
            dropout=self.recipe.dropout,
            seed=derive_seed("weights", self.seed),
            pretrained=pretrained_weights,
        ).to(self.device)

    def fit(
        self, on_epoch: Callable[[EpochRecord], None], checkpoints: Checkpoints | None = None
    ) -> None:
        """Train the network, and set ``train_history``.

        Raises:
            Diverged: The training loss of an epoch is NaN or infinite. ``on_epoch`` may raise
                this error too.
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
            graphs=self.uses_cuda_graphs,
        )
        self.train_history = [record for record in history if not record.diverged]
        if history and history[-1].diverged:
            last = history[-1]
            raise Diverged(f"the training loss was {last.train_loss} in epoch {last.epoch}")

    def evaluate_network(self) -> TrainedNetwork:
        """Compute losses and accuracies of the trained network, and set ``scores``.

        The network runs once over the training images and once over the test images. The first
        pass also collects the activations of the last hidden layer. The second pass also
        computes the gradients for attacks. Some layers use other kernels if gradients are
        computed. The last digits of the test loss may therefore differ from the result of
        :func:`~tasks.trials.evaluation.evaluate`.

        Returns:
            The trained network, with the activations and the gradients of these two passes.

        Raises:
            Diverged: A loss is NaN or infinite.
        """
        loss_rule = self.recipe.test_loss
        with collect_features(self.model, len(self.images)) as features:
            train_scores = evaluate(
                self.model,
                self.images,
                self.labels,
                loss_rule=loss_rule,
                batch_size=self.eval_batch_size,
            )
        trained = self.trained_network(features.array)
        clean = trained.clean_pass
        test_scores = clean.evaluation(loss_rule)
        for name, scores in (("train", train_scores), ("test", test_scores)):
            if not math.isfinite(scores.loss):
                raise Diverged(f"the {name} loss of the trained network is {scores.loss}")
        classification = classification_scores(
            clean.logits.cpu().numpy(),
            self.held_out_labels.cpu().numpy(),
            self.data.num_classes,
        )
        self.scores = NetworkScores(
            num_parameters=num_parameters(self.model),
            train_loss=train_scores.loss,
            train_accuracy=train_scores.accuracy,
            test_loss=test_scores.loss,
            test_accuracy=test_scores.accuracy,
            classification=classification,
        )
        return trained

    def _evaluate_held_out(self, loss_rule: TestLoss) -> Evaluation:
        """Return loss and accuracy on the held-out images."""
        return evaluate(
            self.model,
            self.held_out_images,
            self.held_out_labels,
            loss_rule=loss_rule,
            batch_size=self.eval_batch_size,
        )

    def score_epoch(self, epoch: int, on_score: Callable[[EpochScore], None] | None) -> None:
        """Add the scores on the test images to ``test_history``, unless the loss is not finite."""
        scores = self._evaluate_held_out(self.recipe.test_loss)
        if not math.isfinite(scores.loss):
            return
        score = EpochScore(epoch=epoch, test_loss=scores.loss, test_accuracy=scores.accuracy)
        self.test_history.append(score)
        if on_score is not None:
            on_score(score)

    def validate(self, epoch: int) -> ValidationScore:
        """Return the scores on the validation images after an epoch.

        Raises:
            Diverged: The loss is NaN or infinite.
        """
        # A search compares candidates by the plain mean of the losses. The loss rule of a
        # recipe exists only to reproduce published test losses.
        scores = self._evaluate_held_out("mean_over_examples")
        if not math.isfinite(scores.loss):
            raise Diverged(f"the validation loss was {scores.loss} after epoch {epoch}")
        return ValidationScore(epoch=epoch, loss=scores.loss, accuracy=scores.accuracy)

    def trained_network(self, features: NDArray[np.float32] | None = None) -> TrainedNetwork:
        """Return the trained network, with the images on which it is measured.

        Args:
            features: Activations of the last hidden layer for the training images; None if
                they are not computed yet.
        """
        return TrainedNetwork(
            model=self.model,
            spec=self.spec,
            data=self.data,
            train_images=self.images,
            test_images=self.held_out_images,
            test_labels=self.held_out_labels,
            gradient_batch_size=attack_batch_size(self.recipe, self.compute.micro_batch),
            features=features,
        )

    def check_reproduces_test_loss(
        self,
        restored: TrainedNetwork,
        earlier: TrialResult,
    ) -> None:
        """Check that the stored weights reproduce the test loss that the network had after
        training.

        The two losses differ if the file contains the weights of another network. They also
        differ if the output of a user's network depends on more than its weights.

        Raises:
            CorruptStoreError: The test loss differs.
        """
        if earlier.scores is None:
            return
        trained_loss = earlier.scores.test_loss
        loss = restored.clean_pass.evaluation(self.recipe.test_loss).loss
        if not math.isclose(
            loss, trained_loss, rel_tol=RESTORED_TOLERANCE, abs_tol=RESTORED_TOLERANCE
        ):
            raise CorruptStoreError(
                f"With its stored weights, the network has the test loss {loss:.6g}, but "
                f"after training, the test loss was {trained_loss:.6g}",
                hint="Change the network so that its output depends only on parameters and buffers",
            )

    def result(
        self,
        status: TrialStatus,
        meter: EnergyMeter,
        *,
        reason: str = "",
        weights: StorageResult = NOT_REQUESTED,
    ) -> TrialResult:
        """Return the result of the trial, without measurements.

        Args:
            status: The way in which the trial ended.
            meter: The meter that measures the energy of the trial.
            reason: Reason why the trial diverged; empty if it did not diverge.
            weights: The stored file of the trained network's weights.
        """
        energy = meter.read()
        # The best epoch is chosen with the test images, so its loss is not reported as a
        # result.
        best = min(self.test_history, key=lambda score: score.test_loss, default=None)
        return TrialResult(
            status=status,
            reason=reason,
            seed=self.seed,
            device=str(self.device),
            num_threads=self.compute.num_threads,
            scores=self.scores,
            history=tuple(self.train_history),
            test_history=tuple(self.test_history),
            best_epoch=None if best is None else best.epoch,
            weights=weights.file,
            weights_note=weights.missing_reason,
            timings=Timings(**self.timer.seconds),
            peak_memory_bytes=peak_bytes(self.device),
            pretrained=self.pretrained_sha256,
            energy_j=energy.joules,
            energy_note=energy.missing_reason,
            micro_batch=self.compute.micro_batch,
            step_path="graph" if self.uses_cuda_graphs else "eager",
        )


def check_inputs(network: NetworkSpec, data: TrialData) -> None:
    """Check the images, labels and sizes of a trial.

    Raises:
        ConfigError: There are fewer outputs than classes.
        DataError: There are fewer training images than requested, or pixels or labels are out
            of range.
    """
    if network.train_size > len(data.train_images):
        raise DataError(
            f"train_size is {network.train_size}, but there are only {len(data.train_images)} "
            "training images",
            hint="Choose a smaller train_size or a smaller test_size",
        )
    num_outputs = network.recipe.num_outputs
    if num_outputs is not None and num_outputs < data.num_classes:
        raise ConfigError(
            f"num_outputs is {num_outputs}, but the data have {data.num_classes} classes",
            hint="Remove num_outputs from the recipe. The network then has one output per class",
        )
    rows = slice(network.train_size)
    _check_arrays("training", data.train_images[rows], data.train_labels[rows], data.num_classes)
    _check_arrays("test", data.test_images, data.test_labels, data.num_classes)


def _check_arrays(
    name: str, images: NDArray[Any], labels: NDArray[np.int64], num_classes: int
) -> None:
    """Check that pixels and labels are in range.

    Args:
        name: Name of the set in messages: "training" or "test".
        images: Images of the set, ``(num_images, channels, height, width)``.
        labels: Labels of these images, ``(num_images,)``.
        num_classes: Number of classes.
    """
    # A comparison with NaN is false, so NaN raises an error too.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 255):
        raise DataError(
            f"The pixels of the {name} images are between {images.min()} and {images.max()}, "
            "but must be between 0 and 255",
            hint="Scale the images to [0, 255], and prepare the dataset again",
        )
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"The labels of the {name} images are between {labels.min()} and {labels.max()}, "
            f"but the classes are numbered from 0 to {num_classes - 1}",
            hint="Prepare the dataset again, or correct num_classes",
        )

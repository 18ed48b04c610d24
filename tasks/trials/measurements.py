"""Make measurements on a trained network.

The measurements are the intrinsic dimension of its representations (*d_repr*), attacks,
robustness, predictions on the test images, and scores on *further test sets*. A further test
set consists of the test images of a base dataset after a condition has blended some of them.
The condition blends an image with a training image of another class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from search_spaces.errors import DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import (
    AttackRequest,
    FurtherTestRequest,
    MeasurementRequest,
    PredictionRequest,
    RepresentationRequest,
    RobustnessRequest,
    RobustnessSpec,
    TrialSpec,
)
from tasks.array_types import Float32Array
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.prepared.subsets import FurtherTestImages, TrialData
from tasks.trials.attacks import CleanPass, attack_all, run_clean_pass
from tasks.trials.image_tensors import to_device
from tasks.trials.models import PixelModel
from tasks.trials.phases import PhaseTimer
from tasks.trials.records import (
    AttackRecord,
    FurtherTestRecord,
    RobustnessRecord,
    StageRecord,
    TrialFile,
    TrialResult,
)
from tasks.trials.representations import estimate_dimension, extract_features
from tasks.trials.robustness import measure_robustness
from tasks.trials.scores import to_parquet
from tasks.trials.stages import StageRows, list_stages

StoreFile = Callable[[bytes], TrialFile | str]
"""Function that receives the content of a file, and stores this file beside the result of the
trial. It returns the checksum and size of the stored file. If it cannot store the file, it
returns the reason as text."""


@dataclass(frozen=True)
class StorageResult:
    """The stored file of a trial, or the reason why it could not be stored.

    Attributes:
        file: Checksum and size of the file; None if the file is not stored.
        missing_reason: Reason why a requested file is not stored; empty if the file is stored
            or was not requested.
    """

    file: TrialFile | None = None
    missing_reason: str = ""


NOT_REQUESTED = StorageResult()
"""The storage result of a file that was not requested."""


def store_if_requested(store: StoreFile | None, content: Callable[[], bytes]) -> StorageResult:
    """Store a file if it was requested.

    Args:
        store: Function that stores the file; None if the file was not requested.
        content: Function that computes the content of the file.
    """
    if store is None:
        return NOT_REQUESTED
    stored = store(content())
    if isinstance(stored, TrialFile):
        return StorageResult(file=stored)
    return StorageResult(missing_reason=stored)


@dataclass(frozen=True)
class MeasurementResults:
    """The results of the requested measurements on one trained network.

    :class:`~tasks.trials.records.TrialResult` has fields with the same names, and describes
    these fields. If a measurement was not requested, its field is empty, None or
    :data:`NOT_REQUESTED`. :meth:`add_to` does not change this field of the earlier result.
    """

    d_repr: dict[str, IntrinsicDimension]
    d_repr_stages: tuple[StageRecord, ...]
    attacks: tuple[AttackRecord, ...]
    robustness: RobustnessRecord | None
    further_tests: tuple[FurtherTestRecord, ...]
    predictions: StorageResult

    def add_to(self, earlier: TrialResult) -> TrialResult:
        """Return a copy of an earlier result, with these measurements added or replaced."""
        predictions_note = earlier.predictions_note
        if self.predictions != NOT_REQUESTED:
            predictions_note = self.predictions.missing_reason
        # A new measurement replaces an earlier one with the same name.
        attacks = {attack.name: attack for attack in (*earlier.attacks, *self.attacks)}
        further_tests = {test.name: test for test in (*earlier.further_tests, *self.further_tests)}
        return earlier.model_copy(
            update={
                "d_repr": {**earlier.d_repr, **self.d_repr},
                "d_repr_stages": _merge_stages(earlier.d_repr_stages, self.d_repr_stages),
                "attacks": tuple(attacks.values()),
                "robustness": self.robustness or earlier.robustness,
                "further_tests": tuple(further_tests.values()),
                "predictions": self.predictions.file or earlier.predictions,
                "predictions_note": predictions_note,
            }
        )


def _merge_stages(
    earlier: Sequence[StageRecord], new: Sequence[StageRecord]
) -> tuple[StageRecord, ...]:
    """Merge the records of the stages that occur in ``earlier`` or ``new``.

    A new estimate replaces an earlier estimate of the same stage and estimator.
    """
    merged = {stage.module: stage for stage in earlier}
    for stage in new:
        d_repr = stage.d_repr
        if stage.module in merged:
            d_repr = {**merged[stage.module].d_repr, **d_repr}
        merged[stage.module] = stage.model_copy(update={"d_repr": d_repr})
    return tuple(merged.values())


@dataclass
class TrainedNetwork:
    """A trained network, and the images on which it is measured.

    Attributes:
        model: The network with its input scaling.
        spec: The spec of the trial.
        data: The arrays of the subset. This class uses only ``test_rows`` and
            ``further_tests``.
        train_images: The training images, on the device of the model.
        test_images: The test images, on the device of the model.
        test_labels: Labels of the test images, on the device of the model.
        gradient_batch_size: Number of images in a pass that also computes the gradient with
            respect to the pixels.
        features: Activations of the last hidden layer for the training images; None if they
            are not computed yet.
    """

    model: PixelModel
    spec: TrialSpec
    data: TrialData
    train_images: Tensor
    test_images: Tensor
    test_labels: Tensor
    gradient_batch_size: int
    features: Float32Array | None = None

    @cached_property
    def clean_pass(self) -> CleanPass:
        """The logits and gradient signs of the test images. They are computed when they are
        first used.
        """
        return run_clean_pass(
            self.model, self.test_images, self.test_labels, batch_size=self.gradient_batch_size
        )

    def measure(
        self,
        requested: Sequence[MeasurementRequest],
        timer: PhaseTimer,
        store_predictions: StoreFile | None,
    ) -> MeasurementResults:
        """Make the requested measurements.

        Args:
            requested: The measurements to make.
            timer: Timer for the phases ``d_repr``, ``attack`` and ``robustness``.
            store_predictions: Function that stores the predictions. It is called only if
                ``requested`` contains a request for predictions.

        Raises:
            DataError: The data of the trial do not contain a requested further test set.
        """
        representations = _of_type(requested, RepresentationRequest)
        of_last_layer = [request.estimator for request in representations if not request.stages]
        of_stages = [request.estimator for request in representations if request.stages]
        with timer.phase("d_repr"):
            d_repr = self._measure_d_repr(of_last_layer)
            d_repr_stages = self._measure_d_repr_stages(of_stages)
        predictions = NOT_REQUESTED
        if _of_type(requested, PredictionRequest):
            predictions = store_if_requested(store_predictions, self._predictions_file)
        with timer.phase("attack"):
            attacks = attack_all(
                self.model,
                self.test_images,
                self.test_labels,
                _of_type(requested, AttackRequest),
                self.clean_pass,  # cached: the test loss needed it before
                batch_size=self.gradient_batch_size,
                loss_rule=self.spec.network.recipe.test_loss,
            )
        robustness = None
        for robustness_request in _of_type(requested, RobustnessRequest):  # at most one
            with timer.phase("robustness"):
                robustness = self._measure_robustness(
                    self.test_images, robustness_request.robustness
                )
        return MeasurementResults(
            d_repr=d_repr,
            d_repr_stages=d_repr_stages,
            attacks=tuple(attacks),
            robustness=robustness,
            further_tests=self._measure_further_tests(_of_type(requested, FurtherTestRequest)),
            predictions=predictions,
        )

    def _predictions_file(self) -> bytes:
        """Return the content of a Parquet file with logits and labels of the test images."""
        logits = self.clean_pass.logits.cpu().numpy()
        return to_parquet(logits, self.test_labels.cpu().numpy(), self.data.test_rows)

    def _measure_d_repr(self, estimators: Sequence[str]) -> dict[str, IntrinsicDimension]:
        """Return one estimate of the last hidden layer's dimension per estimator."""
        if not estimators:
            return {}
        features = self.features
        if features is None:
            features = extract_features(self.model, self.train_images)
        return self._estimate_dimension(features, estimators)

    def _measure_d_repr_stages(self, estimators: Sequence[str]) -> tuple[StageRecord, ...]:
        """Return the intrinsic dimension of the activations after every stage of the network."""
        if not estimators:
            return ()
        names = list_stages(self.model, self.train_images[:1])
        # StageRows runs the network on one image to get the shape of a row. So if any stage
        # raises an error, it does so before the first stage is measured.
        sources = [StageRows(self.model, name, self.train_images) for name in names]
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
        features: Float32Array | StageRows,
        estimators: Sequence[str],
        block_rows: int = BLOCK_ROWS,
    ) -> dict[str, IntrinsicDimension]:
        """Return one estimate of the intrinsic dimension per estimator, with this trial's
        settings.

        Args:
            features: The activations, as an array ``(num_images, num_features)`` or as a
                source that computes them.
            estimators: Names of the estimators.
            block_rows: Number of images in a block of the neighbor search.
        """
        return estimate_dimension(
            features,
            estimators,
            num_neighbors=self.spec.representation.num_neighbors,
            discard_fraction=self.spec.network.subset.twonn_discard_fraction,
            seed=derive_seed("d_repr", self.spec.derived_seed),
            block_rows=block_rows,
        )

    def _measure_robustness(self, images: Tensor, spec: RobustnessSpec) -> RobustnessRecord:
        """Measure robustness on ``images``. Their labels are the labels of the test images."""
        # The seed depends only on the subset without its condition. So the robustness of all
        # networks with this subset is measured on the same images, even if their conditions
        # differ. Do not change the text "r_hat", an old name of the robustness: the seed
        # depends on this text.
        seed = derive_seed("r_hat", self.spec.network.subset.without_condition)
        return measure_robustness(
            self.model,
            images,
            self.test_labels,
            self.train_images,
            spec,
            seed=seed,
            batch_size=self.gradient_batch_size,
        )

    def _measure_further_tests(
        self, requested: Sequence[FurtherTestRequest]
    ) -> tuple[FurtherTestRecord, ...]:
        """Return the scores of the network on further test sets.

        Raises:
            DataError: The data of the trial do not contain one of these sets.
        """
        image_sets = {images.name: images for images in self.data.further_tests}
        records: list[FurtherTestRecord] = []
        for measurement in requested:
            name = measurement.test.name
            if name not in image_sets:
                hint = "Remove the request, because this dataset has no further test sets"
                if image_sets:
                    hint = f"Request a further test set of this dataset: {', '.join(image_sets)}"
                raise DataError(
                    f"The trial has no images for the further test set {name!r}",
                    hint=hint,
                )
            records.append(self._measure_further_test(image_sets[name], measurement.robustness))
        return tuple(records)

    def _measure_further_test(
        self, test: FurtherTestImages, robustness: RobustnessSpec | None
    ) -> FurtherTestRecord:
        """Return the scores on one further test set.

        The scores are computed three times: for all images, for the blended images, and for
        the other images. The names of the stored fields use the word *moved* for blended
        images, and *unmoved* for the other images.
        """
        images = to_device(test.images, self.test_images.device)
        clean = run_clean_pass(
            self.model, images, self.test_labels, batch_size=self.gradient_batch_size
        )
        is_blended = torch.from_numpy(test.is_blended).to(images.device)
        is_not_blended = ~is_blended
        robustness_record = None
        if robustness is not None:
            robustness_record = self._measure_robustness(images, robustness)
        return FurtherTestRecord(
            name=test.name,
            num_moved=int(is_blended.sum()),
            loss=_finite_mean(clean.losses),
            # There is at least one test image, so the accuracy is finite.
            accuracy=float(clean.is_correct.double().mean()),
            moved_loss=_finite_mean(clean.losses[is_blended]),
            moved_accuracy=_finite_mean(clean.is_correct[is_blended]),
            unmoved_loss=_finite_mean(clean.losses[is_not_blended]),
            unmoved_accuracy=_finite_mean(clean.is_correct[is_not_blended]),
            robustness=robustness_record,
        )


RequestKind = TypeVar("RequestKind", bound=MeasurementRequest)


def _of_type(
    requests: Sequence[MeasurementRequest],
    kind: type[RequestKind],
) -> list[RequestKind]:
    """Return the requests that are instances of ``kind``."""
    return [request for request in requests if isinstance(request, kind)]


def _finite_mean(values: Tensor) -> float | None:
    """Return the mean of ``values``, ``(num_images,)``.

    Returns:
        The mean; None if it is not finite, for example because there are no images.
    """
    mean = float(values.double().mean())
    return mean if math.isfinite(mean) else None

"""What is measured on a trained network, whether it was trained a moment ago or came from kept weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.fingerprint import derive_seed
from search_spaces.specs import AttackSpec
from search_spaces.trials import (
    AttackMeasurement,
    Measurement,
    PredictionMeasurement,
    RepresentationMeasurement,
    RobustnessMeasurement,
    TrialSpec,
)
from tasks.measures.dimension import IntrinsicDimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.trials.attacks import CleanPass, attack_all, attack_batch_size, pass_clean
from tasks.trials.measured import KeptFile, RadiusRecord
from tasks.trials.models import PixelModel
from tasks.trials.predictions import to_parquet
from tasks.trials.representations import estimate_dimension, extract_features
from tasks.trials.result import AttackRecord, StageRecord
from tasks.trials.robustness import measure_radii
from tasks.trials.stages import StageRows, stages
from tasks.trials.training import EVALUATION_BATCH_SIZE, in_parts


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
        """Return fields of a :class:`~tasks.trials.result.TrialResult`: what of ``missing`` was found."""
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

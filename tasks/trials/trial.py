"""One trial as a pure function: its spec and its images go in, a result record comes out.

Nothing is read or written, and nothing of the process's random state, thread counts or determinism
switches is left changed. On a CPU the same spec, data and ``num_threads`` give the same numbers to
the last bit, whatever ran before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import ConfigError, CorruptStoreError, DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import (
    AttackMeasurement,
    AttackSpec,
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
from tasks.trials.attacks import CleanPass, attack_all, attack_pass, measure_radii, pass_clean
from tasks.trials.isolation import EnergyMeter, contained, deterministic, peak_bytes, trial_memory
from tasks.trials.models import PixelModel, build_model, num_parameters
from tasks.trials.records import (
    EVALUATION_PASS,
    AttackRecord,
    EpochRecord,
    EpochScore,
    FurtherTestRecord,
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
    Checkpoints,
    Evaluation,
    LossRule,
    evaluate,
    in_parts,
    resident,
    train,
)
from tasks.trials.weights import load_into, to_bytes

RESTORED_TOLERANCE = 1e-3
"""Relative and absolute; another device or number of threads changes a test loss by far less."""

Keep = Callable[[bytes], KeptFile | str]
"""Keeps a file beside the result; text says why it could not."""


def run_trial(
    spec: TrialSpec,
    data: TrialData,
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    micro_batch: int | None = None,
    graphs: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_score: Callable[[EpochScore], None] | None = None,
    keep: Keep | None = None,
    keep_predictions: Keep | None = None,
    checkpoints: Checkpoints | None = None,
    pretrained: bytes | None = None,
) -> TrialResult:
    """Train, evaluate, measure d_repr and attack one network.

    Args:
        spec: which network, how trained, on how many images, and what is measured on it.
        data: the subset's arrays, which may be read-only; the first ``train_size`` rows are trained
            on.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory, see :func:`trial_memory`; None sets no limit.
        micro_batch: images that pass the network at once in training, where memory is short, and
            others in as many parts; steps are those of whole batches, but batch norm sees parts. It
            is in the outcome.
        graphs: on a GPU, take steps by captured graphs.
        on_epoch: called with the record of every finished epoch.
        on_score: called before it where the test images were passed after that epoch.
        keep: given the trained network's weights; text says why they could not be kept, which is
            noted.
        keep_predictions: given the predictions, a Parquet file, where ``spec`` asks for them;
            likewise.
        checkpoints: where training leaves off and goes on; None for none.
        pretrained: weights that a pretrained network starts from.

    Raises:
        ConfigError: for a spec that cannot be carried out (image too small for the architecture,
            fewer logits than classes, a batch too small for batch norm).
        DataError: for fewer training images than asked for, or pixels or labels out of range.
        CaptureError: when steps cannot be captured; the process must then end.
        torch.OutOfMemoryError: when the GPU's memory, or its share, is used up; cached memory is
        freed first. MemoryError: when the machine's memory is used up.
    """
    check_inputs(spec.network, data)
    if spec.network.model.pretrained and pretrained is None:
        raise ConfigError("A pretrained network must be given its weights", spec.network.model.name)
    with _Trial.alone(spec, data, device, num_threads, gpu_fraction, micro_batch, graphs) as trial:
        meter = EnergyMeter(trial.device)
        result = trial.run(on_epoch, on_score, keep, keep_predictions, checkpoints, pretrained)
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
    micro_batch: int | None = None,
    keep_predictions: Keep | None = None,
) -> TrialResult:
    """Measure on a network's kept weights what was not measured yet; nothing is trained.

    ``missing`` is what is to be measured of a network with these ``weights``; everything in
    ``known``, what was found before, stays as it is, to the last bit. The other arguments are those
    of :func:`run_trial`.

    Raises:
        CorruptStoreError: when the weights are not those of this network, or it needs more than its
            weights to give the loss that is known; and as :func:`run_trial`.
    """
    check_inputs(spec.network, data)
    with _Trial.alone(spec, data, device, num_threads, gpu_fraction, micro_batch) as trial:
        trial.build()
        load_into(trial.model, weights)
        trial.check_restored(known)
        return _joined(known, trial.measure(missing, keep_predictions))


def run_search_trial(
    network: NetworkSpec,
    data: TrialData,
    *,
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    gpu_fraction: float | None = None,
    micro_batch: int | None = None,
    graphs: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> SearchResult:
    """Train a network on one side of a validation split and return its validation loss after every
    epoch.

    It is built, seeded and trained as the sweep's own trial of it is, but on all of ``data``, which
    comes from :func:`tasks.prepared.subsets.load_validation`. ``on_epoch`` is given the record of
    every epoch, once it is validated. The other arguments, and what is raised, are those of
    :func:`run_trial`.
    """
    if network.model.pretrained:
        found = f"{network.model.name} is pretrained"
        raise ConfigError("A search trains networks from random weights", found)
    num_train, chance_loss = len(data.train_images), math.log(data.num_classes)
    check_inputs(network.model_copy(update={"train_size": num_train}), data)
    spec, options = (
        TrialSpec(network=network),
        (device, num_threads, gpu_fraction, micro_batch, graphs),
    )
    curve: list[ValidationScore] = []
    with _Trial.alone(spec, data, *options, num_train=num_train) as trial:
        trial.build()

        def validated(record: EpochRecord) -> None:
            if reason := trial.validate(record.epoch, curve):
                raise _Diverged(reason)
            if on_epoch is not None:
                on_epoch(record)

        try:
            reason = trial.train(validated)
        except _Diverged as diverged:
            reason = str(diverged)
        status = SearchStatus.DIVERGED if reason else SearchStatus.COMPLETE
        if not curve and not reason:  # a recipe of no epochs
            trial.validate(0, curve)
        return SearchResult(
            status=status,
            reason=reason,
            epochs=len(curve) + (status == SearchStatus.DIVERGED),
            curve=tuple(curve),
            num_train=num_train,
            num_validation=len(data.test_images),
            num_classes=data.num_classes,
            chance_loss=chance_loss,
            device=str(trial.device),
            num_threads=num_threads,
            peak_memory_bytes=peak_bytes(trial.device),
            micro_batch=micro_batch,
        )


class _Diverged(Exception):
    """The validation loss is no finite number."""


class _Trial:
    """A network, the images it is trained and measured on, and what is found of it."""

    model: PixelModel

    def __init__(
        self,
        spec: TrialSpec,
        data: TrialData,
        device: torch.device,
        num_threads: int,
        micro_batch: int | None,
        graphs: bool,
        num_train: int,
    ) -> None:
        self.spec, self.data, self.device, self.num_threads = spec, data, device, num_threads
        self.network, self.recipe, self.seed = spec.network, spec.network.recipe, spec.derived_seed
        self.micro_batch, self.graphs = micro_batch, graphs and device.type == "cuda"
        self.images, self.labels, self.test_images, self.test_labels = (
            resident(array, device)
            for array in (
                data.train_images[:num_train],
                data.train_labels[:num_train],
                data.test_images,
                data.test_labels,
            )
        )
        self.pass_size = in_parts(EVALUATION_PASS, self.recipe, micro_batch)
        """Images of a forward pass."""
        self.gradient_pass = attack_pass(self.recipe, micro_batch)
        """Images whose gradients are taken at once."""
        self.clean: CleanPass | None = None
        self.features: NDArray[np.float32] | None = None
        self.scores: NetworkScores | None = None
        self.history: list[EpochRecord] = []
        self.test_history: list[EpochScore] = []
        self.timings: dict[str, float] = {}

    @classmethod
    @contextmanager
    def alone(
        cls,
        spec: TrialSpec,
        data: TrialData,
        device: torch.device | str,
        num_threads: int,
        gpu_fraction: float | None,
        micro_batch: int | None = None,
        graphs: bool = False,
        num_train: int | None = None,
    ) -> Iterator[_Trial]:
        """Let nothing of the process decide a trial's numbers, and leave nothing of it changed.

        The generators matter to networks that draw numbers in evaluation too.
        """
        device = torch.device(device)
        with (
            trial_memory(device, gpu_fraction),
            contained(derive_seed("evaluation", spec.derived_seed), device),
            deterministic(device, num_threads),
        ):
            size = spec.network.train_size if num_train is None else num_train
            yield cls(spec, data, device, num_threads, micro_batch, graphs, size)

    def run(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        on_score: Callable[[EpochScore], None] | None,
        keep: Keep | None,
        keep_predictions: Keep | None,
        checkpoints: Checkpoints | None,
        pretrained: bytes | None,
    ) -> TrialResult:
        """Run the stages in order; stop where the network has diverged."""
        with self._timed("build"):
            self.build(pretrained)
        notes: list[dict[str, Any]] = [] if checkpoints is None else checkpoints.notes

        def after(record: EpochRecord) -> None:
            if record.epoch in epochs_to_look_at(self.recipe.epochs):
                found = self.score(self.recipe.test_loss)
                if math.isfinite(found.loss):
                    note = {
                        "epoch": record.epoch,
                        "test_loss": found.loss,
                        "test_accuracy": found.accuracy,
                    }
                    notes.append(note)
                    if on_score is not None:
                        on_score(EpochScore.model_validate(note))
            if on_epoch is not None:
                on_epoch(record)

        with self._timed("train"):
            reason = self.train(after, checkpoints)
        self.test_history = [EpochScore.model_validate(note) for note in notes]
        if not reason:
            with self._timed("evaluate"):
                reason = self.evaluate()
        if reason:
            return self._result(reason)
        kept = keep(to_bytes(self.model)) if keep else None
        found = self.measure(self.spec.measurements, keep_predictions)
        return self._result("", kept).model_copy(
            update={**found, "timings": Timings(**self.timings)}
        )

    def build(self, pretrained: bytes | None = None) -> None:
        """Build the network with its seeded weights."""
        self.model = build_model(
            self.network.model,
            num_outputs=self.recipe.num_outputs or self.data.num_classes,
            in_channels=self.data.train_images.shape[1],
            image_size=self.data.train_images.shape[2],
            input_scale=self.recipe.input_scale,
            dropout=self.recipe.dropout,
            seed=derive_seed("weights", self.seed),
            pretrained=pretrained,
        ).to(self.device)

    def train(
        self, on_epoch: Callable[[EpochRecord], None], checkpoints: Checkpoints | None = None
    ) -> str:
        """Train the network; return why it diverged, or nothing."""
        history = train(
            self.model,
            self.images,
            self.labels,
            self.recipe,
            seed=derive_seed("training", self.seed),
            device=self.device,
            on_epoch=on_epoch,
            micro_batch=self.micro_batch,
            checkpoints=checkpoints,
            graphs=self.graphs,
        )
        self.history = [record for record in history if not record.diverged]
        if history and history[-1].diverged:
            return f"the training loss was {history[-1].train_loss} in epoch {history[-1].epoch}"
        return ""

    def evaluate(self) -> str:
        """Pass every image once: features come with the train loss, gradients with the test loss.

        Returns:
            Why the network diverged, or nothing.
        """
        rule = self.recipe.test_loss
        with features_read(self.model, len(self.images)) as features:
            train = evaluate(
                self.model, self.images, self.labels, rule=rule, pass_size=self.pass_size
            )
        self.features, clean = features.array, self.pass_clean()
        test = clean.evaluation(rule)
        for name, evaluation in (("train", train), ("test", test)):
            if not math.isfinite(evaluation.loss):
                return f"the trained network's {name} loss is {evaluation.loss}"
        self.scores = NetworkScores(
            num_parameters=num_parameters(self.model),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            classification=classification_scores(
                clean.logits.cpu().numpy(), self.test_labels.cpu().numpy(), self.data.num_classes
            ),
        )
        return ""

    def score(self, rule: LossRule) -> Evaluation:
        """Pass the test images, or those held out of a search, forward."""
        return evaluate(
            self.model, self.test_images, self.test_labels, rule=rule, pass_size=self.pass_size
        )

    def validate(self, epoch: int, curve: list[ValidationScore]) -> str:
        """Add the score on the held-out images to ``curve``, or return why there is none."""
        found = self.score("mean_over_examples")
        if not math.isfinite(found.loss):
            return f"the validation loss was {found.loss} after epoch {epoch}"
        curve.append(ValidationScore(epoch=epoch, loss=found.loss, accuracy=found.accuracy))
        return ""

    def pass_clean(self) -> CleanPass:
        """Pass the test images, once."""
        if self.clean is None:
            self.clean = pass_clean(
                self.model, self.test_images, self.test_labels, pass_size=self.gradient_pass
            )
        return self.clean

    def check_restored(self, known: TrialResult) -> None:
        """See that the network is the trained one: somebody's own may keep more than its
        weights.
        """
        found = self.pass_clean().evaluation(self.recipe.test_loss).loss
        if known.scores is not None and not math.isclose(
            found, known.scores.test_loss, rel_tol=RESTORED_TOLERANCE, abs_tol=RESTORED_TOLERANCE
        ):
            raise CorruptStoreError(
                "A network made from kept weights must have the test loss that was found",
                f"{found:.6g} instead of {known.scores.test_loss:.6g}",
                "let its forward pass depend on parameters and buffers alone",
            )

    def measure(
        self, missing: Sequence[Measurement], keep_predictions: Keep | None
    ) -> dict[str, Any]:
        """Return fields of a :class:`~tasks.trials.records.TrialResult`: what of ``missing`` was
        found.
        """
        representations = [m for m in missing if isinstance(m, RepresentationMeasurement)]
        with self._timed("d_repr"):
            d_repr = self._d_repr([m for m in representations if not m.stages])
            d_repr_stages = self._d_repr_stages([m for m in representations if m.stages])
        kept: KeptFile | str | None = None
        if keep_predictions and any(isinstance(m, PredictionMeasurement) for m in missing):
            arrays = self.pass_clean().logits.cpu().numpy(), self.test_labels.cpu().numpy()
            kept = keep_predictions(to_parquet(*arrays, self.data.test_rows))
        with self._timed("attack"):
            attacks = self._attacks([m for m in missing if isinstance(m, AttackMeasurement)])
        return {
            "d_repr": d_repr,
            "d_repr_stages": d_repr_stages,
            "attacks": attacks,
            "robustness": self._radii([m for m in missing if isinstance(m, RobustnessMeasurement)]),
            "further_tests": self._further_tests(
                [m for m in missing if isinstance(m, FurtherTestMeasurement)]
            ),
            "predictions": kept if isinstance(kept, KeptFile) else None,
            "predictions_note": kept if isinstance(kept, str) else "",
        }

    def _d_repr(self, asked: Sequence[RepresentationMeasurement]) -> dict[str, IntrinsicDimension]:
        if not asked:
            return {}
        features = (
            extract_features(self.model, self.images) if self.features is None else self.features
        )
        return self._dimension(features, asked)

    def _d_repr_stages(self, asked: Sequence[RepresentationMeasurement]) -> tuple[StageRecord, ...]:
        if not asked:
            return ()
        rows = [
            StageRows(self.model, name, self.images) for name in stages(self.model, self.images[:1])
        ]
        return tuple(
            StageRecord(
                module=row.module,
                num_features=math.prod(row.row_shape),
                d_repr=self._dimension(row, asked, block_rows=row.block_rows),
            )
            for row in rows
        )

    def _dimension(
        self,
        features: NDArray[np.float32] | StageRows,
        asked: Sequence[RepresentationMeasurement],
        block_rows: int = BLOCK_ROWS,
    ) -> dict[str, IntrinsicDimension]:
        return estimate_dimension(
            features,
            [measurement.estimator for measurement in asked],
            num_neighbors=self.spec.representation.num_neighbors,
            discard_fraction=self.network.subset.twonn_discard_fraction,
            seed=derive_seed("d_repr", self.seed),
            block_rows=block_rows,
        )

    def _attacks(self, asked: Sequence[AttackMeasurement]) -> tuple[AttackRecord, ...]:
        records: list[AttackRecord] = []
        for method in dict.fromkeys(attack.method for attack in asked):
            epsilons = tuple(attack.epsilon for attack in asked if attack.method == method)
            records += attack_all(
                self.model,
                self.test_images,
                self.test_labels,
                AttackSpec.model_validate({"methods": (method,), "epsilons": epsilons}),
                self.pass_clean(),
                pass_size=self.gradient_pass,
                rule=self.recipe.test_loss,
            )
        return tuple(records)

    def _radii(self, asked: Sequence[RobustnessMeasurement]) -> RadiusRecord | None:
        if not asked:
            return None
        with self._timed("robustness"):
            return self._radii_of(self.test_images, asked[0].robustness)

    def _radii_of(self, images: torch.Tensor, robustness: RobustnessSpec) -> RadiusRecord:
        return measure_radii(
            self.model,
            images,
            self.test_labels,
            self.images,
            num_images=robustness.num_images,
            pass_size=self.gradient_pass,
            # Of the data, not of the network: all networks of a subset, and of its conditions, are
            # asked about the same images.
            seed=derive_seed("r_hat", self.network.subset.unmoved),
            num_steps=robustness.num_steps,
            num_bisections=robustness.num_bisections,
        )

    def _further_tests(
        self, asked: Sequence[FurtherTestMeasurement]
    ) -> tuple[FurtherTestRecord, ...]:
        if not asked:
            return ()
        given = {test.name: test for test in self.data.further_tests}
        records = []
        for measurement in asked:
            name = measurement.test.name
            if name not in given:
                rule = "A further test set must come with the images of a trial"
                raise DataError(rule, f"none is named {name}")
            records.append(self._further_test(given[name], measurement.robustness))
        return tuple(records)

    def _further_test(
        self, test: FurtherTestImages, robustness: RobustnessSpec | None
    ) -> FurtherTestRecord:
        images = resident(test.images, self.device)
        clean = pass_clean(self.model, images, self.test_labels, pass_size=self.gradient_pass)
        is_moved = torch.from_numpy(test.is_moved).to(self.device)
        scores: dict[str, Any] = {}
        for prefix, rows in (
            ("", torch.ones_like(is_moved)),
            ("moved_", is_moved),
            ("unmoved_", ~is_moved),
        ):
            has_rows = bool(rows.any())
            loss = float(clean.losses[rows].double().mean()) if has_rows else math.nan
            scores[f"{prefix}loss"] = loss if math.isfinite(loss) else None
            correct = clean.correct[rows].double()
            scores[f"{prefix}accuracy"] = float(correct.mean()) if has_rows else None
        return FurtherTestRecord(
            name=test.name,
            num_moved=int(is_moved.sum()),
            robustness=None if robustness is None else self._radii_of(images, robustness),
            **scores,
        )

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
            step_path="graph" if self.graphs else "eager",
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.timings[stage] = time.perf_counter() - start


def _joined(known: TrialResult, found: dict[str, Any]) -> TrialResult:
    """Add to what was known what was found later; nothing that was known is lost."""
    new = {(attack.method, attack.epsilon) for attack in found["attacks"]}
    kept = tuple(attack for attack in known.attacks if (attack.method, attack.epsilon) not in new)
    tested = {test.name for test in found["further_tests"]}
    kept_tests = tuple(test for test in known.further_tests if test.name not in tested)
    return known.model_copy(
        update={
            "d_repr": {**known.d_repr, **found["d_repr"]},
            "d_repr_stages": found["d_repr_stages"] or known.d_repr_stages,
            "attacks": kept + found["attacks"],
            "robustness": found["robustness"] or known.robustness,
            "further_tests": kept_tests + found["further_tests"],
            "predictions": found["predictions"] or known.predictions,
            "predictions_note": found["predictions_note"],
        }
    )


def check_inputs(network: NetworkSpec, data: TrialData) -> None:
    """Refuse images, labels and sizes that a trial cannot be carried out with.

    Raises:
        ConfigError: for fewer outputs than classes.
        DataError: for fewer training images than asked for, or pixels or labels out of range.
    """
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
        (
            "training",
            data.train_images[: network.train_size],
            data.train_labels[: network.train_size],
        ),
        ("test", data.test_images, data.test_labels),
    ):
        # Comparisons are false for NaN as well.
        if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 255):
            raise DataError(
                "Pixels must be numbers from 0 to 255",
                f"{images.min()} to {images.max()} in the {name} images",
                "scale the images to [0, 255] and prepare them again",
            )
        if not (labels.min() >= 0 and labels.max() < data.num_classes):
            raise DataError(
                f"Labels must be integers from 0 to {data.num_classes - 1}",
                f"{labels.min()} to {labels.max()} in the {name} labels",
                "prepare the dataset again, or correct num_classes",
            )

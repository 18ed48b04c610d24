"""One trial as frozen data: a network, which has the identity, and what is measured on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from search_spaces.fingerprint import derive_seed, fingerprint, readable_id
from search_spaces.specs import (
    ATTACK_VERSION,
    NETWORK_VERSION,
    PREDICTIONS_VERSION,
    REPRESENTATION_VERSION,
    ROBUSTNESS_VERSION,
    AttackSpec,
    ModelSpec,
    RecipeSpec,
    RepresentationSpec,
    RobustnessSpec,
    Spec,
    SubsetSpec,
    pair_name,
)


class NetworkSpec(Spec):
    """One trained network: what it is, what it is trained on and how. Its content is its identity."""

    schema_version: int = NETWORK_VERSION
    model: ModelSpec
    subset: SubsetSpec
    train_size: Annotated[int, Field(ge=2)]
    recipe: RecipeSpec
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def network_id(self) -> str:
        """Readable slug plus 12 hex digits."""
        subset = self.subset
        return readable_id(
            [
                self.model.name,
                subset.prepared.dataset,
                pair_name(subset.class_pair),
                f"n{self.train_size}",
                f"s{self.seed}",
            ],
            self,
        )

    @property
    def derived_seed(self) -> int:
        """Seed of weight initialisation and batch order: a function of this spec alone."""
        return derive_seed("network", fingerprint(self))


class AttackMeasurement(Spec):
    """One attack at one strength on one trained network."""

    schema_version: int
    network_id: str
    method: str
    epsilon: float

    @property
    def measurement_id(self) -> str:
        """Readable name plus hash."""
        return readable_id(["attack", self.method, f"{self.epsilon:g}"], self)


class RepresentationMeasurement(Spec):
    """One estimate of the intrinsic dimension of one trained network's representation of its training set."""

    schema_version: int
    network_id: str
    estimator: str
    num_neighbors: int
    stages: bool = False
    """After every stage, not of the last hidden layer."""

    @property
    def measurement_id(self) -> str:
        """Readable name plus hash."""
        where = ["stages"] if self.stages else []
        return readable_id(["d_repr", self.estimator, f"k{self.num_neighbors}", *where], self)


class RobustnessMeasurement(Spec):
    """The distances to other decisions on one trained network."""

    schema_version: int
    network_id: str
    robustness: RobustnessSpec

    @property
    def measurement_id(self) -> str:
        """Readable name plus hash."""
        return readable_id(["r_hat", f"n{self.robustness.num_images}"], self)


class PredictionMeasurement(Spec):
    """What one trained network says of every test image."""

    schema_version: int
    network_id: str

    @property
    def measurement_id(self) -> str:
        """Readable name plus hash."""
        return readable_id(["predictions"], self)


Measurement = AttackMeasurement | RepresentationMeasurement | RobustnessMeasurement | PredictionMeasurement


class TrialSpec(Spec):
    """One cell of the grid: a network, and what is measured on it once it is trained.

    The cell's identity and seed are the network's. Each measurement has an id of its own that refers to the
    network, so that asking for more changes no network.
    """

    network: NetworkSpec
    attacks: AttackSpec = AttackSpec()
    attack_version: int = ATTACK_VERSION
    representation: RepresentationSpec = RepresentationSpec()
    representation_version: int = REPRESENTATION_VERSION
    robustness: RobustnessSpec | None = None
    robustness_version: int = ROBUSTNESS_VERSION
    predictions: bool = False
    predictions_version: int = PREDICTIONS_VERSION

    @property
    def trial_id(self) -> str:
        """The network's id; carried by Tune's trial, the store's folder and MLflow's tag."""
        return self.network.network_id

    @property
    def derived_seed(self) -> int:
        """The network's seed."""
        return self.network.derived_seed

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Everything that is measured on the network, one entry per number or group of numbers."""
        network_id, attacks, representation = self.trial_id, self.attacks, self.representation
        return (
            *(
                RepresentationMeasurement(
                    schema_version=self.representation_version,
                    network_id=network_id,
                    estimator=estimator,
                    num_neighbors=representation.num_neighbors,
                    stages=stages,
                )
                for stages in (False, True)[: 1 + representation.stages]
                for estimator in representation.estimators
            ),
            *(
                AttackMeasurement(
                    schema_version=1 if method == "fgsm" else self.attack_version,
                    network_id=network_id,
                    method=method,
                    epsilon=epsilon,
                )
                for method in attacks.methods
                for epsilon in attacks.epsilons
            ),
            *(
                RobustnessMeasurement(
                    schema_version=self.robustness_version, network_id=network_id, robustness=robustness
                )
                for robustness in (self.robustness,)
                if robustness is not None
            ),
            *(
                PredictionMeasurement(schema_version=self.predictions_version, network_id=network_id)
                for _ in range(self.predictions)
            ),
        )

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``asked`` that a trial made by this spec does not have."""
        if self == asked:
            return ()
        have = set(self.measurements)
        return tuple(item for item in asked.measurements if item not in have)

"""Search spaces of the learning-rate search: ranges by model family, and settings of a sweep file.

The ranges are common ones for training from scratch on small sets, log-uniform:

- Adam, networks other than those below: learning rate 1e-5 to 1e-2. It contains Adam's default of
  1e-3 (Kingma & Ba, ICLR 2015) and both rates of the released code for ResNets.
- Adam, VGGs without batch norm: 1e-6 to 1e-3. The released code has 1e-4, and 1e-6 on SVHN.
- Adam, isweep's small networks: 1e-4 to 1e-1. They train at rates at which a deep network does not.
- SGD: learning rate 1e-4 to 1e-1, as searched by Brigato et al., "Tune It or Don't Use It:
  Benchmarking Data-Efficient Image Classification", arXiv 2108.13122. The protocol is theirs too
  (random and Bayesian search, selection on a validation split of the training images), without
  their early stopping.
- Weight decay 1e-6 to 1e-2. Batches of 8 to 64 images; smaller ones for VGGs, since the released
  code has 6 to 40.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import readable_id
from search_spaces.specs import (
    AttackSpec,
    BatchSize,
    LearningRate,
    ModelSpec,
    Optimizer,
    Spec,
    TrialSpec,
    check_range,
    check_unique,
    pair_name,
)

SEARCH_VERSION = 1
"""Version of a search's trials, see :mod:`search_spaces.specs`."""

GRID_RATES = 25
"""Learning rates of an exhaustive grid. A budget is a share of as many trainings."""

Rates = Annotated[tuple[LearningRate, LearningRate], BeforeValidator(check_range)]
Decay = Annotated[float, Field(gt=0, le=1)]
Decays = Annotated[tuple[Decay, Decay], BeforeValidator(check_range)]
Batches = Annotated[tuple[BatchSize, ...], Field(min_length=1), AfterValidator(check_unique)]
Sampler = Literal["tpe", "gp", "random"]


class TuneSpec(Spec):
    """The search of ``isweep tune``, as a sweep file sets it. It is not part of an identity.

    Attributes:
        learning_rate: smallest and largest rate; None for the model family's range.
        weight_decay: smallest and largest weight decay; None for the model family's range.
        batch_size: batch sizes to choose from; None for the model family's.
        budget: number of trainings of each combination of model and dataset, as a share of
            :data:`GRID_RATES`. A diverged training counts in part.
        train_size: number of images that are trained and validated on; None for the sweep's largest
            train size.
        validation_share: share of these images, in whole groups, that a trial is validated on.
        finalists: number of best trials that are trained again before one is chosen. The sweep's
            own recipe is trained again with them.
        seeds: number of trainings of each finalist, the first one of the search included. Each has
            its own seed and split, and the class pairs of the dataset in turn. A finalist is judged
            by the trainings after the first, if there are any.
        sampler: algorithm that proposes the points to try.
        seed: seed of the sampler.
    """

    learning_rate: Rates | None = None
    weight_decay: Decays | None = None
    batch_size: Batches | None = None
    budget: Annotated[float, Field(ge=1 / GRID_RATES, le=4)] = 0.2
    train_size: Annotated[int, Field(ge=8)] | None = None
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    finalists: Annotated[int, Field(ge=1, le=10)] = 3
    seeds: Annotated[int, Field(ge=1, le=20)] = 4
    sampler: Sampler = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def num_trainings(self) -> float:
        """The budget of one combination of model and dataset, in whole trainings."""
        return round(self.budget * GRID_RATES, 9)


class SearchSpace(Spec):
    """The ranges that are searched for one model on one dataset."""

    learning_rate: Rates
    weight_decay: Decays
    batch_size: Batches


class ValidationSpec(Spec):
    """A validation split of the training images.

    Attributes:
        share: share of the training images that a trial is validated on. It is trained on the
            others.
        split: number of the random split.
    """

    schema_version: int = SEARCH_VERSION
    share: Annotated[float, Field(gt=0, lt=1)]
    split: Annotated[int, Field(ge=0)] = 0


class SearchTrialSpec(TrialSpec):
    """A trial of a search: a network of the sweep, judged on a validation split.

    Nothing is attacked or measured on it, and it never sees a test image.
    """

    validation: ValidationSpec
    attacks: AttackSpec = AttackSpec(methods=(), epsilons=())

    @property
    def trial_id(self) -> str:
        """A readable name with a hash of network and split, unlike that of the sweep's trial."""
        network = self.network
        subset = network.subset
        return readable_id(
            [network.model.name, subset.dataset, pair_name(subset.class_pair), "search"],
            {"network": network, "validation": self.validation},
        )


# Their sources are in the module's docstring.
_DECAYS = (1e-6, 1e-2)
_BATCHES = (8, 16, 32, 64)
_DEFAULT = SearchSpace(learning_rate=(1e-5, 1e-2), weight_decay=_DECAYS, batch_size=_BATCHES)
_HIGH_RATES = SearchSpace(learning_rate=(1e-4, 1e-1), weight_decay=_DECAYS, batch_size=_BATCHES)
_VGG = SearchSpace(learning_rate=(1e-6, 1e-3), weight_decay=_DECAYS, batch_size=(4, 8, 16, 32))
_FAMILIES = {"vgg": _VGG, "small_": _HIGH_RATES}
"""Search space for Adam by the beginning of an architecture's name."""


def space_of(model: ModelSpec, optimizer: Optimizer, tune: TuneSpec, num_train: int) -> SearchSpace:
    """Return the search space of one model: its family's, changed by the sweep file.

    Args:
        model: its architecture decides on the family.
        optimizer: SGD has one space for all models.
        tune: ranges that replace the family's.
        num_train: images that a trial is trained on. Larger batch sizes of the family are left out.

    Raises:
        ConfigError: no batch size is small enough, or the sweep names one that is too large.
    """
    family = _family(model, optimizer)
    fitting = tuple(size for size in family.batch_size if size <= num_train)
    batch_sizes = tune.batch_size or fitting
    if not batch_sizes or max(batch_sizes) > num_train:
        too_large = max(tune.batch_size or family.batch_size[:1])
        raise ConfigError(
            f"tune.batch_size has {too_large}, but a trial is trained on {num_train} images",
            hint="Name smaller batches, a larger tune.train_size or a smaller "
            "tune.validation_share",
        )
    return SearchSpace(
        learning_rate=tune.learning_rate or family.learning_rate,
        weight_decay=tune.weight_decay or family.weight_decay,
        batch_size=batch_sizes,
    )


def _family(model: ModelSpec, optimizer: Optimizer) -> SearchSpace:
    if optimizer == "sgd":
        return _HIGH_RATES
    for prefix, space in _FAMILIES.items():
        if model.architecture.startswith(prefix):
            return space
    return _DEFAULT

"""Search spaces of ``isweep tune``: a default range for each model family, and user settings.

The ranges are common for training from scratch on small datasets. Learning rate and weight
decay are drawn from log-uniform distributions.

- Adam, default: learning rate 1e-5 to 1e-2. This range contains Adam's default of 1e-3 (Kingma
  & Ba, ICLR 2015), which the released code uses for ResNets.
- Adam, VGGs without batch norm: learning rate 1e-6 to 1e-3. The released code uses 1e-4, and
  1e-6 on SVHN.
- Adam, isweep's small networks: learning rate 1e-4 to 1e-1. These networks can be trained at
  rates that are too high for deep networks.
- SGD: learning rate 1e-4 to 1e-1, the range of Brigato et al., "Tune It or Don't Use It:
  Benchmarking Data-Efficient Image Classification", arXiv 2108.13122. isweep also follows
  their protocol: random and Bayesian search, and selection on a validation split of the
  training images. It does not use their early stopping.
- Weight decay: 1e-6 to 1e-2.
- Batch size: 8 to 64 images. VGGs have smaller batches, because the released code uses 6
  images.
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
"""Version of the trials of a search. :mod:`search_spaces.specs` explains when to raise it."""

GRID_RATES = 25
"""Number of learning rates in an exhaustive grid. A budget is a share of this number."""

Rates = Annotated[tuple[LearningRate, LearningRate], BeforeValidator(check_range)]
Decay = Annotated[float, Field(gt=0, le=1)]
Decays = Annotated[tuple[Decay, Decay], BeforeValidator(check_range)]
Batches = Annotated[tuple[BatchSize, ...], Field(min_length=1), AfterValidator(check_unique)]
Sampler = Literal["tpe", "gp", "random"]


class TuneSpec(Spec):
    """The settings of ``isweep tune`` in a sweep file. No trial id depends on them.

    Attributes:
        learning_rate: smallest and largest learning rate; None for the range of the model
            family.
        weight_decay: smallest and largest weight decay; None for the range of the model
            family.
        batch_size: batch sizes of the search; None for the batch sizes of the model family.
        budget: number of trainings for each combination of model and dataset, as a share of
            :data:`GRID_RATES`. A diverged training counts only in part.
        train_size: number of images for training and validation together; None for the largest
            train size of the sweep.
        validation_share: share of the ``train_size`` images that are used for validation. A
            group is never split.
        finalists: number of best trials that are trained again before the final choice. The
            recipe of the sweep is trained again too.
        seeds: number of trainings of each finalist, including the one in the search. Each
            training has another seed, another split and the next class pair of the dataset. If
            a finalist has several trainings, only those after the first are compared.
        sampler: algorithm that proposes points of the search space.
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
        """The number of trainings for one combination of model and dataset."""
        return round(self.budget * GRID_RATES, 9)


class SearchSpace(Spec):
    """The ranges of the search for one model on one dataset."""

    learning_rate: Rates
    weight_decay: Decays
    batch_size: Batches


class ValidationSpec(Spec):
    """A validation split of the training images.

    Attributes:
        share: share of the training images that are used for validation. The network is
            trained on the other images.
        split: index of the random split. Each index gives another split.
    """

    schema_version: int = SEARCH_VERSION
    share: Annotated[float, Field(gt=0, lt=1)]
    split: Annotated[int, Field(ge=0)] = 0


class SearchTrialSpec(TrialSpec):
    """A trial of a search: a network of the sweep that is evaluated on a validation split.

    It has no attacks and no measurements, and reads no test image.
    """

    validation: ValidationSpec
    attacks: AttackSpec = AttackSpec(methods=(), epsilons=())

    @property
    def trial_id(self) -> str:
        """The id of the trial: a readable name with a hash of network and split.

        The trial of the same network in the sweep has a different id.
        """
        network = self.network
        subset = network.subset
        return readable_id(
            [network.model.name, subset.dataset, pair_name(subset.class_pair), "search"],
            {"network": network, "validation": self.validation},
        )


# The module's docstring lists the sources of these values.
_DECAYS = (1e-6, 1e-2)
_BATCHES = (8, 16, 32, 64)
_DEFAULT = SearchSpace(learning_rate=(1e-5, 1e-2), weight_decay=_DECAYS, batch_size=_BATCHES)
_HIGH_RATES = SearchSpace(learning_rate=(1e-4, 1e-1), weight_decay=_DECAYS, batch_size=_BATCHES)
_VGG = SearchSpace(learning_rate=(1e-6, 1e-3), weight_decay=_DECAYS, batch_size=(4, 8, 16, 32))
_FAMILIES = {"vgg": _VGG, "small_": _HIGH_RATES}
"""Search space for Adam by the first letters of an architecture's name."""


def space_of(model: ModelSpec, optimizer: Optimizer, tune: TuneSpec, num_train: int) -> SearchSpace:
    """Return the ranges of the search for a model. The sweep file may replace the family's ranges.

    Args:
        model: the model. Its architecture determines the family.
        optimizer: the optimizer. SGD has one search space for all models.
        tune: ranges in the sweep file, which replace the ranges of the family.
        num_train: number of training images of a trial. Larger batch sizes of the family are
            left out.

    Raises:
        ConfigError: every batch size of the family is too large, or a batch size in the sweep
            file is too large.
    """
    family = _family(model, optimizer)
    if tune.batch_size is None:
        batch_sizes = tuple(size for size in family.batch_size if size <= num_train)
        is_too_large = not batch_sizes
        problem = f"The smallest batch size of the search is {min(family.batch_size)}"
    else:
        batch_sizes = tune.batch_size
        is_too_large = max(batch_sizes) > num_train
        problem = f"The list `tune.batch_size` contains {max(batch_sizes)}"
    if is_too_large:
        raise ConfigError(
            f"{problem}, but a trial of the search has only {num_train} training images",
            hint="Set `tune.batch_size` to smaller values, raise `tune.train_size`, or lower "
            "`tune.validation_share`",
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

"""Spaces of the learning-rate search, as data: ranges by model family, and what a sweep file may
say of them.

Ranges are those of the field for training from scratch on small sets, log-uniform:

- Adam, networks with residual connections or of another kind: learning rate 1e-5 to 1e-2. Its
  default 1e-3 (Kingma & Ba, ICLR 2015) and both hand-set rates of the released code for ResNets lie
  inside.
- Adam, VGGs without batch norm: 1e-6 to 1e-3: the released code needed 1e-4, and 1e-6 on SVHN.
- Adam, the small networks of isweep's own: 1e-4 to 1e-1; they train at rates that a deep network
does not.
- SGD: learning rate 1e-4 to 1e-1, as searched by Brigato et al., "Tune It or Don't Use It:
  Benchmarking Data-Efficient Image Classification", arXiv 2108.13122, whose protocol (random and
  Bayesian search, selection on a validation split of the training images) this one follows, but for
  its early stopping.
- Weight decay 1e-6 to 1e-2, and batches of 8 to 64 images (fewer for VGGs: the released code had 6
to 40).
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
    each_once,
    pair_name,
    two_rising,
)

SEARCH_VERSION = 1
"""Counted up when a search's trial changes its meaning, see :mod:`search_spaces.specs`."""

GRID_RATES = 25
"""Learning rates of the exhaustive grid in whose trainings a budget is told."""


Rates = Annotated[tuple[LearningRate, LearningRate], BeforeValidator(two_rising)]
Decay = Annotated[float, Field(gt=0, le=1)]
Decays = Annotated[tuple[Decay, Decay], BeforeValidator(two_rising)]
Batches = Annotated[tuple[BatchSize, ...], Field(min_length=1), AfterValidator(each_once)]


Sampler = Literal["tpe", "gp", "random"]


class TuneSpec(Spec):
    """How ``isweep tune`` searches, as a sweep file says it; nothing here is part of a sweep's
    identity.
    """

    learning_rate: Rates | None = None
    """Smallest and largest rate; None takes the model family's range."""
    weight_decay: Decays | None = None
    batch_size: Batches | None = None
    """The batch sizes to choose from."""
    budget: Annotated[float, Field(ge=1 / GRID_RATES, le=4)] = 0.2
    """Trainings of each cell as a share of the exhaustive grid's 25; a diverged one counts in
    part."""
    train_size: Annotated[int, Field(ge=8)] | None = None
    """Images that the search trains and validates on; None takes the sweep's largest train size."""
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of those images, taken by whole groups, on which a trial is judged."""
    finalists: Annotated[int, Field(ge=1, le=10)] = 3
    """So many of the best are trained again before one is chosen, and the sweep's own recipe with
    them."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 4
    """Trainings of each finalist, the search's one counted in: each has its own seed and split, and
    the class pairs of the dataset in turn. The search's one is judged by only where there is no
    other."""
    sampler: Sampler = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler: another one proposes other points, and is no part of what a trial is."""

    @property
    def num_trainings(self) -> float:
        """The budget of one (model, dataset) in whole trainings."""
        return round(self.budget * GRID_RATES, 9)


class SearchSpace(Spec):
    """What is searched for one model on one dataset."""

    learning_rate: Rates
    weight_decay: Decays
    batch_size: Batches


class ValidationSpec(Spec):
    """Which of the training images a trial of a search is judged on; the others it is trained
    on.
    """

    schema_version: int = SEARCH_VERSION
    share: Annotated[float, Field(gt=0, lt=1)]
    split: Annotated[int, Field(ge=0)] = 0
    """Which of the ways to split them at random."""


class SearchTrialSpec(TrialSpec):
    """One trial of a search: a network of the sweep's own form, judged on a validation split.

    Nothing is attacked or measured on it, and it never meets a test image.
    """

    validation: ValidationSpec
    attacks: AttackSpec = AttackSpec(methods=(), epsilons=())

    @property
    def trial_id(self) -> str:
        """Readable slug plus hash of network and split: another id than the sweep's trial of that
        network.
        """
        network = self.network
        subset = network.subset
        return readable_id(
            [network.model.name, subset.dataset, pair_name(subset.class_pair), "search"],
            {"network": network, "validation": self.validation},
        )


_DECAYS = (1e-6, 1e-2)
_BATCHES = (8, 16, 32, 64)
_DEFAULT = SearchSpace(learning_rate=(1e-5, 1e-2), weight_decay=_DECAYS, batch_size=_BATCHES)
_SGD = SearchSpace(learning_rate=(1e-4, 1e-1), weight_decay=_DECAYS, batch_size=_BATCHES)
_FAMILIES: tuple[tuple[str, SearchSpace], ...] = (
    (
        "vgg",
        SearchSpace(learning_rate=(1e-6, 1e-3), weight_decay=_DECAYS, batch_size=(4, 8, 16, 32)),
    ),
    ("small_", SearchSpace(learning_rate=(1e-4, 1e-1), weight_decay=_DECAYS, batch_size=_BATCHES)),
)
"""By how an architecture's name starts; the module's docstring says where the ranges come from."""


def space_of(model: ModelSpec, optimizer: Optimizer, tune: TuneSpec, num_train: int) -> SearchSpace:
    """Return the space of one model, narrowed or widened by what the sweep says.

    Batches larger than ``num_train``, the images that a trial is trained on, are left out of a
    family's; one that the sweep names, or none that is small enough, is a ConfigError.
    """
    families = (space for prefix, space in _FAMILIES if model.architecture.startswith(prefix))
    family = _SGD if optimizer == "sgd" else next(families, _DEFAULT)
    asked = tune.batch_size or tuple(size for size in family.batch_size if size <= num_train)
    if not asked or max(asked) > num_train:
        raise ConfigError(
            "tune.batch_size must not be larger than the set that a trial is trained on",
            f"{max(tune.batch_size or family.batch_size[:1])} for {num_train} images",
            "name smaller ones, a larger tune.train_size or a smaller tune.validation_share",
        )
    return SearchSpace(
        learning_rate=tune.learning_rate or family.learning_rate,
        weight_decay=tune.weight_decay or family.weight_decay,
        batch_size=asked,
    )

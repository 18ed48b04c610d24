"""What a sweep file may say: the grid as people write it, before it becomes networks and
measures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from search_spaces import specs
from search_spaces.interventions import (
    BASE,
    BaseDatasetSpec,
    ConditionSpec,
    ExperimentDataset,
    InterveneOn,
    MadeSpec,
    check_training_parameters,
)
from search_spaces.tuning import TuneSpec


def _class_choice(value: object) -> int | str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a class is its place, a number from 0, or its name as text")
    return value


ClassChoice = Annotated[int | str, PlainValidator(_class_choice)]


PairChoice = tuple[ClassChoice, ClassChoice]
"""A class pair as a sweep file writes it: places (numbers from 0), or names (text)."""

MOST_IMAGES = 10**9
"""Of one network; more is a slip of the finger, found before anything is read."""
LEAST_SHARE = 0.0001
"""Of a core or GPU: Ray counts in ten-thousandths, and starts nothing that asks for less."""


class _Choice(specs.Spec):
    """Something that there is, with changes; in a sweep file a text alone is its ``from``."""

    model_config = ConfigDict(populate_by_name=True, strict=False)

    from_: str = Field(alias="from")

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: object) -> object:
        return {"from": value} if isinstance(value, str) else value


class ModelChoice(_Choice):
    """A network of a sweep: by its name in the table, ``torchvision:NAME``, ``timm:NAME`` or one's
    own ``package.module:function``.
    """

    arguments: specs.Arguments = ()
    pretrained: bool = False
    """Start from the library's weights."""
    name: specs.Name | None = None
    """How it is called in tables; by default after what it is made from."""

    @field_validator("arguments", mode="before")
    @classmethod
    def _sort_arguments(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return tuple(
            (key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(value.items())
        )


class RecipeChanges(specs.Spec):
    """Fields of a recipe that a sweep changes; several values of one field are an axis of the
    grid.
    """

    # A value alone is made a list of one before it is checked; from there on lists are tuples.
    model_config = ConfigDict(strict=False)

    optimizer: tuple[specs.Optimizer, ...] = ()
    learning_rate: tuple[specs.LearningRate, ...] = ()
    weight_decay: tuple[specs.WeightDecay, ...] = ()
    batch_size: tuple[specs.BatchSize, ...] = ()
    epochs: tuple[specs.Epochs, ...] = ()
    precision: tuple[specs.Precision, ...] = ()
    num_outputs: tuple[specs.NumOutputs, ...] = ()
    input_scale: tuple[specs.InputScale, ...] = ()
    dropout: tuple[specs.Dropout, ...] = ()
    test_loss: tuple[specs.TestLoss, ...] = ()

    @field_validator(*specs.RecipeSpec.model_fields.keys() - {"name"}, mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("needs a value; leave the key out to keep the recipe's own")
            return tuple(value)
        return (value,)

    @property
    def changes(self) -> dict[str, tuple[object, ...]]:
        """What is changed, in the recipe's order of fields."""
        return {
            name: values
            for name in specs.RecipeSpec.model_fields
            if (values := getattr(self, name, ()))
        }


class RecipeOverride(RecipeChanges):
    """Other values for some models and datasets; an empty list means all."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        lists = [name for name, values in self.changes.items() if len(values) > 1]
        if lists:
            raise ValueError(f"an override takes one value each; {', '.join(lists)} has more")
        if not self.changes:
            raise ValueError("an override must change something")
        return self


class RecipeChoice(RecipeChanges, _Choice):
    """The recipe of a sweep.

    Fields given here hold for all models and datasets, whatever the recipe itself says of some of
    them; ``overrides`` hold over both, later ones over earlier ones.
    """

    overrides: tuple[RecipeOverride, ...] = ()

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        for name, values in self.changes.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value more than once")
        return self

    @property
    def axes(self) -> tuple[str, ...]:
        """The fields that have several values."""
        return tuple(name for name, values in self.changes.items() if len(values) > 1)


# YAML 1.1 and --set read on and off as true and false.
Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(lambda value: ("off", "on")[value] if isinstance(value, bool) else value),
]


class ResourceSpec(specs.Spec):
    """What one trial asks of the cluster. Bookkeeping only: never part of an identity.

    ``num_gpus`` is used where the cluster has GPUs and may be a fraction; None asks for what each
    trial is predicted to need of the cluster's GPUs. Elsewhere trials run on ``num_cpus`` cores
    with as many torch threads.

    ``fast`` says how a GPU trains: ``auto`` takes captured graphs where a self-test found that they
    give the numbers of the libraries' own path and are faster, ``on`` without asking it, ``off``
    never. ``micro_batches`` says whose batches may pass in parts where a whole GPU's memory is
    short: ``auto`` leaves networks with batch norm alone, whose numbers it would change.
    """

    num_cpus: Annotated[float, Field(ge=LEAST_SHARE)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    fast: Switch = "auto"
    micro_batches: Switch = "auto"

    @field_validator("num_gpus")
    @classmethod
    def _check_share(cls, share: float | None) -> float | None:
        if share and share < LEAST_SHARE:
            raise ValueError(f"must be 0, or {LEAST_SHARE} of a GPU or more")
        if share is not None and share > 1 and share != int(share):
            raise ValueError("must be a fraction of one GPU or a whole number, e.g. 0.25, 1 or 2")
        return share


class OwnSourceSpec(specs.Spec):
    """Your own data: where they lie and what they are. Absent for datasets of the table."""

    kind: specs.Name
    path: str
    title: str = ""
    domain: specs.Domain | None
    """None where nobody said; in a sweep it must be given."""
    modality: str = "unspecified"
    channels: Literal[1, 3] = 1
    class_names: tuple[str, ...] = ()
    """Names of the classes by place; read from the data where class pairs are named."""
    label_map: dict[str, str] = Field(default_factory=dict)
    """Label as written in the data -> the class it means, where several spellings mean one
    class."""
    label_columns: tuple[str, ...] = ()
    """Of a table: its column of labels, or one of 0 and 1 for each class, where it has no usual
    name."""
    layout: specs.Layout | None = None
    """Of class folders with patients below them or above them, where both could be meant."""
    pixel_range: Annotated[tuple[float, float], BeforeValidator(specs.two_rising)] | None = None
    """Values of floating-point or signed images that are black and white, where the data leave it
    open."""


class DatasetChoice(specs.Spec):
    """A dataset of a sweep with the class pairs to use (None: the table's pairs)."""

    name: specs.Name
    class_pairs: tuple[PairChoice, ...] | None = None
    own: OwnSourceSpec | None = None
    made: MadeSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.own is not None and self.made is not None:
            raise ValueError("a dataset is your own or made, not both")
        if self.own is not None and self.own.domain is None:
            raise ValueError("own data of a sweep need a domain, natural or medical")
        return self


class ConditionChoice(DatasetChoice):
    """A condition of an experiment that moves the training images of ``base`` after the split."""

    base: specs.Name
    condition: specs.Dials


class SweepSpec(specs.Spec):
    """A preset or sweep file: the whole grid and how to measure, train and attack its cells."""

    name: specs.Name
    description: str = ""
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    worlds: tuple[BaseDatasetSpec, ...] = ()
    arms: tuple[ConditionSpec, ...] = ()
    """Every arm in every world is a dataset of its own, named ``<world>_<arm>``, beside
    ``datasets``."""
    intervene_on: InterveneOn = "all"
    """Images that arms move: ``all`` before the split, or the ``training`` images after it; then
    every test set is that of the world's base."""
    further_test_sets: bool = False
    """Also test every network on its world's test images moved as its arms say."""
    train_sizes: Annotated[
        tuple[Annotated[int, Field(ge=2, le=MOST_IMAGES)], ...], Field(min_length=1)
    ]
    test_size: Annotated[int, Field(ge=2, le=MOST_IMAGES)]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3] | None = 1
    """Channels of every prepared image; None keeps each dataset's own, and K_F is then not
    comparable."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    recipe: RecipeChoice
    data_mode: specs.DataMode = "corrected"
    faults: tuple[specs.Fault, ...] = ()
    """Single faults of the released code to switch on in ``corrected`` mode; ``as_released`` has
    them all."""
    attacks: specs.AttackSpec = specs.AttackSpec()
    robustness: specs.RobustnessSpec | None = None
    """None does not measure it."""
    keep_weights: specs.KeepWeights = "all"
    """Of which networks: ``last`` keeps those of the largest train size. No part of any
    identity."""
    d_repr_stages: bool = False
    """Measure d_repr after every stage of a network too, not of its last hidden layer alone."""
    predictions: bool = False
    """Keep every network's logits of the test images."""
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    estimators: specs.Estimators = specs.DEFAULT_ESTIMATORS
    """Of d_data."""
    sharpness_sample: Annotated[int, Field(ge=2)] | None = 1000
    calibrate: bool = False
    """Also correct d_data's bias by simulation, for the report; costs about a minute per subset."""
    resources: ResourceSpec = ResourceSpec()
    tune: TuneSpec = TuneSpec()
    """How ``isweep tune`` searches; changes nothing of the sweep itself."""

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        if twice := [choice.from_ for choice, count in Counter(self.models).items() if count > 1]:
            raise ValueError(f"models names {', '.join(sorted(twice)[:20])} more than once")
        for field in ("train_sizes", "seeds", "faults"):
            specs.each_once(getattr(self, field), what=field)
        names = [choice.name for choice in self.all_datasets]
        if len(set(names)) < len(names):
            raise ValueError(
                "datasets names a dataset more than once; list its class pairs in one entry"
            )
        return self

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        if not self.datasets and not self.worlds:
            raise ValueError("a sweep needs datasets, or worlds")
        if self.arms and not self.worlds:
            raise ValueError("arms need worlds to be arms of")
        for field, listed in (("worlds", self.worlds), ("arms", self.arms)):
            specs.each_once(tuple(one.name for one in listed), what=field)
        named = {name for arm in self.arms for name in arm.worlds}
        if unknown := sorted(named - {world.name for world in self.worlds}):
            raise ValueError(f"arms name worlds that there are not: {', '.join(unknown[:20])}")
        if self.further_test_sets and self.intervene_on != "training":
            raise ValueError("further_test_sets needs intervene_on: training")
        if self.intervene_on == "training" and self.all_faults:
            raise ValueError("intervene_on: training needs data_mode corrected without faults")
        return self

    @property
    def experiment(self) -> tuple[ExperimentDataset, ...]:
        """Each world's base, then its arms; a dial that is not there, or too far, is a
        ValueError.
        """
        found = []
        for world in self.worlds:
            base = ExperimentDataset(
                world=world.name,
                name=BASE,
                moves="base",
                made=world.turned(()),
                intervene_on=self.intervene_on,
            )
            found.append(base)
            for arm in self.arms:
                if arm.worlds and world.name not in arm.worlds:
                    continue
                try:
                    made, condition = self._condition(base.made, arm)
                except ValidationError as error:
                    wrong = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"arm {arm.name} in world {world.name}: {wrong}") from None
                except ValueError as error:
                    raise ValueError(f"arm {arm.name} in world {world.name}: {error}") from None
                found.append(
                    replace(base, name=arm.name, moves=arm.moves, made=made, condition=condition)
                )
        return tuple(found)

    def _condition(self, base: MadeSpec, arm: ConditionSpec) -> tuple[MadeSpec, specs.Dials]:
        """Return what an arm's images are made of, and what moves its training images after the
        split.
        """
        if self.intervene_on == "training":
            return base, check_training_parameters(arm.dials)
        return base.turned(arm.dials), ()

    @property
    def all_datasets(self) -> tuple[DatasetChoice, ...]:
        """The datasets named, then those of the worlds."""
        made = (
            ConditionChoice(
                name=one.dataset, made=one.made, base=one.base_dataset, condition=one.condition
            )
            if one.condition
            else DatasetChoice(name=one.dataset, made=one.made)
            for one in self.experiment
        )
        return (*self.datasets, *made)

    @property
    def further_tests(self) -> dict[str, tuple[specs.FurtherTest, ...]]:
        """The further test sets of each dataset: a base's are those of all its arms, an arm's is
        its own.
        """
        if not self.further_test_sets:
            return {}
        found: dict[str, tuple[specs.FurtherTest, ...]] = {}
        for one in self.experiment:
            if one.condition:
                test = specs.FurtherTest(name=one.name, parameters=one.condition)
                found[one.dataset] = (test,)
                found[one.base_dataset] = (*found.get(one.base_dataset, ()), test)
        return found

    @property
    def all_faults(self) -> tuple[specs.Fault, ...]:
        """The faults in force: all of them in ``as_released`` mode."""
        return (
            specs.RELEASED_FAULTS if self.data_mode == "as_released" else tuple(sorted(self.faults))
        )

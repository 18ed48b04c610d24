"""What a sweep file may say: the grid as people write it, before it becomes networks and measures."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from search_spaces.interventions import ArmSpec, MadeArm, MadeSpec, WorldSpec, made_arms
from search_spaces.specs import (
    DEFAULT_ESTIMATORS,
    RELEASED_FAULTS,
    Arguments,
    AttackSpec,
    BatchSize,
    DataMode,
    Domain,
    Dropout,
    Epochs,
    Estimators,
    Fault,
    InputScale,
    KeepWeights,
    Layout,
    LearningRate,
    Name,
    NumOutputs,
    Optimizer,
    Precision,
    RecipeSpec,
    RobustnessSpec,
    Spec,
    TestLoss,
    WeightDecay,
    _two_classes,
)
from search_spaces.tuning import TuneSpec


def _class_choice(value: object) -> int | str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a class is its place, a number from 0, or its name as text")
    return value


ClassChoice = Annotated[int | str, PlainValidator(_class_choice)]


PairChoice = Annotated[tuple[ClassChoice, ClassChoice], AfterValidator(_two_classes)]
"""A class pair as a sweep file writes it: places (numbers from 0), or names (text)."""

MOST_IMAGES = 10**9
"""Of one network; more is a slip of the finger, found before anything is read."""
LEAST_SHARE = 0.0001
"""Of a core or card: Ray counts in ten-thousandths, and starts nothing that asks for less."""


class ModelChoice(Spec):
    """A network of a sweep: by its name in the table, ``torchvision:NAME``, ``timm:NAME`` or one's own
    ``package.module:function``; in a sweep file a text alone is its ``from``.
    """

    model_config = ConfigDict(populate_by_name=True, strict=False)

    from_: str = Field(alias="from")
    arguments: Arguments = ()
    pretrained: bool = False
    """Start from the library's weights."""
    name: Name | None = None
    """How it is called in tables; by default after what it is made from."""

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: object) -> object:
        return {"from": value} if isinstance(value, str) else value

    @field_validator("arguments", mode="before")
    @classmethod
    def _sort_arguments(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(value.items()))


class RecipeChanges(Spec):
    """Fields of a recipe that a sweep changes; several values of one field are an axis of the grid."""

    # A value alone is made a list of one before it is checked; from there on lists are tuples.
    model_config = ConfigDict(strict=False)

    optimizer: tuple[Optimizer, ...] = ()
    learning_rate: tuple[LearningRate, ...] = ()
    weight_decay: tuple[WeightDecay, ...] = ()
    batch_size: tuple[BatchSize, ...] = ()
    epochs: tuple[Epochs, ...] = ()
    precision: tuple[Precision, ...] = ()
    num_outputs: tuple[NumOutputs, ...] = ()
    input_scale: tuple[InputScale, ...] = ()
    dropout: tuple[Dropout, ...] = ()
    test_loss: tuple[TestLoss, ...] = ()

    @field_validator(*RecipeSpec.model_fields.keys() - {"name"}, mode="before")
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
        return {name: values for name in RecipeSpec.model_fields if (values := getattr(self, name, ()))}


class RecipeOverride(RecipeChanges):
    """Other values for some models and datasets; an empty list means all."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    # "name" is no field here, so RecipeChanges.changes never meets it.
    @model_validator(mode="after")
    def _check_single(self) -> Self:
        lists = [name for name, values in self.changes.items() if len(values) > 1]
        if lists:
            raise ValueError(f"an override takes one value each; {', '.join(lists)} has more")
        if not self.changes:
            raise ValueError("an override must change something")
        return self


class RecipeChoice(RecipeChanges):
    """The recipe of a sweep: one that there is, with changes; in a sweep file a text alone is its ``from``.

    Fields given here hold for all models and datasets, whatever the recipe itself says of some of them;
    ``overrides`` hold over both, later ones over earlier ones.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from")
    overrides: tuple[RecipeOverride, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: object) -> object:
        return {"from": value} if isinstance(value, str) else value

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


def _switch(value: object) -> object:
    # YAML 1.1 and --set read these words as true and false.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


class ResourceSpec(Spec):
    """What one trial asks of the cluster. Bookkeeping only: never part of an identity.

    ``num_gpus`` is used where the cluster has GPUs and may be a fraction; None asks for what each trial is
    predicted to need of the cluster's cards. Elsewhere trials run on ``num_cpus`` cores with as many torch
    threads.

    ``fast`` says how a GPU trains: ``auto`` takes captured graphs where a self-test found that they give the
    numbers of the libraries' own path and are faster, ``on`` without asking it, ``off`` never.
    ``micro_batches`` says whose batches may pass in parts where a whole GPU's memory is short: ``auto``
    leaves networks with batch norm alone, whose numbers it would change.
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
            raise ValueError(f"must be 0, or {LEAST_SHARE} of a card or more")
        if share is not None and share > 1 and share != int(share):
            raise ValueError("must be a fraction of one card or a whole number, e.g. 0.25, 1 or 2")
        return share


class OwnSourceSpec(Spec):
    """Your own data: where they lie and what they are. Absent for datasets of the table."""

    kind: Name
    path: str
    title: str = ""
    domain: Domain | None
    """None where nobody said; in a sweep it must be given."""
    modality: str = "unspecified"
    channels: Literal[1, 3] = 1
    class_names: tuple[str, ...] = ()
    """Names of the classes by place; read from the data where class pairs are named."""
    label_map: dict[str, str] = Field(default_factory=dict)
    """Label as written in the data -> the class it means, where several spellings mean one class."""
    label_columns: tuple[str, ...] = ()
    """Of a table: its column of labels, or one of 0 and 1 for each class, where it has no usual name."""
    layout: Layout | None = None
    """Of class folders with patients below them or above them, where both could be meant."""
    pixel_range: tuple[float, float] | None = None
    """Values of floating-point or signed images that are black and white, where the data leave it open."""

    @model_validator(mode="after")
    def _check_pixel_range(self) -> Self:
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[1]:
            raise ValueError("pixel_range must be two rising numbers, black and white")
        return self


class DatasetChoice(Spec):
    """A dataset of a sweep with the class pairs to use (None: the table's pairs)."""

    name: Name
    class_pairs: tuple[PairChoice, ...] | None = None
    own: OwnSourceSpec | None = None
    made: MadeSpec | None = None

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if self.own is not None and self.made is not None:
            raise ValueError("a dataset is your own or made, not both")
        return self

    @model_validator(mode="after")
    def _check_domain(self) -> Self:
        if self.own is not None and self.own.domain is None:
            raise ValueError("own data of a sweep need a domain, natural or medical")
        return self

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        repeated = [list(pair) for pair, count in Counter(self.class_pairs or ()).items() if count > 1]
        if repeated:
            raise ValueError(f"class_pairs names {str(repeated[:20])[1:-1]} more than once")
        return self


class SweepSpec(Spec):
    """A preset or sweep file: the whole grid and how to measure, train and attack its cells."""

    name: Name
    description: str = ""
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    worlds: tuple[WorldSpec, ...] = ()
    arms: tuple[ArmSpec, ...] = ()
    """Every arm in every world is a dataset of its own, named ``<world>_<arm>``, beside ``datasets``."""
    train_sizes: Annotated[tuple[Annotated[int, Field(ge=2, le=MOST_IMAGES)], ...], Field(min_length=1)]
    test_size: Annotated[int, Field(ge=2, le=MOST_IMAGES)]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3] | None = 1
    """Channels of every prepared image; None keeps each dataset's own, and K_F is then not comparable."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    recipe: RecipeChoice
    data_mode: DataMode = "corrected"
    faults: tuple[Fault, ...] = ()
    """Single faults of the released code to switch on in ``corrected`` mode; ``as_released`` has them all."""
    attacks: AttackSpec = AttackSpec()
    robustness: RobustnessSpec | None = None
    """None does not measure it."""
    keep_weights: KeepWeights = "all"
    """Of which networks: ``last`` keeps those of the largest train size. No part of any identity."""
    d_repr_stages: bool = False
    """Measure d_repr after every stage of a network too, not of its last hidden layer alone."""
    predictions: bool = False
    """Keep every network's logits of the test images."""
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    estimators: Estimators = DEFAULT_ESTIMATORS
    """Of d_data."""
    sharpness_sample: Annotated[int, Field(ge=2)] | None = 1000
    calibrate: bool = False
    """Also correct d_data's bias by simulation, for the report; costs about a minute per subset."""
    resources: ResourceSpec = ResourceSpec()
    tune: TuneSpec = TuneSpec()
    """How ``isweep tune`` searches; changes nothing of the sweep itself."""

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        if len(set(self.models)) < len(self.models):
            twice = sorted(choice.from_ for choice, count in Counter(self.models).items() if count > 1)
            raise ValueError(f"models names {', '.join(twice[:20])} more than once")
        for field in ("train_sizes", "seeds", "faults"):
            counts = Counter(getattr(self, field))
            repeated = sorted(str(value) for value, count in counts.items() if count > 1)
            if repeated:
                raise ValueError(f"{field} names {', '.join(repeated[:20])} more than once")
        names = [choice.name for choice in self.all_datasets]
        if len(set(names)) < len(names):
            raise ValueError("datasets names a dataset more than once; list its class pairs in one entry")
        return self

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        if not self.datasets and not self.worlds:
            raise ValueError("a sweep needs datasets, or worlds")
        if self.arms and not self.worlds:
            raise ValueError("arms need worlds to be arms of")
        for field, specs in (("worlds", self.worlds), ("arms", self.arms)):
            counts = Counter(spec.name for spec in specs)
            if twice := [name for name, count in counts.items() if count > 1]:
                raise ValueError(f"{field} names {', '.join(twice[:20])} more than once")
        named = {name for arm in self.arms for name in arm.worlds}
        if unknown := sorted(named - {world.name for world in self.worlds}):
            raise ValueError(f"arms name worlds that there are not: {', '.join(unknown[:20])}")
        return self

    @property
    def experiment(self) -> tuple[MadeArm, ...]:
        """The datasets of ``worlds`` and ``arms``, with what was moved in each."""
        return made_arms(self.worlds, self.arms)

    @property
    def all_datasets(self) -> tuple[DatasetChoice, ...]:
        """The datasets named, then those of the worlds."""
        made = (DatasetChoice(name=arm.dataset, made=arm.made) for arm in self.experiment)
        return (*self.datasets, *made)

    @property
    def all_faults(self) -> tuple[Fault, ...]:
        """The faults in force: all of them in ``as_released`` mode."""
        return RELEASED_FAULTS if self.data_mode == "as_released" else tuple(sorted(self.faults))

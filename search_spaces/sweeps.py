"""What a sweep file may say: the grid as people write it, before it becomes networks and
measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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


# Experiments that move one property of a dataset and hold the others. A *world* is a made dataset
# (generated, or real images changed in a known way), an *arm* a dial turned in every world. Every
# world has a base beside its arms, the world as it stands.

BASE = "base"
Moves = Literal["sharpness", "dimension", "nothing"]
Kind = Literal["generated", "lesions", "digits_even_odd", "pictures"]


@dataclass(frozen=True)
class Dial:
    """One property that can be turned by itself: the value at which it stands, and how far it can
    go.
    """

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False


_FLIPS = {
    "flip_share": Dial(
        0, 0, 0.5, "share of the images whose label is exchanged, in training and test"
    ),
    "flipped": Dial(0, 0, 100, "this many single images whose label is exchanged", whole=True),
    "pixel_scale": Dial(1, 0.01, 1, "factor on all pixels"),
}
_SETS = "digits, mnist5k, faces, textures, photographs, histology, retina, tissue"
_BLEND = Dial(0, 0, 0.49, "share of each image's nearest image with another label blended in")
DIALS: dict[Kind, dict[str, Dial]] = {
    "generated": {
        "dimension": Dial(4, 1, 12, "coordinates of the images' manifold", whole=True),
        "nuisance": Dial(
            0, 0, 12, "further coordinates that tell nothing of the label", whole=True
        ),
        "bits": Dial(2, 1, 12, "coordinates that the label is the parity of", whole=True),
        "bands": Dial(2, 2, 8, "bands of unlike labels along each of them", whole=True),
        "gap": Dial(80, 0, 400, "distance of unlike bands, L2 of pixels 0..255 at 16x16"),
        "fine_gap": Dial(28, 0, 400, "distance of the halves of a band, in the same unit"),
        "contrast": Dial(1, 0, 4, "factor on the gap between unlike bands"),
        "frequency": Dial(
            1, 1, 2, "2: halves of a band are unlike too, on the same images", whole=True
        ),
        "num_images": Dial(4000, 100, 40_000, "how many images are made", whole=True),
        "draw": Dial(0, 0, 10_000, "seed of the images", whole=True),
        **_FLIPS,
    },
    "lesions": {
        "contrast": Dial(1, 0, 1, "factor on the lesions' contrast"),
        "size": Dial(1, 0.1, 2, "factor on the lesions' radii"),
        "variations": Dial(700, 10, 10_000, "of the head, four slices each", whole=True),
        **_FLIPS,
    },
    "digits_even_odd": {"blend": _BLEND, **_FLIPS},
    "pictures": {
        "set": Dial(1, 0, 7, f"number of the set: {_SETS}", whole=True),
        "first": Dial(0, 0, 9, "the class that is 0", whole=True),
        "second": Dial(1, 0, 9, "the class that is 1", whole=True),
        "blend": _BLEND,
        "reach": Dial(
            1, 0, 1, "share of the images that are blended, those nearest to the other label"
        ),
        "factors": Dial(
            0,
            0,
            6,
            "nuisance factors that vary from image to image, whatever the label: shift, rotation, "
            "contrast, coarse background, blur, fine background",
            whole=True,
        ),
        **_FLIPS,
    },
}
"""Kind of world -> dial -> what it is; the study of each is in the source of that name."""


def _as_pairs(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple(
            (key, float(v) if type(v) in (int, float) else v) for key, v in sorted(value.items())
        )
    return tuple(tuple(pair) for pair in value) if isinstance(value, list) else value


DialChoice = Annotated[specs.Dials, BeforeValidator(_as_pairs)]
"""In a sweep file a mapping of dials to values."""


class MadeSpec(specs.Spec):
    """A dataset that is made: of which kind, and where its dials stand."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Kind = Field(alias="from")
    dials: DialChoice = ()

    @model_validator(mode="after")
    def _check_dials(self) -> Self:
        known = DIALS[self.from_]
        for name, value in self.dials:
            if name not in known:
                raise ValueError(f"{self.from_} has no dial {name!r}; it has {', '.join(known)}")
            dial = known[name]
            if not dial.low <= value <= dial.high or (dial.whole and value != int(value)):
                kind = "a whole number" if dial.whole else "a number"
                raise ValueError(
                    f"dial {name} is {kind} from {dial.low:g} to {dial.high:g}, got {value:g}"
                )
        if self.from_ == "generated" and self.value("bits") > self.value("dimension"):
            raise ValueError("dial bits must not exceed dimension")
        return self

    def value(self, name: str) -> float:
        """Where a dial stands."""
        return dict(self.dials).get(name, DIALS[self.from_][name].default)

    @property
    def own_dials(self) -> specs.Dials:
        """The dials that do not stand where they stand by themselves, sorted."""
        known = DIALS[self.from_]
        return tuple(
            (name, value) for name, value in sorted(self.dials) if value != known[name].default
        )

    @property
    def shows(self) -> tuple[str, ...]:
        """The digits on its pictures, which other worlds of either set may show too; none of other
        sets.
        """
        if self.from_ != "pictures" or self.value("set") > 1:
            return ()
        return tuple(f"{self.value(name):g}" for name in ("first", "second"))

    def turned(self, dials: specs.Dials) -> MadeSpec:
        """Return it with some dials turned to other values."""
        together = {**dict(self.dials), **dict(dials)}
        return MadeSpec.model_validate({"from": self.from_, "dials": together})


class WorldSpec(MadeSpec):
    """One replicate of an experiment: a made dataset in which every arm turns its dials."""

    name: specs.Name


class ArmSpec(specs.Spec):
    """Dials turned in every world, or in those named, and what that is meant to move."""

    name: specs.Name
    moves: Moves
    dials: DialChoice
    worlds: tuple[specs.Name, ...] = ()

    @model_validator(mode="after")
    def _check_arm(self) -> Self:
        if self.name == BASE:
            raise ValueError(f"{BASE!r} is the world as it stands; give the arm another name")
        if not self.dials:
            raise ValueError("an arm turns at least one dial")
        return self


@dataclass(frozen=True)
class MadeArm:
    """One dataset of an experiment: its world, its arm, what was moved in it, and what it is made
    of.
    """

    world: str
    name: str
    moves: Literal["base"] | Moves
    made: MadeSpec

    @property
    def dataset(self) -> str:
        """The name under which it is prepared and trained on."""
        return f"{self.world}_{self.name}"


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


class SweepSpec(specs.Spec):
    """A preset or sweep file: the whole grid and how to measure, train and attack its cells."""

    name: specs.Name
    description: str = ""
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    worlds: tuple[WorldSpec, ...] = ()
    arms: tuple[ArmSpec, ...] = ()
    """Every arm in every world is a dataset of its own, named ``<world>_<arm>``, beside
    ``datasets``."""
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
        return self

    @property
    def experiment(self) -> tuple[MadeArm, ...]:
        """Each world's base, then its arms; a dial that is not there, or too far, is a
        ValueError.
        """
        found = []
        for world in self.worlds:
            base = world.turned(())
            found.append(MadeArm(world.name, BASE, "base", base))
            for arm in self.arms:
                if arm.worlds and world.name not in arm.worlds:
                    continue
                try:
                    made = base.turned(arm.dials)
                except ValidationError as error:
                    wrong = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"arm {arm.name} in world {world.name}: {wrong}") from None
                found.append(MadeArm(world.name, arm.name, arm.moves, made))
        return tuple(found)

    @property
    def all_datasets(self) -> tuple[DatasetChoice, ...]:
        """The datasets named, then those of the worlds."""
        made = (DatasetChoice(name=arm.dataset, made=arm.made) for arm in self.experiment)
        return (*self.datasets, *made)

    @property
    def all_faults(self) -> tuple[specs.Fault, ...]:
        """The faults in force: all of them in ``as_released`` mode."""
        return (
            specs.RELEASED_FAULTS if self.data_mode == "as_released" else tuple(sorted(self.faults))
        )

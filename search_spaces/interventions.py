"""Experiments that move one property of a dataset and hold the others: what a sweep file may say.

A sweep file's *world* is a base dataset: generated, or real images changed in a known way. Its
*arm* is a condition: parameters (*dials*) that are set to other values in every base dataset. Each
condition is compared with its own base.

A condition moves all images before the split, or the training images alone after it
(:data:`InterveneOn`). In the first case its test images move too, so that a rise of the test loss
may come from harder test images. In the second case every condition has the test set of its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from search_spaces import specs

BASE = "base"
Moves = Literal["sharpness", "dimension", "nothing"]
Kind = Literal["generated", "lesions", "digits_even_odd", "pictures"]
InterveneOn = Literal["all", "training"]
"""Which images a condition moves: ``all`` before the split, test images among them; or the
``training`` images after it, which leaves every test set as its base has it."""


@dataclass(frozen=True)
class Parameter:
    """One property that can be turned by itself: the value at which it stands, and how far it can
    go.
    """

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False


_FLIPS = {
    "flip_share": Parameter(
        0, 0, 0.5, "share of the images whose label is exchanged, in training and test"
    ),
    "flipped": Parameter(0, 0, 100, "this many single images whose label is exchanged", whole=True),
    "pixel_scale": Parameter(1, 0.01, 1, "factor on all pixels"),
}
_SETS = "digits, mnist5k, faces, textures, photographs, histology, retina, tissue"
_BLEND = Parameter(0, 0, 0.49, "share of each image's nearest image with another label blended in")
PARAMETERS: dict[Kind, dict[str, Parameter]] = {
    "generated": {
        "dimension": Parameter(4, 1, 12, "coordinates of the images' manifold", whole=True),
        "nuisance": Parameter(
            0, 0, 12, "further coordinates that tell nothing of the label", whole=True
        ),
        "bits": Parameter(2, 1, 12, "coordinates that the label is the parity of", whole=True),
        "bands": Parameter(2, 2, 8, "bands of unlike labels along each of them", whole=True),
        "gap": Parameter(80, 0, 400, "distance of unlike bands, L2 of pixels 0..255 at 16x16"),
        "fine_gap": Parameter(28, 0, 400, "distance of the halves of a band, in the same unit"),
        "contrast": Parameter(1, 0, 4, "factor on the gap between unlike bands"),
        "frequency": Parameter(
            1, 1, 2, "2: halves of a band are unlike too, on the same images", whole=True
        ),
        "num_images": Parameter(4000, 100, 40_000, "how many images are made", whole=True),
        "draw": Parameter(0, 0, 10_000, "seed of the images", whole=True),
        **_FLIPS,
    },
    "lesions": {
        "contrast": Parameter(1, 0, 1, "factor on the lesions' contrast"),
        "size": Parameter(1, 0.1, 2, "factor on the lesions' radii"),
        "variations": Parameter(700, 10, 10_000, "of the head, four slices each", whole=True),
        **_FLIPS,
    },
    "digits_even_odd": {"blend": _BLEND, **_FLIPS},
    "pictures": {
        "set": Parameter(1, 0, 7, f"number of the set: {_SETS}", whole=True),
        "first": Parameter(0, 0, 9, "the class that is 0", whole=True),
        "second": Parameter(1, 0, 9, "the class that is 1", whole=True),
        "blend": _BLEND,
        "reach": Parameter(
            1, 0, 1, "share of the images that are blended, those nearest to the other label"
        ),
        "factors": Parameter(
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

TRAINING_PARAMETERS: dict[str, Parameter] = {
    "blend": Parameter(0, 0, 0.49, "share of the nearest training image of another class mixed in"),
    "reach": Parameter(1, 0, 1, "share of the images that move, those nearest to another class"),
}
"""Parameters that can move training images after the split, in any base dataset. The others make
every image anew, so they cannot leave a test set as it is."""


def check_training_parameters(dials: specs.Dials) -> specs.Dials:
    """Return the parameters of a condition that moves training images, sorted by name.

    Raises:
        ValueError: for a parameter that cannot be changed after the split, or one out of range.
    """
    for name, value in dials:
        if name not in TRAINING_PARAMETERS:
            raise ValueError(
                f"dial {name!r} makes every image anew; with intervene_on: training an arm can set "
                f"{' and '.join(TRAINING_PARAMETERS)}"
            )
        known = TRAINING_PARAMETERS[name]
        if not known.low <= value <= known.high:
            raise ValueError(
                f"dial {name} is a number from {known.low:g} to {known.high:g}, got {value:g}"
            )
    return tuple(sorted(dials))


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
        known = PARAMETERS[self.from_]
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
        return dict(self.dials).get(name, PARAMETERS[self.from_][name].default)

    @property
    def own_dials(self) -> specs.Dials:
        """The dials that do not stand where they stand by themselves, sorted."""
        known = PARAMETERS[self.from_]
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


class BaseDatasetSpec(MadeSpec):
    """One replicate of an experiment: a made dataset in which every arm turns its dials."""

    name: specs.Name


class ConditionSpec(specs.Spec):
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
class ExperimentDataset:
    """One dataset of an experiment: its world, its arm, what was moved in it, and what it is made
    of.

    ``condition`` are the parameters that move its training images after the split. It is empty for
    a base, and where a condition moves all images: there ``made`` has its parameters.
    """

    world: str
    name: str
    moves: Literal["base"] | Moves
    made: MadeSpec
    condition: specs.Dials = ()
    intervene_on: InterveneOn = "all"

    @property
    def dataset(self) -> str:
        """The name under which it is prepared and trained on."""
        return f"{self.world}_{self.name}"

    @property
    def base_dataset(self) -> str:
        """The name of the world's base dataset."""
        return f"{self.world}_{BASE}"

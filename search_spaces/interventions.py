"""Experiments of a sweep file, which change one property of a dataset and hold the others.

A sweep file calls a base dataset a *world*: generated images, or real images changed in a known
way. It calls a condition an *arm*: parameters (*dials*) that have other values in every base
dataset. Each condition is compared with its own base.

A condition changes all images before the split, or the training images alone after it
(:data:`InterveneOn`). In the first case the test images change too, so a higher test loss may come
from harder test images. In the second case every condition has the test set of its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from search_spaces import specs

BASE = "base"
"""The name of the base dataset beside its conditions."""
Moves = Literal["sharpness", "dimension", "nothing"]
Kind = Literal["generated", "lesions", "digits_even_odd", "pictures"]
InterveneOn = Literal["all", "training"]
"""Images that a condition changes: ``all`` before the split, test images among them; or the
``training`` images after it."""


@dataclass(frozen=True)
class Parameter:
    """A property of a dataset that can be set by itself.

    Attributes:
        default: its value in a base dataset that does not set it.
        low: the smallest value.
        high: the largest value.
        meaning: what the value is, with its unit.
        whole: only whole numbers are allowed.
    """

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Return whether ``value`` is in range, and whole if it must be."""
        return self.low <= value <= self.high and (not self.whole or value == int(value))


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
"""Parameters by kind of base dataset. The source of that name documents how they act."""

TRAINING_PARAMETERS: dict[str, Parameter] = {
    "blend": Parameter(0, 0, 0.49, "share of the nearest training image of another class mixed in"),
    "reach": Parameter(1, 0, 1, "share of the images that move, those nearest to another class"),
}
"""Parameters that can change training images after the split, in any base dataset. The others
generate every image anew, so they cannot leave a test set as it is."""


def check_training_parameters(dials: specs.Dials) -> specs.Dials:
    """Return the parameters of a condition that changes training images, sorted by name.

    Raises:
        ValueError: a parameter cannot be set after the split, or is out of range.
    """
    for name, value in dials:
        if name not in TRAINING_PARAMETERS:
            raise ValueError(
                f"dial {name!r} makes every image anew; with intervene_on: training an arm can set "
                f"{' and '.join(TRAINING_PARAMETERS)}"
            )
        _check_range(name, value, TRAINING_PARAMETERS[name])
    return tuple(sorted(dials))


def _check_range(name: str, value: float, parameter: Parameter) -> None:
    if not parameter.allows(value):
        kind = "a whole number" if parameter.whole else "a number"
        raise ValueError(
            f"dial {name} is {kind} from {parameter.low:g} to {parameter.high:g}, got {value:g}"
        )


def _as_pairs(value: object) -> object:
    """Return a mapping as sorted pairs whose numbers are floats, or a list as it is, in pairs."""
    if isinstance(value, list):
        return tuple(tuple(pair) for pair in value)
    if not isinstance(value, Mapping):
        return value
    pairs: list[tuple[object, object]] = []
    for name, setting in sorted(value.items()):
        is_number = type(setting) in (int, float)  # True is no number here
        pairs.append((name, float(setting) if is_number else setting))
    return tuple(pairs)


DialChoice = Annotated[specs.Dials, BeforeValidator(_as_pairs)]
"""Parameters with their values; a mapping in a sweep file."""


class MadeSpec(specs.Spec):
    """A generated or changed dataset: its kind, and the parameters that are set."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Kind = Field(alias="from")
    dials: DialChoice = ()

    @model_validator(mode="after")
    def _check_dials(self) -> Self:
        parameters = PARAMETERS[self.from_]
        for name, value in self.dials:
            if name not in parameters:
                names = ", ".join(parameters)
                raise ValueError(f"{self.from_} has no dial {name!r}; it has {names}")
            _check_range(name, value, parameters[name])
        if self.from_ == "generated" and self.value("bits") > self.value("dimension"):
            raise ValueError("dial bits must not exceed dimension")
        return self

    def value(self, name: str) -> float:
        """Return the value of a parameter."""
        return dict(self.dials).get(name, PARAMETERS[self.from_][name].default)

    @property
    def own_dials(self) -> specs.Dials:
        """The parameters that are not at their default, sorted by name."""
        parameters = PARAMETERS[self.from_]
        return tuple(
            (name, value) for name, value in sorted(self.dials) if value != parameters[name].default
        )

    @property
    def shows(self) -> tuple[str, ...]:
        """The digits on its images; empty for other images.

        Both sets of digits show them, so base datasets of the two can have classes in common.
        """
        if self.from_ != "pictures" or self.value("set") > 1:
            return ()
        return f"{self.value('first'):g}", f"{self.value('second'):g}"

    def turned(self, dials: specs.Dials) -> MadeSpec:
        """Return this dataset with other values of some parameters."""
        merged = {**dict(self.dials), **dict(dials)}
        return MadeSpec.model_validate({"from": self.from_, "dials": merged})


class BaseDatasetSpec(MadeSpec):
    """A base dataset: one replicate of an experiment, in which every condition is compared."""

    name: specs.Name


class ConditionSpec(specs.Spec):
    """A condition of an experiment.

    Attributes:
        name: of the condition.
        moves: the property that it is meant to change.
        dials: parameters with their values.
        worlds: names of the base datasets that have it; empty for all.
    """

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
    """One dataset of an experiment.

    Attributes:
        world: name of the base dataset.
        name: of the condition; :data:`BASE` for the base dataset itself.
        moves: the property that the condition is meant to change.
        made: what the images before the split are made of.
        condition: parameters that change the training images after the split. It is empty for a
            base dataset, and if a condition changes all images: ``made`` has its parameters then.
        intervene_on: images that the condition changes.
    """

    world: str
    name: str
    moves: Literal["base"] | Moves
    made: MadeSpec
    condition: specs.Dials = ()
    intervene_on: InterveneOn = "all"

    @property
    def dataset(self) -> str:
        """The name under which it is prepared and its results are stored."""
        return f"{self.world}_{self.name}"

    @property
    def base_dataset(self) -> str:
        """The name under which its base dataset is prepared."""
        return f"{self.world}_{BASE}"

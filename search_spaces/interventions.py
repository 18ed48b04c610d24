"""Experiments of a sweep file, which change one property of a dataset and keep the others.

- A *base dataset* (``worlds`` in a sweep file) holds generated images, or real images that are
  changed in a known way. An experiment has several base datasets: its replicates.
- A *parameter* (``dials``) is a property of these images that can be set by itself.
- A *condition* (``arms``) sets parameters to other values. It is applied to every base dataset, and
  compared with it.

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
"""The name that a base dataset has among its conditions."""
Moves = Literal["sharpness", "dimension", "nothing"]
"""The property that a condition is meant to change. ``nothing`` marks a control: a change that
should have no effect."""
Kind = Literal["generated", "lesions", "digits_even_odd", "pictures"]
InterveneOn = Literal["all", "training"]
"""Images that a condition changes: ``all`` images before the split, so test images too; or only the
``training`` images, after the split."""
DIGIT_SETS = (0, 1)
"""Numbers of those sets of ``pictures`` that show handwritten digits."""


@dataclass(frozen=True)
class Parameter:
    """A property of a dataset that can be set by itself.

    Attributes:
        default: its value in a base dataset that does not set it.
        low: the smallest allowed value.
        high: the largest allowed value.
        meaning: the meaning of the value, with its unit.
        whole: whether only whole numbers are allowed.
    """

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Return whether ``value`` is in range, and whole if it must be."""
        return self.low <= value <= self.high and (not self.whole or value == int(value))


_COMMON = {
    "flip_share": Parameter(
        0, 0, 0.5, "share of the labels that are flipped, in training and test images"
    ),
    "flipped": Parameter(
        0, 0, 100, "number of labels flipped in addition to flip_share", whole=True
    ),
    "pixel_scale": Parameter(1, 0.01, 1, "factor on all pixels"),
}
_SETS = "digits, mnist5k, faces, textures, photographs, histology, retina, tissue"
_BLEND = Parameter(
    0, 0, 0.49, "weight of each image's nearest image with another label, which is blended in"
)
PARAMETERS: dict[Kind, dict[str, Parameter]] = {
    "generated": {
        "dimension": Parameter(4, 1, 12, "number of the manifold's coordinates", whole=True),
        "nuisance": Parameter(
            0, 0, 12, "number of further coordinates, which do not change the label", whole=True
        ),
        "bits": Parameter(
            2, 1, 12, "number of coordinates that decide the label, by their parity", whole=True
        ),
        "bands": Parameter(
            2,
            2,
            8,
            "bands along each label-deciding coordinate (bits); neighbors differ in label",
            whole=True,
        ),
        "gap": Parameter(
            80, 0, 400, "distance between bands: L2 of images of 16x16 pixels in 0..255"
        ),
        "fine_gap": Parameter(
            28, 0, 400, "distance between the two halves of a band, in the same unit"
        ),
        "contrast": Parameter(1, 0, 4, "factor on the gap between bands"),
        "frequency": Parameter(
            1, 1, 2, "1: label by band; 2: label by half-band; the images stay", whole=True
        ),
        "num_images": Parameter(4000, 100, 40_000, "number of images", whole=True),
        "draw": Parameter(0, 0, 10_000, "seed of the images", whole=True),
        **_COMMON,
    },
    "lesions": {
        "contrast": Parameter(1, 0, 1, "factor on the lesions' contrast"),
        "size": Parameter(1, 0.1, 2, "factor on the lesions' radii"),
        "variations": Parameter(
            700, 10, 10_000, "number of variations of the head, with four slices each", whole=True
        ),
        **_COMMON,
    },
    "digits_even_odd": {"blend": _BLEND, **_COMMON},
    "pictures": {
        "set": Parameter(1, 0, 7, f"number of the set, from 0: {_SETS}", whole=True),
        "first": Parameter(0, 0, 9, "class of the set whose images have label 0", whole=True),
        "second": Parameter(1, 0, 9, "class of the set whose images have label 1", whole=True),
        "blend": _BLEND,
        "reach": Parameter(
            1, 0, 1, "share of the images that are blended: those nearest to the other label"
        ),
        "factors": Parameter(
            0,
            0,
            6,
            "number of factors that vary between images of both labels, the first of: shift, "
            "rotation, contrast, coarse background, blur, fine background",
            whole=True,
        ),
        **_COMMON,
    },
}
"""Parameters by kind of base dataset. The source of the same name in :mod:`tasks.sources` applies
them."""

TRAINING_PARAMETERS: dict[str, Parameter] = {
    "blend": Parameter(
        0, 0, 0.49, "weight of the nearest training image of another class, which is blended in"
    ),
    "reach": Parameter(
        1, 0, 1, "share of the images that are blended: those nearest to another class"
    ),
}
"""Parameters that can change training images after the split, in any base dataset. All others
regenerate all images, so the test images would change too."""


def check_training_parameters(dials: specs.Dials) -> specs.Dials:
    """Return the parameters of a condition that changes training images, sorted by name.

    Raises:
        ValueError: a parameter cannot be set after the split, or is out of range.
    """
    for name, value in dials:
        if name not in TRAINING_PARAMETERS:
            raise ValueError(
                f"dial {name!r} regenerates all images; with intervene_on: training an arm can set "
                f"{' and '.join(TRAINING_PARAMETERS)}"
            )
        _check_range(name, value, TRAINING_PARAMETERS[name])
    return tuple(sorted(dials))


def _check_range(name: str, value: float, parameter: Parameter) -> None:
    """Check the value of one parameter, and raise ValueError if it is not allowed."""
    if not parameter.allows(value):
        kind = "a whole number" if parameter.whole else "a number"
        raise ValueError(
            f"dial {name} is {kind} from {parameter.low:g} to {parameter.high:g}, got {value:g}"
        )


def _as_pairs(value: object) -> object:
    """Return a value of a sweep file as pairs.

    A mapping becomes sorted (name, value) pairs with float values; a list becomes a tuple of pairs.
    """
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
    """A generated or changed dataset.

    Attributes:
        from_: kind of its images, which is also the name of their source.
        dials: parameters that are set; all others are at their default.
    """

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
    def changed_dials(self) -> specs.Dials:
        """The parameters that are not at their default, sorted by name."""
        parameters = PARAMETERS[self.from_]
        return tuple(
            (name, value) for name, value in sorted(self.dials) if value != parameters[name].default
        )

    @property
    def digit_classes(self) -> tuple[str, ...]:
        """The digits on its images; empty if they show none.

        There are two sets of handwritten digits. A dataset of one and a dataset of the other can
        have the same classes.
        """
        if self.from_ != "pictures" or self.value("set") not in DIGIT_SETS:
            return ()
        return f"{self.value('first'):g}", f"{self.value('second'):g}"

    def with_dials(self, dials: specs.Dials) -> MadeSpec:
        """Return this dataset with other values of some parameters."""
        merged = {**dict(self.dials), **dict(dials)}
        return MadeSpec.model_validate({"from": self.from_, "dials": merged})


class BaseDatasetSpec(MadeSpec):
    """A base dataset: a replicate of an experiment, to which all conditions are applied."""

    name: specs.Name


class ConditionSpec(specs.Spec):
    """A condition of an experiment.

    Attributes:
        name: the condition's name.
        moves: the property that it is meant to change.
        dials: its parameters with their values.
        worlds: names of the base datasets to which it is applied; empty for all.
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
        base_name: name of the base dataset.
        condition_name: name of the condition; :data:`BASE` for the base dataset itself.
        moves: the property that the condition is meant to change.
        images: kind and parameters of the images before the split.
        training_parameters: parameters that change the training images after the split. They are
            empty for a base dataset. They are also empty if the condition changes all images,
            because ``images`` has its parameters then.
        intervene_on: images that the condition changes.
    """

    base_name: str
    condition_name: str
    moves: Literal["base"] | Moves
    images: MadeSpec
    training_parameters: specs.Dials = ()
    intervene_on: InterveneOn = "all"

    @property
    def prepared_name(self) -> str:
        """The name under which it is prepared and its results are stored."""
        return f"{self.base_name}_{self.condition_name}"

    @property
    def base_prepared_name(self) -> str:
        """The name under which its base dataset is prepared."""
        return f"{self.base_name}_{BASE}"

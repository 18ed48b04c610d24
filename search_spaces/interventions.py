"""Experiments of a sweep file, which change one property of a dataset and keep the others.

- A *base dataset* holds generated images, or real images that are changed in a known way. An
  experiment has several base datasets: its replicates.
- A *parameter* is a property of these images that can be set by itself.
- A *condition* sets parameters to other values. It is applied to every base dataset, and compared
  with it. Its *target* is the property that it is meant to change.

Sweep files and messages about them have shorter words: ``worlds`` are base datasets, ``dials``
parameters and ``arms`` conditions; ``moves`` is the target.

A condition changes all images before the split, or the training images alone after it
(:data:`InterveneOn`). In the first case the test images change too, so a higher test loss may come
from harder test images. In the second case every condition has the test set of its base dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from search_spaces import specs

BASE = "base"
"""Name of the base dataset itself among its conditions."""
Target = Literal["sharpness", "dimension", "nothing"]
"""The property that a condition is meant to change. ``nothing`` marks a control: a change that
should have no effect."""
ImageKind = Literal["generated", "lesions", "digits_even_odd", "pictures"]
"""Kinds of images that can be generated or changed. Each is also the name of a source."""
InterveneOn = Literal["all", "training"]
"""Images that a condition changes: ``all`` images before the split, so test images too; or only the
``training`` images, after the split."""
DIGIT_SETS = (0, 1)
"""Values of the parameter ``set`` of ``pictures`` that stand for handwritten digits."""


@dataclass(frozen=True)
class Parameter:
    """A property of a dataset that can be set by itself.

    Attributes:
        default: value in a base dataset that does not set the parameter.
        low: smallest allowed value.
        high: largest allowed value.
        meaning: meaning of the value, with its unit.
        whole: True if only whole numbers are allowed.
    """

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False

    def check(self, name: str, value: float) -> None:
        """Check a value of the parameter ``name``.

        Raises:
            ValueError: the value is out of range, or not whole although it must be.
        """
        is_in_range = self.low <= value <= self.high
        if not is_in_range or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(
                f"dial {name} is {kind} from {self.low:g} to {self.high:g}, got {value:g}"
            )


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
PARAMETERS: dict[str, dict[str, Parameter]] = {
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
"""Parameters by kind of images. The source with the name of the kind applies them."""

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


def check_training_parameters(parameters: specs.DatasetParameters) -> specs.DatasetParameters:
    """Return the parameters of a condition that changes training images, sorted by name.

    Raises:
        ValueError: a parameter cannot be set after the split, or its value is not allowed.
    """
    for name, value in parameters:
        if name not in TRAINING_PARAMETERS:
            raise ValueError(
                f"dial {name!r} regenerates all images; with intervene_on: training an arm can set "
                f"{' and '.join(TRAINING_PARAMETERS)}"
            )
        TRAINING_PARAMETERS[name].check(name, value)
    return tuple(sorted(parameters))


ParameterMapping = Annotated[specs.DatasetParameters, BeforeValidator(specs.sorted_pairs)]
"""Pairs of a parameter's name and its value. A sweep file gives them as a mapping."""


class GeneratedDatasetSpec(specs.Spec):
    """A generated or changed dataset.

    Attributes:
        from_: kind of its images.
        parameters: values of parameters by name. All other parameters are at their default.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: ImageKind = Field(alias="from")
    parameters: ParameterMapping = Field(default=(), alias="dials")

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        table = PARAMETERS[self.from_]
        for name, value in self.parameters:
            if name not in table:
                raise ValueError(f"{self.from_} has no dial {name!r}; it has {', '.join(table)}")
            table[name].check(name, value)
        if self.from_ == "generated" and self.value("bits") > self.value("dimension"):
            raise ValueError("dial bits must not exceed dimension")
        return self

    def value(self, name: str) -> float:
        """Return the value of a parameter."""
        return dict(self.parameters).get(name, PARAMETERS[self.from_][name].default)

    @property
    def changed_parameters(self) -> specs.DatasetParameters:
        """The parameters that are not at their default, sorted by name."""
        table = PARAMETERS[self.from_]
        return tuple(
            (name, value) for name, value in sorted(self.parameters) if value != table[name].default
        )

    @property
    def digit_classes(self) -> tuple[str, ...]:
        """The handwritten digits that its images show; empty if they show none."""
        if self.from_ != "pictures" or self.value("set") not in DIGIT_SETS:
            return ()
        return f"{self.value('first'):g}", f"{self.value('second'):g}"

    def with_parameters(self, changes: specs.DatasetParameters) -> GeneratedDatasetSpec:
        """Return this dataset with other values of some parameters."""
        merged = {**dict(self.parameters), **dict(changes)}
        return GeneratedDatasetSpec(from_=self.from_, parameters=tuple(sorted(merged.items())))


class BaseDatasetSpec(GeneratedDatasetSpec):
    """A base dataset: a replicate of an experiment, to which conditions are applied."""

    name: specs.Name

    @property
    def images(self) -> GeneratedDatasetSpec:
        """The dataset without its name."""
        return self.with_parameters(())


class ConditionSpec(specs.Spec):
    """A condition of an experiment.

    Attributes:
        name: name of the condition.
        target: property that it is meant to change.
        parameters: values that it sets.
        base_names: names of the base datasets to which it is applied; empty for all.
    """

    name: specs.Name
    target: Target = Field(alias="moves")
    parameters: ParameterMapping = Field(alias="dials")
    base_names: tuple[specs.Name, ...] = Field(default=(), alias="worlds")

    @model_validator(mode="after")
    def _check_condition(self) -> Self:
        if self.name == BASE:
            raise ValueError(
                f"the name {BASE!r} means the unchanged world. Give the arm another name"
            )
        if not self.parameters:
            raise ValueError("an arm must change at least one dial")
        return self


@dataclass(frozen=True)
class ExperimentDataset:
    """One dataset of an experiment: a base dataset, or a condition applied to one.

    Attributes:
        base_name: name of the base dataset.
        condition_name: name of the condition; :data:`BASE` for the base dataset itself.
        target: property that the condition is meant to change; ``base`` for the base dataset.
        images: the images before the split.
        intervene_on: images that conditions of this experiment change.
        training_parameters: parameters that change the training images after the split. They are
            empty if there are none: for a base dataset, and for a condition that changes all
            images, whose parameters are those of ``images``.
    """

    base_name: str
    condition_name: str
    target: Literal["base"] | Target
    images: GeneratedDatasetSpec
    intervene_on: InterveneOn
    training_parameters: specs.DatasetParameters = ()

    @property
    def prepared_name(self) -> str:
        """Name of the dataset in plans and results."""
        return f"{self.base_name}_{self.condition_name}"

    @property
    def base_prepared_name(self) -> str:
        """Name of its base dataset in plans and results."""
        return f"{self.base_name}_{BASE}"

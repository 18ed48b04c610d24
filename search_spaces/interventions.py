"""Experiments in a sweep file. An experiment changes one property of a dataset and keeps the
others.

Sweep files and messages about them use shorter words than this code:

==============  ===========  =======================================================================
In the code     In the file  Meaning
==============  ===========  =======================================================================
base dataset    ``worlds``   Generated images, or real images that are changed in a known way. An
                             experiment has several base datasets, which are its replicates.
parameter       ``dials``    A property of these images that can be set separately.
condition       ``arms``     Other values of some parameters. A condition is applied to every base
                             dataset, and the result is compared with the base dataset. Another
                             word for it is *intervention*.
target          ``moves``    The property that a condition should change.
kind of images  ``from``     The source that makes the images.
==============  ===========  =======================================================================

A condition changes all images before the split, or only the training images after the split
(:data:`ChangedImages`). If it changes all images, the test images change too. A higher test
loss may then come from harder test images. If it changes only training images, the test images
stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from search_spaces import specs

BASE = "base"
"""Name that an unchanged base dataset has in place of the name of a condition."""
Target = Literal["sharpness", "dimension", "nothing"]
"""The property that a condition should change: ``sharpness`` for the label sharpness,
``dimension`` for the intrinsic dimension. ``nothing`` marks a control, which should have no
effect."""
ImageKind = Literal["generated", "lesions", "digits_even_odd", "pictures"]
"""Kinds of images that can be generated or changed. Each kind is also the name of the source
that makes these images. ``digits_even_odd`` has the ten digits of the set ``mnist5k``, in the
classes even and odd. ``pictures`` has two classes of one of :data:`IMAGE_SETS`."""
ChangedImages = Literal["all", "training"]
"""Images that a condition changes. ``all``: all images before the split, test images included.
``training``: only the training images, after the split."""
IMAGE_SETS = (
    "digits",
    "mnist5k",
    "faces",
    "textures",
    "photographs",
    "histology",
    "retina",
    "tissue",
)
"""Sets of images of the kind ``pictures``. The parameter ``set`` is an index into this tuple.
Stored trial ids depend on the index, so the order must not change."""
DIGIT_SETS = frozenset({"digits", "mnist5k"})
"""Image sets of handwritten digits."""


@dataclass(frozen=True)
class Parameter:
    """A property of a dataset that can be set separately.

    Attributes:
        default: value that is used if a base dataset does not set the parameter.
        low: smallest allowed value.
        high: largest allowed value.
        meaning: meaning of the value, with its unit.
        is_integer: True if only whole numbers are allowed.
    """

    default: float
    low: float
    high: float
    meaning: str
    is_integer: bool = False

    def check(self, name: str, value: float) -> None:
        """Check a value of the parameter ``name``.

        Raises:
            ValueError: the value is out of range, or is a fraction where a whole number is
                needed.
        """
        is_in_range = self.low <= value <= self.high
        if is_in_range and (not self.is_integer or value == int(value)):
            return
        kind = "a whole number" if self.is_integer else "a number"
        raise ValueError(
            f"`dials.{name}` is {value:g}, but must be {kind} from {self.low:g} to {self.high:g}"
        )


_COMMON = {
    "flip_share": Parameter(
        default=0,
        low=0,
        high=0.5,
        meaning="share of the labels to flip, before the split into training and test images",
    ),
    "flipped": Parameter(
        default=0,
        low=0,
        high=100,
        meaning="number of labels to flip in addition to those of flip_share",
        is_integer=True,
    ),
    "pixel_scale": Parameter(default=1, low=0.01, high=1, meaning="factor on all pixels"),
}
_BLEND = Parameter(
    default=0,
    low=0,
    high=0.49,
    meaning="weight of the nearest image of another class, which is blended into each image",
)
_REACH = Parameter(
    default=1,
    low=0,
    high=1,
    meaning="share of the images to blend. Images nearest to another class are blended first",
)
# Sweep files contain the names of these parameters, so the names must not change. The field
# ``meaning`` explains short names such as bits, frequency and draw.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "generated": {
        "dimension": Parameter(
            default=4,
            low=1,
            high=12,
            meaning="number of coordinates of the manifold",
            is_integer=True,
        ),
        "nuisance": Parameter(
            default=0,
            low=0,
            high=12,
            meaning="number of additional coordinates that do not change the label",
            is_integer=True,
        ),
        "bits": Parameter(
            default=2,
            low=1,
            high=12,
            meaning="number of coordinates that decide the label; the label is 1 if the sum "
            "of their band numbers is odd",
            is_integer=True,
        ),
        "bands": Parameter(
            default=2,
            low=2,
            high=8,
            meaning="number of bands along each coordinate that decides the label",
            is_integer=True,
        ),
        "gap": Parameter(
            default=80,
            low=0,
            high=400,
            meaning="L2 distance between bands, for 16x16 images with pixels in [0, 255]",
        ),
        "fine_gap": Parameter(
            default=28,
            low=0,
            high=400,
            meaning="L2 distance between the halves of a band, in the unit of gap",
        ),
        "contrast": Parameter(
            default=1, low=0, high=4, meaning="factor on gap; fine_gap does not change"
        ),
        "frequency": Parameter(
            default=1,
            low=1,
            high=2,
            meaning="1: the numbers of the bands decide the label; 2: the numbers of the half "
            "bands decide it; the images do not change",
            is_integer=True,
        ),
        "num_images": Parameter(
            default=4000, low=100, high=40_000, meaning="number of images", is_integer=True
        ),
        "draw": Parameter(
            default=0, low=0, high=10_000, meaning="seed of the images", is_integer=True
        ),
        **_COMMON,
    },
    "lesions": {
        "contrast": Parameter(
            default=1, low=0, high=1, meaning="factor on the contrast of the lesions"
        ),
        "size": Parameter(default=1, low=0.1, high=2, meaning="factor on the radii of the lesions"),
        "variations": Parameter(
            default=700,
            low=10,
            high=10_000,
            meaning="number of random variants of the drawn head; each has four slices",
            is_integer=True,
        ),
        **_COMMON,
    },
    "digits_even_odd": {"blend": _BLEND, **_COMMON},
    "pictures": {
        "set": Parameter(
            default=1,
            low=0,
            high=len(IMAGE_SETS) - 1,
            meaning=f"index of the image set, from 0: {', '.join(IMAGE_SETS)}",
            is_integer=True,
        ),
        "first": Parameter(
            default=0, low=0, high=9, meaning="class that gets the label 0", is_integer=True
        ),
        "second": Parameter(
            default=1, low=0, high=9, meaning="class that gets the label 1", is_integer=True
        ),
        "blend": _BLEND,
        "reach": _REACH,
        "factors": Parameter(
            default=0,
            low=0,
            high=6,
            meaning="number of nuisance factors that vary from image to image, in this order: "
            "shift, rotation, contrast, coarse background, blur, fine background",
            is_integer=True,
        ),
        **_COMMON,
    },
}
"""Parameters by kind of images and name. The source that makes these images applies them."""

TRAINING_PARAMETERS: dict[str, Parameter] = {"blend": _BLEND, "reach": _REACH}
"""Parameters that can change training images after the split, in any base dataset. Only
training images are blended in. Every other parameter changes the images or labels of the whole
dataset before the split."""


def check_training_parameters(
    parameters: specs.DatasetParameters,
) -> specs.DatasetParameters:
    """Check the parameters of a condition that changes training images, and return them sorted.

    Raises:
        ValueError: a parameter does not exist, cannot be set after the split, or has a value
            that is not allowed.
    """
    allowed = " and ".join(f"`{name}`" for name in TRAINING_PARAMETERS)
    hint = f"With `intervene_on: training`, `dials` can contain only {allowed}"
    for name, value in parameters:
        if not any(name in table for table in PARAMETERS.values()):
            raise ValueError(f"`dials` has no parameter {name!r}. {hint}")
        if name not in TRAINING_PARAMETERS:
            raise ValueError(
                f"`dials` contains {name!r}, which applies to the whole dataset and cannot "
                f"change training images only. {hint}"
            )
        TRAINING_PARAMETERS[name].check(name, value)
    return tuple(sorted(parameters))


ParameterMapping = Annotated[specs.DatasetParameters, BeforeValidator(specs.sorted_pairs)]
"""Pairs (name of a parameter, value). In a sweep file they are a mapping."""


class ControlledDatasetSpec(specs.Spec):
    """A dataset of generated images, or of real images that are changed in a known way.

    Attributes:
        kind: kind of the images.
        parameters: pairs (name of a parameter, value). Every other parameter has its default.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: ImageKind = Field(alias="from")
    parameters: ParameterMapping = Field(default=(), alias="dials")

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        table = PARAMETERS[self.kind]
        for name, value in self.parameters:
            if name not in table:
                raise ValueError(
                    f"images of the kind {self.kind} have no parameter {name!r} (key `dials`). "
                    f"Choose from these parameters: {', '.join(table)}"
                )
            table[name].check(name, value)
        if self.kind == "generated" and self.value("bits") > self.value("dimension"):
            raise ValueError(
                f"`dials.bits` is {self.value('bits'):g}, but `dials.dimension` is only "
                f"{self.value('dimension'):g}. Lower bits, or raise dimension"
            )
        return self

    def value(self, name: str) -> float:
        """Return the value that this dataset sets for a parameter, or the default value."""
        return dict(self.parameters).get(name, PARAMETERS[self.kind][name].default)

    @property
    def changed_parameters(self) -> specs.DatasetParameters:
        """The parameters whose values differ from their defaults, sorted by name."""
        table = PARAMETERS[self.kind]
        return tuple(
            (name, value) for name, value in sorted(self.parameters) if value != table[name].default
        )

    @property
    def digit_classes(self) -> tuple[str, ...]:
        """The handwritten digits that the images show; empty if the images show none."""
        if self.kind != "pictures" or IMAGE_SETS[int(self.value("set"))] not in DIGIT_SETS:
            return ()
        return f"{self.value('first'):g}", f"{self.value('second'):g}"

    def with_parameters(self, changes: specs.DatasetParameters) -> ControlledDatasetSpec:
        """Return a copy of this dataset with new values for the parameters in ``changes``.

        The result has no name, even if this dataset is a :class:`BaseDatasetSpec`.
        """
        merged = {**dict(self.parameters), **dict(changes)}
        return ControlledDatasetSpec(kind=self.kind, parameters=tuple(sorted(merged.items())))


class BaseDatasetSpec(ControlledDatasetSpec):
    """A base dataset: one replicate of an experiment, to which conditions are applied.

    Attributes:
        name: name of the base dataset in the sweep file.
    """

    name: specs.Name

    def without_name(self) -> ControlledDatasetSpec:
        """Return the same dataset without its name."""
        # with_parameters always returns a ControlledDatasetSpec, which has no name.
        return self.with_parameters(())


class ConditionSpec(specs.Spec):
    """A condition of an experiment.

    Attributes:
        name: name of the condition.
        target: property that the condition should change.
        parameters: values that the condition sets.
        base_names: names of the base datasets to which the condition is applied. Empty means
            all base datasets.
    """

    name: specs.Name
    target: Target = Field(alias="moves")
    parameters: ParameterMapping = Field(alias="dials")
    base_names: tuple[specs.Name, ...] = Field(default=(), alias="worlds")

    @model_validator(mode="after")
    def _check_condition(self) -> Self:
        if self.name == BASE:
            raise ValueError(
                f"an arm has the name {BASE!r}, which isweep uses for the unchanged world. "
                "Choose another name"
            )
        if not self.parameters:
            raise ValueError(
                "the arm changes nothing, because its key `dials` is empty. Set at least one "
                "parameter under `dials`"
            )
        return self


@dataclass(frozen=True)
class ExperimentDataset:
    """One dataset of an experiment: a base dataset with a condition or without one.

    Attributes:
        base_name: name of the base dataset in the sweep file, such as ``a``.
        condition_name: name of the condition; :data:`BASE` for the base dataset itself.
        target: property that the condition should change; ``base`` for the base dataset.
        images: kind and parameters of the images before the split.
        intervene_on: images that the conditions of this experiment change.
        training_parameters: parameters that change the training images after the split; empty
            for a base dataset. If conditions change all images, this field is empty too. The
            parameters of the condition are then in ``images``.
    """

    base_name: str
    condition_name: str
    target: Literal["base"] | Target
    images: ControlledDatasetSpec
    intervene_on: ChangedImages
    training_parameters: specs.DatasetParameters = ()

    @property
    def dataset_name(self) -> str:
        """Name of the dataset in plans and results, such as ``a_blurred``."""
        return f"{self.base_name}_{self.condition_name}"

    @property
    def base_dataset_name(self) -> str:
        """Name of the base dataset in plans and results, such as ``a_base`` for ``a``."""
        return f"{self.base_name}_{BASE}"

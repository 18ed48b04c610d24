"""Experiments that move one property of a dataset and hold the others, as a sweep file states them.

A *world* is a made dataset (generated, or real images changed in a known way), an *arm* a dial turned in
every world. Every world has a base beside its arms, the world as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from search_spaces.specs import Dials, Domain, Name, Spec

BASE = "base"
Moves = Literal["sharpness", "dimension", "nothing"]
Kind = Literal["generated", "lesions", "digits_even_odd"]


@dataclass(frozen=True)
class Dial:
    """One property that can be turned by itself: the value at which it stands, and how far it can go."""

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False


_FLIPS = {
    "flip_share": Dial(0, 0, 0.5, "share of the images whose label is exchanged, in training and test"),
    "flipped": Dial(0, 0, 100, "this many single images whose label is exchanged", whole=True),
    "pixel_scale": Dial(1, 0.01, 1, "factor on all pixels"),
}
DIALS: dict[Kind, dict[str, Dial]] = {
    "generated": {
        "dimension": Dial(4, 1, 12, "coordinates of the images' manifold", whole=True),
        "nuisance": Dial(0, 0, 12, "further coordinates that tell nothing of the label", whole=True),
        "bits": Dial(2, 1, 12, "coordinates that the label is the parity of", whole=True),
        "bands": Dial(2, 2, 8, "bands of unlike labels along each of them", whole=True),
        "gap": Dial(80, 0, 400, "distance of unlike bands, L2 of pixels 0..255 at 16x16"),
        "fine_gap": Dial(28, 0, 400, "distance of the halves of a band, in the same unit"),
        "contrast": Dial(1, 0, 4, "factor on the gap between unlike bands"),
        "frequency": Dial(1, 1, 2, "2: halves of a band are unlike too, on the same images", whole=True),
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
    "digits_even_odd": {
        "blend": Dial(0, 0, 0.49, "share of each image's nearest image with another label blended in"),
        **_FLIPS,
    },
}
"""Kind of world -> dial -> what it is; the study of each is in the source of that name."""


@dataclass(frozen=True)
class MadeKind:
    """What is the same for all datasets of one kind of world."""

    domain: Domain
    modality: str
    label_names: tuple[str, str]
    what: str
    groups: str = "none: every image is its own group"


KINDS: dict[Kind, MadeKind] = {
    "generated": MadeKind(
        "natural",
        "generated images",
        ("even", "odd"),
        "GENERATED: smooth images on a flat manifold; the label is the parity of bands along coordinates",
    ),
    "lesions": MadeKind(
        "medical",
        "brain MRI T1, semi-synthetic",
        ("no lesion", "lesion"),
        "SEMI-SYNTHETIC: mri_lesion with its lesions changed",
        "variation of the template (four slices each)",
    ),
    "digits_even_odd": MadeKind(
        "natural",
        "handwritten digits",
        ("even", "odd"),
        "SEMI-SYNTHETIC: even against odd digits of mnist5k, changed",
    ),
}


def _as_pairs(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple((key, float(v)) if _is_number(v) else (key, v) for key, v in sorted(value.items()))
    return tuple(tuple(pair) for pair in value) if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _each_once(dials: Dials) -> Dials:
    names = [name for name, _ in dials]
    if len(set(names)) < len(names):
        raise ValueError("names a dial more than once")
    return dials


DialChoice = Annotated[Dials, BeforeValidator(_as_pairs), AfterValidator(_each_once)]
"""In a sweep file a mapping of dials to values."""


class MadeSpec(Spec):
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
                raise ValueError(f"dial {name} is {kind} from {dial.low:g} to {dial.high:g}, got {value:g}")
        if self.from_ == "generated" and self.value("bits") > self.value("dimension"):
            raise ValueError("dial bits must not exceed dimension")
        return self

    def value(self, name: str) -> float:
        """Where a dial stands."""
        return dict(self.dials).get(name, DIALS[self.from_][name].default)

    @property
    def own_dials(self) -> Dials:
        """The dials that do not stand where they stand by themselves, sorted."""
        known = DIALS[self.from_]
        return tuple((name, value) for name, value in sorted(self.dials) if value != known[name].default)

    def turned(self, dials: Dials) -> MadeSpec:
        """Return it with some dials turned to other values."""
        together = {**dict(self.dials), **dict(dials)}
        return MadeSpec.model_validate({"from": self.from_, "dials": together})


class WorldSpec(MadeSpec):
    """One replicate of an experiment: a made dataset in which every arm turns its dials."""

    name: Name


class ArmSpec(Spec):
    """Dials turned in every world, or in those named, and what that is meant to move."""

    name: Name
    moves: Moves
    dials: DialChoice
    worlds: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _check_arm(self) -> Self:
        if self.name == BASE:
            raise ValueError(f"{BASE!r} is the world as it stands; give the arm another name")
        if not self.dials:
            raise ValueError("an arm turns at least one dial")
        return self


@dataclass(frozen=True)
class MadeArm:
    """One dataset of an experiment: its world, its arm, what was moved in it, and what it is made of."""

    world: str
    name: str
    moves: Literal["base"] | Moves
    made: MadeSpec

    @property
    def dataset(self) -> str:
        """The name under which it is prepared and trained on."""
        return f"{self.world}_{self.name}"


def made_arms(worlds: Iterable[WorldSpec], arms: Iterable[ArmSpec]) -> tuple[MadeArm, ...]:
    """Return the datasets of an experiment: each world's base, then its arms.

    Raises:
        ValueError: where an arm turns a dial that a world does not have, or too far.
    """
    found = []
    arms = tuple(arms)
    for world in worlds:
        base = world.turned(())
        found.append(MadeArm(world.name, BASE, "base", base))
        for arm in arms:
            if arm.worlds and world.name not in arm.worlds:
                continue
            try:
                made = base.turned(arm.dials)
            except ValueError as error:
                raise ValueError(f"arm {arm.name} in world {world.name}: {_first(error)}") from None
            found.append(MadeArm(world.name, arm.name, arm.moves, made))
    return tuple(found)


def _first(error: ValueError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return str(error)

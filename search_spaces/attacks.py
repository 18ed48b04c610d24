"""The table of adversarial attacks: where each is computed, its parameters and what it costs.

An attack is one function and one row in :data:`ATTACKS`. The row is here, where neither torch nor
the function is imported, because sweep files, ids and plans need it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Number = int | float


@dataclass(frozen=True)
class AttackParameter:
    """A keyword argument of an attack's function that a sweep file may set.

    Attributes:
        default: value if a sweep file sets none. If it is an int, only whole numbers are allowed.
        low: smallest allowed value.
        high: largest allowed value.
        meaning: meaning of the parameter, with its unit.
    """

    default: Number
    low: Number
    high: Number
    meaning: str

    def problem(self, value: object) -> str:
        """Return why ``value`` is not allowed, as the end of a sentence; empty if it is."""
        allowed_types: tuple[type, ...] = (int, float)
        kind = "a number"
        if isinstance(self.default, int):
            allowed_types = (int,)
            kind = "a whole number"
        is_number = isinstance(value, allowed_types) and not isinstance(value, bool)
        if is_number and self.low <= value <= self.high:  # type: ignore[operator]
            return ""
        return f"must be {kind} from {self.low:g} to {self.high:g}, got {value!r}"


@dataclass(frozen=True)
class AttackPasses:
    """Passes of one image through the network, at one strength unless stated otherwise.

    Attributes:
        shared_gradients: forward and backward passes that all strengths share.
        gradients: forward and backward passes.
        forwards: passes without a backward pass, the final scoring included.
    """

    shared_gradients: int = 0
    gradients: int = 0
    forwards: int = 1


@dataclass(frozen=True)
class AttackMethod:
    """One row of the table.

    Attributes:
        function: ``module:function`` that computes it. :class:`tasks.trials.attacks.AttackFunction`
            says what it is called with.
        passes: returns the cost of one image, given the values of all parameters.
        parameters: keyword arguments of the function that a sweep file may set, by name. Only
            values that differ from the default are part of an identity.
        versions: the values of :data:`search_spaces.specs.ATTACK_VERSION` at which this attack's
            numbers changed. Results of an older version are measured again.
    """

    function: str
    passes: Callable[[Mapping[str, Number]], AttackPasses]
    parameters: Mapping[str, AttackParameter] = field(default_factory=dict)
    versions: tuple[int, ...] = (1,)

    def values(self, changes: Mapping[str, Number]) -> dict[str, Number]:
        """Return the value of every parameter: its default unless ``changes`` has another."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return {**defaults, **changes}

    def version_at(self, attack_version: int) -> int:
        """Return the version of this attack's numbers in a trial of ``attack_version``."""
        return max(version for version in self.versions if version <= attack_version)


def _fgsm_passes(values: Mapping[str, Number]) -> AttackPasses:
    # The gradient is taken once, on the clean images, and serves every strength.
    return AttackPasses(shared_gradients=1)


def _pgd_passes(values: Mapping[str, Number]) -> AttackPasses:
    num_restarts = int(values["num_restarts"])
    # Each descent scores its last image without a backward pass.
    return AttackPasses(
        gradients=num_restarts * int(values["num_steps"]), forwards=num_restarts + 1
    )


ATTACKS: dict[str, AttackMethod] = {
    "fgsm": AttackMethod("tasks.trials.attacks:fgsm", _fgsm_passes),
    "pgd": AttackMethod(
        "tasks.trials.attacks:pgd",
        _pgd_passes,
        parameters={
            "num_steps": AttackParameter(20, 1, 10_000, "gradient steps of one descent"),
            "num_restarts": AttackParameter(
                5, 1, 1_000, "descents; the first starts at the image, others at random"
            ),
            # 20 such steps can cross the L-infinity ball, which is 2 epsilon wide, once.
            "relative_step_size": AttackParameter(
                0.1, 0.001, 2, "length of a step as a fraction of epsilon"
            ),
        },
        # 2: the iterate with the smallest margin is kept, no longer the last one.
        versions=(1, 2),
    ),
}
"""Attack by the name that sweep files, columns and MLflow metrics use."""

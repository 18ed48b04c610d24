"""The table of adversarial attacks: the function, the parameters and the cost of each attack.

Each attack has one function and one row in :data:`ATTACKS`. To read a sweep file, compute ids
or plan trials, isweep needs only the row. So this module imports neither the functions nor
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from search_spaces.row_parameters import Number, RowParameters


@dataclass(frozen=True)
class AttackParameter:
    """A keyword argument of an attack's function that a sweep file may set.

    Attributes:
        default: value to use if a sweep file does not set the parameter. If the default is an
            int, only whole numbers are allowed.
        low: smallest allowed value.
        high: largest allowed value.
        meaning: meaning of the parameter, with its unit.
    """

    default: Number
    low: Number
    high: Number
    meaning: str

    def problem(self, value: object) -> str:
        """Return the rule that ``value`` breaks, or an empty text if the value is allowed.

        The caller puts the parameter's name before this text: ``num_steps must be a whole
        number from 1 to 10000, but is 0``.
        """
        allowed_types: tuple[type, ...] = (int, float)
        kind = "a number"
        if isinstance(self.default, int):
            allowed_types = (int,)
            kind = "a whole number"
        is_number = isinstance(value, allowed_types) and not isinstance(value, bool)
        if is_number and self.low <= value <= self.high:  # type: ignore[operator]
            return ""
        return f"must be {kind} from {self.low:g} to {self.high:g}, but is {value!r}"


@dataclass(frozen=True)
class AttackPasses:
    """The cost of an attack: how often one image passes through the network.

    Attributes:
        shared_gradients: number of forward and backward passes that all epsilons share.
        gradients: number of further forward and backward passes for each epsilon.
        forwards: number of forward passes without a backward pass, for each epsilon. The last
            of them computes the final loss and accuracy.
    """

    shared_gradients: int = 0
    gradients: int = 0
    forwards: int = 1


@dataclass(frozen=True)
class AttackMethod:
    """One row of the table of attacks.

    Attributes:
        function: ``module:function`` that computes the attack.
            :class:`tasks.trials.attacks.AttackFunction` lists the arguments of this function.
        passes: function that returns the cost for one image. isweep calls this function with
            the values of all parameters.
        effect: effect of the attack on an image, in words for a report. The words "that size"
            in this text mean the strength epsilon.
        parameters: keyword arguments of the function that a sweep file may set, by name. A
            trial's id depends only on values that differ from the default.
        versions: values of :data:`search_spaces.specs.ATTACK_VERSION` at which the results of
            this attack changed. Results of an older version are computed again.
    """

    function: str
    passes: Callable[[Mapping[str, Number]], AttackPasses]
    effect: str
    parameters: Mapping[str, AttackParameter] = field(default_factory=dict)
    versions: tuple[int, ...] = (1,)

    def values(self, changes: Mapping[str, Number]) -> RowParameters:
        """Return all parameters: the values in ``changes``, and the defaults of all others."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return RowParameters(f"the attack {self.function}", {**defaults, **changes})

    def version_at(self, attack_version: int) -> int:
        """Return the version of this attack in a trial with this ``attack_version``."""
        return max(version for version in self.versions if version <= attack_version)


def _fgsm_passes(values: Mapping[str, Number]) -> AttackPasses:
    # The gradient at the clean images is computed once and used for every epsilon.
    return AttackPasses(shared_gradients=1)


def _pgd_passes(values: Mapping[str, Number]) -> AttackPasses:
    num_restarts = int(values["num_restarts"])
    # Each descent evaluates its last image without a backward pass.
    return AttackPasses(
        gradients=num_restarts * int(values["num_steps"]), forwards=num_restarts + 1
    )


ATTACKS: dict[str, AttackMethod] = {
    "fgsm": AttackMethod(
        "tasks.trials.attacks:fgsm",
        _fgsm_passes,
        effect="every pixel changes by that size, in the direction that raises the loss (fast "
        "gradient sign method)",
    ),
    "pgd": AttackMethod(
        "tasks.trials.attacks:pgd",
        _pgd_passes,
        effect="every pixel changes by at most that size, in several small steps that each raise "
        "the loss (projected gradient descent)",
        parameters={
            "num_steps": AttackParameter(20, 1, 10_000, "number of gradient steps in one descent"),
            "num_restarts": AttackParameter(
                5,
                1,
                1_000,
                "number of descents; all but the first start at random points",
            ),
            # The L-infinity ball is 2 epsilon wide, so 20 steps of 0.1 epsilon can cross it
            # once.
            "relative_step_size": AttackParameter(
                0.1, 0.001, 2, "length of a step as a fraction of epsilon"
            ),
        },
        # Version 2 returns the iterate with the smallest margin. Version 1 returned the last
        # iterate.
        versions=(1, 2),
    ),
}
"""Attacks by name, as in sweep files, result columns and MLflow metrics."""

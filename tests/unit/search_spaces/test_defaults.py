"""Committed defaults of all specs. Ids leave defaults out, so a changed default changes no id by
itself."""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from search_spaces import specs
from search_spaces.attacks import ATTACKS
from search_spaces.specs import Spec

GOLDEN = Path(__file__).parents[2] / "golden" / "defaults.json"
WHAT_TO_DO = """
Defaults changed or went, while ids that leave them out stay: old results would be taken for new ones.
Count up the version of every kind that holds {name} (search_spaces/specs.py; for an attack also in its
row of search_spaces/attacks.py) and write the new defaults with
    python -m tests.unit.search_spaces.test_defaults
and the ids as tests/unit/orchestrator/planning/test_golden_ids.py says.
"""
WHAT_TO_DO_WITH_A_NEW_ROW = """
New, and not committed yet: {names}. No version counts up. Write the defaults with
    python -m tests.unit.search_spaces.test_defaults
and commit tests/golden/defaults.json.
"""
# The specs of trials contain all choices of a sweep, so choices decide no id themselves.
HASHED = {
    "ModelSpec": ["NETWORK"],
    "RecipeSpec": ["NETWORK"],
    "PreparedSpec": ["PREPARED"],
    "SubsetSpec": ["NETWORK", "MEASURE"],
    "NetworkSpec": ["NETWORK"],
    "MeasureSpec": ["MEASURE"],
    "AttackRequest": ["ATTACK"],
    "RepresentationRequest": ["REPRESENTATION"],
    "RobustnessRequest": ["ROBUSTNESS"],
    "RobustnessSpec": ["ROBUSTNESS"],
    "PredictionRequest": ["PREDICTIONS"],
    "FurtherTest": ["FURTHER_TEST"],
    "FurtherTestRequest": ["FURTHER_TEST", "ROBUSTNESS"],
}


def defaults(kind: type[BaseModel]) -> dict[str, object]:
    return {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in kind.model_fields.items()
        if not field.is_required() and name != "schema_version"
    }


def current_defaults() -> dict[str, dict[str, dict[str, object]]]:
    """Return the current defaults of every hashed spec and attack, with the versions of both."""
    attacks = {
        f"attack {method}": {
            "versions": list(row.versions),
            "defaults": row.values({}),
        }
        for method, row in ATTACKS.items()
    }
    kinds = {
        name: {
            "versions": {kind: getattr(specs, f"{kind}_VERSION") for kind in kinds},
            "defaults": defaults(getattr(specs, name)),
        }
        for name, kinds in HASHED.items()
    }
    return {**kinds, **attacks}


def test_the_committed_defaults_equal_the_current_ones():
    stored, current = json.loads(GOLDEN.read_text(encoding="utf-8")), current_defaults()
    current_values = {name: current[name] for name in stored if name in current}
    assert stored == current_values, WHAT_TO_DO.format(name="the spec")


def test_a_new_spec_or_attack_has_its_defaults_committed():
    written = json.loads(GOLDEN.read_text(encoding="utf-8"))
    new = sorted(current_defaults().keys() - written.keys())
    assert not new, WHAT_TO_DO_WITH_A_NEW_ROW.format(names=", ".join(new))


def test_every_spec_that_an_id_is_made_of_is_covered():
    """Every spec that is a field of a spec with a schema version is hashed, too."""
    spec_names, pending = (
        set(),
        [specs.NetworkSpec, specs.MeasureSpec, *specs.MeasurementRequest.__args__],
    )
    while pending:
        spec = pending.pop()
        spec_names.add(spec.__name__)
        kinds = [field.annotation for field in spec.model_fields.values()]
        pending += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Spec)]
    assert spec_names == set(HASHED)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current_defaults(), indent=1) + "\n", encoding="utf-8")

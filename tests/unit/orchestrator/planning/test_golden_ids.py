"""Test that no id of a preset moves: a stored result whose id moves is no longer found."""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.written_files import preset_names

GOLDEN = Path(__file__).parents[3] / "golden" / "ids.json"
WHAT_TO_DO = """
The ids of preset {preset!r} moved: every stored {kind} record of it would be made anew ({kind} ids below).
- Was a field added to a spec? Give it a default that means what was done before; then no id moves.
- Did a default change, or the meaning of a field? Then ids should move: count up that kind's version in
  search_spaces/specs.py, so that a changed default is never taken for the old one.
- Did a preset or a table row (model, dataset, recipe) change on purpose? Then its ids should move too.
If they should, write the new ids with
    python -m tests.unit.orchestrator.planning.test_golden_ids
and say in CHANGELOG.md which results will be made anew.
"""


@cache
def ids(preset: str) -> dict[str, object]:
    """Return count, first, last and a hash of all sorted ids for each kind of record."""
    plan = plan_sweep(load_sweep(preset))
    kinds = {
        "trial": [trial.trial_id for trial in plan.trials],
        "measure": [measure.measure_id for measure in plan.measures],
        "prepared": [prepared.prepared_id for prepared in plan.prepared],
    }
    return {
        kind: {
            "count": len(ids_of_kind),
            "first": ids_of_kind[0],
            "last": ids_of_kind[-1],
            "sha256_of_sorted": hashlib.sha256("\n".join(sorted(ids_of_kind)).encode()).hexdigest(),
        }
        for kind, ids_of_kind in kinds.items()
    }


PRESETS = preset_names()


@pytest.mark.parametrize("kind", ["prepared", "measure", "trial"])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_id_of_a_preset_moves(preset, kind):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert ids(preset)[kind] == golden[preset][kind], WHAT_TO_DO.format(preset=preset, kind=kind)


def test_every_preset_is_covered():
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == set(PRESETS)


if __name__ == "__main__":
    text = json.dumps({preset: ids(preset) for preset in PRESETS}, indent=1)
    GOLDEN.write_text(text + "\n", encoding="utf-8")

"""The costs that are shipped are those of a walk. ``python -m tests.unit.orchestrator.planning.test_walked``
writes them anew.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import PASSES, WALKED, cost_key, network_cost, recipe_of_costs
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.walk import walk_network

PRESETS = ("demo", "interventions", "paper", "smoke")


def networks():
    """Return what the costs of every network of the presets are asked for by, by their key."""
    found = {}
    for preset in PRESETS:
        for trial in plan_sweep(load_sweep(preset)).trials:
            network, prepared = trial.network, trial.network.subset.prepared
            recipe, sizes = (
                recipe_of_costs(network),
                (prepared.channels, prepared.image_size, 2),
            )
            found.setdefault(cost_key(network.model, recipe, *sizes), (network.model, recipe, sizes))
    return found


def write():
    """Write the table, a line per network and pass."""
    lines = []
    for key, (model, recipe, sizes) in sorted(
        networks().items(), key=lambda item: (item[1][0].name, item[0])
    ):
        print(f"{model.name}, batch {recipe.batch_size}, {recipe.precision}, {sizes}", file=sys.stderr)
        cost = walk_network(model, recipe, *sizes)
        plain = asdict(cost)
        for name in PASSES:
            kernels = Counter((k.name, k.flops, k.num_bytes) for k in getattr(cost, name).kernels)
            plain[name]["kernels"] = [[*kernel, number] for kernel, number in kernels.items()]
        fields = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items())
        lines.append(f' "{key}": {{\n  {fields}\n }}')
    WALKED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def test_every_network_of_the_presets_is_there_and_no_other():
    assert set(json.loads(WALKED.read_text())) == set(networks())


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, id=f"{model.name}-{sizes[1]}px") for key, (model, _, sizes) in networks().items()],
)
def test_kept_costs_are_those_of_a_walk(key):
    """Another version of torch may have other kernels here and there; what they add up to is held."""
    model, recipe, sizes = networks()[key]
    kept, walked = (
        network_cost(model, recipe, channels=sizes[0], image_size=sizes[1]),
        walk_network(model, recipe, *sizes),
    )
    for name in ("num_parameters", "state_bytes", "evaluation_batch", "attack_batch", "uncounted"):
        assert getattr(kept, name) == getattr(walked, name)
    assert kept.forward_flops == pytest.approx(walked.forward_flops, rel=0.02)
    for part in ("step", "evaluation", "attack"):
        ours, theirs = getattr(kept, part), getattr(walked, part)
        for name in ("flops", "num_launches", "peak_bytes", "workspace_bytes"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=0.02), (part, name)
        moved = [sum(kernel.num_bytes for kernel in one.kernels) for one in (ours, theirs)]
        assert moved[0] == pytest.approx(moved[1], rel=0.02), part


def test_a_plan_of_a_preset_needs_no_torch(tmp_path):
    script = """
import sys
from orchestrator.cli import entry
try:
    entry()
except SystemExit as ended:
    assert not ended.code, ended
sys.exit("torch" in sys.modules)
"""
    command = [sys.executable, "-c", script, "plan", "paper", "--root", str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "972 trials" in done.stdout


if __name__ == "__main__":
    write()

"""Test that the shipped costs are those of a new count.

``python -m tests.unit.orchestrator.planning.test_preset_costs`` writes the table of costs again.
"""

import json
import subprocess
import sys
from functools import cache

import pytest

from orchestrator.planning.costs import count_costs as counting
from orchestrator.planning.costs import networks as costs_of_networks
from orchestrator.planning.costs.count_costs import count_costs
from orchestrator.planning.costs.networks import (
    PRESET_COSTS,
    cost_key,
    cost_recipe,
    network_cost,
    plain_cost,
)
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.models import model_spec
from search_spaces.recipes import recipe_spec

PRESETS = ("demo", "interventions", "paper", "smoke")


@cache
def networks():
    """Return model, recipe and sizes of every network of the presets, by the key of its cost."""
    by_key = {}
    for preset in PRESETS:
        for trial in plan_sweep(load_sweep(preset)).trials:
            network = trial.network
            prepared = network.subset.prepared
            recipe = cost_recipe(network.recipe)
            sizes = (prepared.channels, prepared.image_size, 2)
            key = cost_key(network.model, recipe, *sizes)
            by_key.setdefault(key, (network.model, recipe, sizes))
    return by_key


def write():
    """Write the table with one line for each network and pass."""
    lines = []
    by_name = sorted(networks().items(), key=lambda item: (item[1][0].name, item[0]))
    for key, (model, recipe, sizes) in by_name:
        print(
            f"{model.name}, batch {recipe.batch_size}, {recipe.precision}, {sizes}", file=sys.stderr
        )
        plain = plain_cost(count_costs(model, recipe, *sizes))
        fields = ",\n  ".join(
            f"{json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items()
        )
        lines.append(f' "{key}": {{\n  {fields}\n }}')
    PRESET_COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def test_the_table_has_every_network_of_the_presets_and_no_other():
    assert set(json.loads(PRESET_COSTS.read_text())) == set(networks())


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(
            key,
            id=f"{model.name}-{sizes[1]}px",
            marks=[pytest.mark.long] if sizes[1] > 32 or model.name == "resnet_tiny" else [],
        )
        for key, (model, _, sizes) in networks().items()
    ],
)
def test_shipped_costs_are_those_of_a_new_count(key):
    """Another version of PyTorch may have other kernels, but their sums must agree."""
    model, recipe, sizes = networks()[key]
    shipped = network_cost(model, recipe, channels=sizes[0], image_size=sizes[1])
    counted = count_costs(model, recipe, *sizes)
    for name in ("num_parameters", "state_bytes", "evaluation_batch", "attack_batch", "uncounted"):
        assert getattr(shipped, name) == getattr(counted, name)
    assert shipped.forward_flops == pytest.approx(counted.forward_flops, rel=0.02)
    for part in ("step", "evaluation", "attack"):
        shipped_pass = getattr(shipped, part)
        counted_pass = getattr(counted, part)
        for name in ("flops", "num_launches", "peak_bytes", "workspace_bytes"):
            expected = pytest.approx(getattr(counted_pass, name), rel=0.02)
            assert getattr(shipped_pass, name) == expected, (part, name)
        num_bytes = sum(kernel.num_bytes for kernel in shipped_pass.kernels)
        expected_bytes = sum(kernel.num_bytes for kernel in counted_pass.kernels)
        assert num_bytes == pytest.approx(expected_bytes, rel=0.02), part


def test_a_network_is_counted_once_and_again_if_its_stored_cost_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts = []

    def record_count(*arguments):
        counts.append(arguments)
        return count_costs(*arguments)

    monkeypatch.setattr(counting, "count_costs", record_count)

    def cost():
        network_cost.cache_clear()
        recipe = recipe_spec("smoke", "small_mlp", "manifold_d4")
        return plain_cost(network_cost(model_spec("small_mlp"), recipe, channels=1, image_size=20))

    first = cost()
    assert (cost(), len(counts)) == (first, 1)
    (file,) = tmp_path.rglob("*.json")
    for text in ("{}", "[]", "", '{"step": 1, "evaluation": 1, "attack": 1}'):
        file.write_text(text, encoding="utf-8")
        assert cost() == first
    assert len(counts) == 5
    monkeypatch.setattr(costs_of_networks, "_code_version", lambda: "another torch")
    assert (cost(), len(counts)) == (first, 6)


@pytest.mark.long
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

"""What is said of trials and the nodes that they would run on."""

import pytest
import ray

from orchestrator.running.cluster import Resources
from orchestrator.running.waiting import bound_by_cpus


def node(cpus, cards, *, alive=True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus), **({"GPU": float(cards)} if cards else {})}}


@pytest.mark.parametrize(
    ("nodes", "resources", "said"),
    [
        ([node(128, 8)], Resources(4, 0.25), ""),
        ([node(16, 8)], Resources(4, 0.25), "4 at once by resources.num_cpus 4, 32 by the cards; 128 CPUs"),
        # CPUs of a node without cards fill none of another's.
        ([node(256, 0), node(8, 1)], Resources(4, 0.25), "2 at once by resources.num_cpus 4, 4 by the cards"),
        ([node(8, 1), node(256, 8, alive=False)], Resources(2, 0.25), ""),
        ([node(2, 0)], Resources(4, 0), ""),
        ([node(4, 4)], Resources(1, 2), ""),
    ],
)
def test_cards_that_stay_empty_for_want_of_cpus_are_told_node_by_node(monkeypatch, nodes, resources, said):
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    found = bound_by_cpus(resources)
    assert (said in found) if said else not found

"""What a trial asks for, at first and after it ran out of memory."""

import logging

import pytest

from orchestrator.planning.gpus import CARDS
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import Expectation, need_of
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.running.cluster import Resources
from orchestrator.running.requests import Requests, card_of

SWEEP = """
name: mine
models: [small_cnn, small_mlp]
datasets: [manifold_d4]
train_sizes: [20]
test_size: 20
image_size: 16
recipe: smoke
"""


@pytest.fixture(scope="module")
def cells():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml")).trials


def test_shares_are_predicted_per_trial_where_the_card_is_known(cells):
    requests = Requests(Resources(1, 0.25), Expectation(CARDS["a100"]))
    for cell in cells:
        assert requests.of(cell).resources.num_gpus == need_of(cell, CARDS["a100"]).share
    assert Requests(Resources(1, 0.25)).of(cells[0]).resources.num_gpus == 0.25
    assert Requests(Resources(1, 0), Expectation(CARDS["a100"])).of(cells[0]).resources.num_gpus == 0


def test_the_usual_share_is_the_mean_of_those_asked_for(cells):
    requests = Requests(Resources(1, 0.25), Expectation(CARDS["a100"]))
    shares = [requests.of(cell).resources.num_gpus for cell in cells]
    assert requests.usual(cells) == Resources(1, sum(shares) / len(shares))
    assert Requests(Resources(2, 0)).usual(cells) == Resources(2, 0)


def test_out_of_memory_doubles_the_share_then_halves_the_parts(cells):
    requests, cell = Requests(Resources(1, 0.3, 100)), cells[0]
    found = []
    for _ in range(6):
        request = requests.of(cell)
        found.append((request.resources.num_gpus, request.resources.memory_bytes, request.micro_batch))
        requests.out_of_memory[cell.trial_id] += 1
    assert cell.network.recipe.batch_size == 16
    assert found == [
        (0.3, 100, None),
        (0.6, 200, None),
        (0.6, 200, 8),
        (0.6, 200, 4),
        (0.6, 200, 2),
        (0.6, 200, 2),
    ]


@pytest.mark.parametrize(("there", "asked"), [(150, 150), (1000, 200), (90, 100)])
def test_no_trial_asks_again_for_more_memory_than_a_node_has(cells, there, asked):
    requests = Requests(Resources(1, 0, 100), node_memory_bytes=lambda: there)
    requests.out_of_memory[cells[0].trial_id] = 1
    assert requests.of(cells[0]).resources.memory_bytes == asked


def test_whole_cards_are_not_doubled(cells):
    requests = Requests(Resources(1, 2))
    requests.out_of_memory[cells[0].trial_id] = 1
    assert requests.of(cells[0]).resources.num_gpus == 2


def test_on_a_whole_card_the_parts_are_halved_at_once(cells):
    requests = Requests(Resources(1, 1.0))
    requests.out_of_memory[cells[0].trial_id] = 1
    found = requests.of(cells[0])
    assert (found.resources.num_gpus, found.micro_batch) == (1.0, 8)


@pytest.mark.parametrize(
    ("names", "card"),
    [(["H100"], "h100"), (["A100"], "a100-40"), (["A100-80G", "H200"], "a100"), ([], None)],
)
def test_rays_names_of_cards(names, card):
    found = card_of(names)
    assert (found.name if found else None) == card


def test_an_unknown_card_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert card_of(["B9000"]) is None
    assert "B9000" in caplog.text

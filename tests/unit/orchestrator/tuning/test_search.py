"""The course of a search: own recipes first, within the budget, resumed without repeating."""

import json
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from optuna.trial import TrialState

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.trial_order import array_key
from orchestrator.results.store import ResultStore
from orchestrator.tuning.combinations import Point, combinations_to_tune
from orchestrator.tuning.outcome import outcomes
from orchestrator.tuning.search import CombinationStudy, Search
from orchestrator.tuning.search_records import Role, SearchRecord
from orchestrator.tuning.search_trials import MAX_WAITING
from search_spaces.errors import ConfigError
from search_spaces.fingerprint import fingerprint
from search_spaces.tuning import TuneSpec
from tests.unit.orchestrator.tuning.examples import (
    BEST_RATE,
    DIVERGED,
    cells,
    drive,
    loss_of,
    result,
    run_through,
    sweep,
)


def search(**said) -> Search:
    return Search(cells(), TuneSpec(**{"budget": 0.2, "seeds": 3, **said}))


def of(changed) -> Search:
    return Search(combinations_to_tune(plan_sweep(changed)), changed.tune)


def test_the_course_of_a_search():
    one = search()
    ran = run_through(one)
    assert one.is_done
    assert one.next_trial() is None
    roles = [asked.role for asked, _ in ran]
    assert roles[: len(one.searches)] == [Role.OWN] * len(one.searches)
    assert roles.index(Role.FINALIST) > max(
        i for i, role in enumerate(roles) if role == Role.SAMPLED
    )
    ids = [asked.spec.trial_id for asked, _ in ran]
    assert len(set(ids)) == len(ids)
    for cell in one.searches.values():
        assert cell.spent == 5
        assert len(cell.study.trials) == sum(run == 0 for _, run in cell.results)


def test_how_much_is_left_is_known_at_most_and_falls_to_nothing():
    one = search()
    most = one.num_left
    assert most == len(one.searches) * (5 + 4 * 2)
    left = [most]
    while (asked := one.next_trial()) is not None:
        assert one.num_left <= left[-1]  # it runs now: still to come
        one.add_result(asked.spec.trial_id, result([0.5] * 9))
        left.append(one.num_left)
    assert all(later < earlier for earlier, later in pairwise(left))
    assert (left[-1], one.is_done) == (0, True)


def test_the_chosen_rate_is_near_the_best():
    one = search(budget=0.4)
    run_through(one)
    for outcome in outcomes(one):
        assert BEST_RATE / 3 < outcome.chosen.point.learning_rate < BEST_RATE * 3
        assert len(outcome.chosen.losses) == 2  # what made it a finalist does not speak for it
        assert 0 < outcome.spent <= outcome.budget == 10
        assert outcome.finalist_trainings == 2 * len(outcome.finalists)


@pytest.mark.parametrize(
    ("sampler", "workers"),
    [
        ("tpe", 2),
        ("random", 1),
        pytest.param("tpe", 1, marks=pytest.mark.long),
        pytest.param("random", 2, marks=pytest.mark.long),
    ],
)
def test_a_killed_search_asks_for_what_an_unbroken_one_does(workers, sampler):
    """Whenever it is killed: the same trainings in the same order, when results come in the same
    order."""
    said = {"sampler": sampler, "finalists": 1, "seeds": 2, "budget": 0.32}
    whole = search(**said)
    unbroken = drive(whole, [], workers=workers)
    assert all(found for _, found in unbroken)
    for most in range(0, len(unbroken), 5):
        killed = drive(search(**said), [], workers=workers, most=most)
        assert sum(found is None for _, found in killed) in range(1, workers + MAX_WAITING + 1)
        again = search(**said)
        assert drive(again, killed, workers=workers) == unbroken
        assert outcomes(again) == outcomes(whole)


@pytest.mark.parametrize("seed", range(3))
def test_with_results_in_any_order_nothing_that_was_asked_for_is_lost_or_repeated(seed):
    """Later points follow from the order of results and may differ; those asked for before are
    trained."""
    chance = random.Random(seed)
    killed = drive(search(), [], workers=3, most=9, ends=chance.choice)
    assert sum(found is None for _, found in killed) > 3
    last = search()
    ended = drive(last, killed, workers=3, ends=chance.choice)
    assert [one for one, _ in ended[: len(killed)]] == [one for one, _ in killed]
    assert all(found for _, found in ended)
    assert len({one.trial_id for one, _ in ended}) == len(ended)
    for cell in last.searches.values():
        assert 4 < cell.spent <= 5
        told = [Point(**trial.params) for trial in cell.study.trials]
        assert told == [
            one.point for one, _ in ended if one.key == cell.combination.key and one.run == 0
        ]


def test_what_was_asked_for_is_left_out_where_there_is_no_room_or_use_for_it():
    killed = drive(search(), [], workers=3, most=9)
    sampled = [one for one, found in killed if found is None and one.role == Role.SAMPLED]
    for other in (search(budget=0.04), of(sweep(tune={"learning_rate": [0.5, 0.9]}))):
        other.resume(killed)
        running = {
            (a.combination.key, a.point)
            for one in other.searches.values()
            for a in one.running.values()
        }
        assert sampled
        assert not running & {(one.key, one.point) for one in sampled}
        for cell in other.searches.values():
            assert {trial.state.name for trial in cell.study.trials} <= {"COMPLETE"}


def test_a_larger_budget_extends_a_finished_search():
    first = search()
    before = run_through(first)
    larger = search(budget=0.4)
    larger.resume(before)
    assert not larger.is_done
    after = run_through(larger)
    assert not {asked.spec.trial_id for asked, _ in before} & {
        asked.spec.trial_id for asked, _ in after
    }
    assert all(9 < cell.spent <= 10 for cell in larger.searches.values())


def test_another_seed_proposes_other_points_and_what_is_stored_counts_on():
    first, second = search(), search(seed=1, budget=0.4)
    before = run_through(first)
    second.resume(before)
    ids = {asked.spec.trial_id for asked, _ in before}
    assert not ids & {asked.spec.trial_id for asked, _ in run_through(second)}
    again, other = run_through(search()), run_through(search(seed=1))
    assert [asked.point for asked, _ in again] == [asked.point for asked, _ in before]
    sampled = [
        {asked.point for asked, _ in ran if asked.role == Role.SAMPLED} for ran in (before, other)
    ]
    assert not sampled[0] & sampled[1]


FOUND, LOST = result([0.5] * 9), result([], **DIVERGED)


@pytest.mark.parametrize(
    ("gives", "number", "said"),
    [
        (
            lambda asked: LOST,
            (6, 0),
            "({0} tried, {0} diverged, 0 failed), so there is no recipe. Lower",
        ),
        (
            lambda asked: None,
            (0, 5),
            "no training finished (0 tried, 0 diverged, 5 failed)",
        ),
        (
            lambda asked: None if asked.run else FOUND,
            None,
            "further trainings of every finalist failed",
        ),
        (
            lambda asked: (
                None if asked.run and asked.point == asked.combination.sweep_point else FOUND
            ),
            None,
            "trainings with the sweep's recipe failed, so the gain over this recipe is unknown",
        ),
    ],
    ids=["all diverge", "all fail", "finalists fail", "the own recipe fails"],
)
def test_a_search_without_a_recipe_or_a_gain_ends_and_says_why(gives, number, said):
    one = search()
    while (asked := one.next_trial()) is not None:
        one.add_result(asked.spec.trial_id, gives(asked))
    assert one.is_done
    for outcome in outcomes(one):
        assert said.format(outcome.num_trials) in outcome.problem
        assert (outcome.chosen is None) == ("gain" not in said)
        if number is not None:
            assert (outcome.num_trials >= number[0], outcome.num_failed) == (True, number[1])
            assert outcome.divergence_rate == (number[1] == 0)


def test_a_space_without_new_points_ends_the_search():
    said = {
        "learning_rate": [1e-3, 1.0001e-3],
        "weight_decay": [1e-4, 1.0001e-4],
        "batch_size": [16],
    }
    one = of(sweep(tune=said))
    ran = run_through(one)
    assert len(ran) < 100
    assert one.is_done
    # Told once each, however often the sampler came to it; and over at the next start, before it is
    # asked.
    for cell in one.searches.values():
        points = [Point(**trial.params) for trial in cell.study.trials]
        assert len(points) == len(set(points))
        assert cell.exhausted
    again = of(sweep(tune=said))
    again.resume(ran)
    assert again.is_done
    told = [[len(cell.study.trials) for cell in each.searches.values()] for each in (one, again)]
    assert told[0] == told[1]


def test_a_recipe_outside_the_space_is_compared_and_not_told():
    one = of(sweep(tune={"learning_rate": [1e-2, 1e-1]}))
    run_through(one)
    for cell, outcome in zip(one.searches.values(), outcomes(one), strict=True):
        assert outcome.sweep_recipe is not None
        assert outcome.sweep_recipe.point == cell.combination.sweep_point
        assert not cell.combination.contains(cell.combination.sweep_point)
        assert len(cell.study.trials) == outcome.num_trials - 1


def test_a_point_makes_the_recipe_that_a_sweep_makes_of_it():
    """A search's network is the sweep's, but for the split: same recipe by name and content."""
    cell = cells()[0]
    point = Point(learning_rate=2e-3, weight_decay=1e-5, batch_size=8)
    recipe = cell.trial(point).network.recipe
    row = {"models": [cell.key[0]], "datasets": [cell.dataset], **point.model_dump()}
    plan = plan_sweep(sweep(recipe={"from": "smoke", "epochs": 9, "overrides": [row]}))
    networks = [trial.network for trial in plan.trials]
    ours = [one for one in networks if (one.model.name, one.subset.prepared.dataset) == cell.key]
    assert {network.recipe for network in ours} == {recipe}


def test_every_run_of_a_finalist_is_judged_on_another_split_and_the_search_on_the_first():
    """A choice by one split would be a choice for it; ids of the search's own trials stay what they
    were."""
    cell = cells()[0]
    trials = [cell.trial(cell.sweep_point, run) for run in range(4)]
    assert [trial.validation.split for trial in trials] == [0, 1, 2, 3]
    assert [trial.network.seed for trial in trials] == [0, 1, 2, 3]
    plan = plan_sweep(sweep())
    assert len({array_key(plan, trial) for trial in trials}) == 4
    assert len({trial.trial_id for trial in trials}) == 4
    first = trials[0].model_dump(mode="json", exclude_defaults=True)
    assert "split" not in first["validation"]


def test_batches_are_held_to_the_smallest_set_that_is_trained_on():
    """Whole groups leave fewer images than the share says, and class pairs not the same number."""
    plan = plan_sweep(
        sweep(models=["small_mlp"], datasets=[{"name": "digits", "class_pairs": [[0, 1], [0, 2]]}])
    )
    (cell,) = combinations_to_tune(plan)
    num_train = dict(zip((subset.subset_id for subset in cell.subsets), (40, 17), strict=True))
    (held,) = combinations_to_tune(plan, num_train)
    assert held.space.batch_size == (8, 16) != cell.space.batch_size
    assert held.space.learning_rate == cell.space.learning_rate
    assert held.trial(held.sweep_point) == cell.trial(cell.sweep_point)
    with pytest.raises(
        ConfigError,
        match=r"tune.batch_size contains 8, but a trial of the search has only 5 training",
    ):
        combinations_to_tune(plan, dict.fromkeys(num_train, 5))
    named = replace(plan, sweep=sweep(models=["small_mlp"], tune={"batch_size": [8, 32]}))
    with pytest.raises(
        ConfigError,
        match=r"tune\.batch_size contains 32, but a trial of the search has only 17 training",
    ):
        combinations_to_tune(named, num_train)


@pytest.mark.parametrize(
    ("place", "value"),
    [(("run",), -1), (("run",), 2**63), (("result", "epochs"), -1), (("role",), "chosen")],
)
def test_a_record_sealed_anew_with_what_no_search_has_is_not_believed(tmp_path, place, value):
    """A run that is no seed would end every start; epochs below none, a budget that is never
    spent."""
    cell, store = cells()[0], ResultStore(str(tmp_path))
    trial = cell.trial(cell.sweep_point)
    about = {
        "trial_id": trial.trial_id,
        "sweep": "smoke",
        "domain": "natural",
        "data_fingerprint": "abc",
    }
    made = {"spec": trial, "started_at": 1.0, "finished_at": 2.0, "result": FOUND}
    record = SearchRecord(**about, **made, role=Role.OWN, run=0)
    store.save(record)
    assert store.scan(SearchRecord).records == {trial.trial_id: record}
    path = tmp_path / "trials" / trial.trial_id / "search.json"
    sealed = json.loads(path.read_text(encoding="utf-8"))
    part = sealed["record"]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(
        json.dumps(sealed | {"sha256": fingerprint(sealed["record"])}), encoding="utf-8"
    )
    scan = store.scan(SearchRecord)
    assert scan.records == {}
    assert ".".join(place) in scan.unreadable[0].reason


# What Optuna is told: every trial once, always a number, stopped ones as stopped; no ghosts after a
# kill. The last ones are what was seen go wrong with Ray 2.60's OptunaSearch; see the decision in
# docs.

GIVEN = Point(learning_rate=1e-3, weight_decay=1e-4, batch_size=16)


def made(sampler="tpe") -> CombinationStudy:
    return CombinationStudy(cells()[0], sampler)


def complete(point: Point) -> list[float]:
    return [loss_of(point, epoch) for epoch in range(1, 10)]


def test_points_lie_in_the_space_and_are_rounded_as_people_copy_them():
    study, cell = made(), cells()[0]
    for _ in range(30):
        point = study.propose()
        assert cell.contains(point)
        assert float(f"{point.learning_rate:.4g}") == point.learning_rate
        study.tell(study.ask(point), result(complete(point)))
    study.tell(study.ask(study.propose()), result([], **DIVERGED))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert study.trials[-1].value == pytest.approx(2 * math.log(2))  # diverged: a finite penalty


def test_told_again_after_a_kill_every_trial_is_there_once_and_none_runs():
    study = made()
    told = []
    for found in (result([0.5] * 9), result([0.6] * 9), result([], **DIVERGED)):
        point = study.propose()
        study.tell(study.ask(point), found)
        told.append((point, found))
    study.ask(study.propose())
    study.ask(GIVEN)  # both run when the driver is killed
    again = made()
    for point, found in told:
        again.add(point, found)
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE] * 3
    rates = [trial.params["learning_rate"] for trial in again.trials]
    assert rates == [point.learning_rate for point, _ in told]
    before = {point for point, _ in told}
    for _ in range(5):
        point = again.propose()
        assert point not in before  # nothing is queued again, no random number comes again
        before.add(point)
        again.tell(again.ask(point), result(complete(point)))


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.long), "random"])
def test_a_study_made_anew_proposes_what_the_old_one_would_have(sampler):
    """Also while points run, and when they were told in another order than they were asked for."""
    study, found = made(sampler), {}
    for number in range(8):
        point = study.propose()
        ticket = study.ask(point)
        found[point] = result(complete(point)) if number % 3 else result([], **DIVERGED)
        if number == 1:
            late = (ticket, found[point])
        elif number < 7:
            study.tell(ticket, found[point])
    study.tell(*late)
    proposed = [study.propose(again) for again in range(3)]
    again = made(sampler)
    for number, (point, one) in enumerate(found.items()):
        if number < 7:
            again.add(point, one)
        else:
            again.ask(point)
    assert [again.propose(number) for number in range(3)] == proposed
    assert len(set(proposed)) == 3  # and again says another one

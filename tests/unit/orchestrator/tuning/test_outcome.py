"""Test the outcome of a search: means and errors, the report, and the recipe it writes."""

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.tuning.combinations import Point, Training, combinations_to_tune
from orchestrator.tuning.outcome import TuneSummary, outcome_rows, outcomes
from orchestrator.tuning.recipe import write_recipe
from orchestrator.tuning.search import Search
from orchestrator.tuning.search_report import (
    BRIEF,
    gain_sentence,
    outcome_table,
    trial_table,
    write_report,
)
from search_spaces.errors import SetupError
from tests.unit.orchestrator.tuning.examples import (
    DIVERGED,
    run_search,
    search_result,
    smoke_sweep,
)


@pytest.fixture(scope="module")
def sweep():
    return smoke_sweep(tune={"budget": 0.4, "seeds": 4})


@pytest.fixture(scope="module")
def search(sweep):
    """Return a finished search whose losses have noise, so that standard errors are not 0."""
    search = Search(combinations_to_tune(plan_sweep(sweep)), sweep.tune)
    rng = np.random.default_rng(0)
    for request, exact in run_search(search):
        study = search.searches[request.combination.key]
        losses = [score.loss + rng.uniform(0, 0.01) for score in exact.curve]
        study.results[request.training] = search_result(losses, str(exact.status))
    # Noise may have made other points finalists.
    request = search.next_trial()
    while request is not None:
        losses = [rng.uniform(0.3, 0.5)] * 9
        search.add_result(request.spec.trial_id, search_result(losses))
        request = search.next_trial()
    return search


def recipes_in_plan(sweep):
    """Return the recipe of each (model, dataset)."""
    networks = [trial.network for trial in plan_sweep(sweep).trials]
    return {
        (network.model.name, network.subset.prepared.dataset): network.recipe
        for network in networks
    }


def test_means_errors_and_gains_are_those_of_the_runs(search):
    for study, outcome in zip(search.searches.values(), outcomes(search), strict=True):
        losses = {
            point: np.array([study.results[Training(point, run)].loss for run in range(1, 4)])
            for point in (outcome.chosen.point, outcome.sweep_recipe.point)
        }
        chosen = losses[outcome.chosen.point]
        gains = losses[outcome.sweep_recipe.point] - chosen
        assert outcome.chosen.mean == pytest.approx(chosen.mean())
        assert outcome.chosen.std_error == pytest.approx(chosen.std(ddof=1) / np.sqrt(3))
        assert outcome.gain == pytest.approx(gains.mean())
        assert outcome.gain_std_error == pytest.approx(gains.std(ddof=1) / np.sqrt(3))
        assert outcome.chosen.mean == min(finalist.mean for finalist in outcome.finalists)
        best = {point for point, _ in study.complete()[:3]}
        finalists = {finalist.point for finalist in outcome.finalists}
        assert {*best, study.combination.sweep_point} <= finalists


@pytest.fixture
def first_study(search):
    """Return the study of the first combination, and restore its results after the test."""
    study = next(iter(search.searches.values()))
    before = dict(study.results)
    yield study
    study.results = before


@pytest.mark.parametrize(
    ("gains", "is_replaced"),
    [
        ((0.03, 0.01, 0.02), True),
        ((0.05, -0.04, 0.02), False),
        ((0,) * 3, False),
        ((0.01, 0, 0), False),
    ],
)
def test_the_recipe_of_the_sweep_is_replaced_if_the_gain_exceeds_one_standard_error(
    search, first_study, gains, is_replaced
):
    """The standard error is that of the differences run by run.

    A run that is hard for both recipes does not count.
    """
    sweep_point = first_study.combination.sweep_point
    outcome = outcomes(search)[0]
    points = [finalist.point for finalist in outcome.finalists]
    rival = next(point for point in points if point != outcome.sweep_recipe.point)
    results = {}
    for point in points:
        results |= {Training(point, run): search_result([0.6] * 9) for run in range(1, 4)}
    losses_of_sweep = (0.9, 0.1, 0.2, 0.3)
    for run, loss in enumerate(losses_of_sweep):
        results[Training(sweep_point, run)] = search_result([loss] * 9)
    for run, gain in enumerate(gains, 1):
        results[Training(rival, run)] = search_result([losses_of_sweep[run] - gain] * 9)
    first_study.results |= results
    outcome = outcomes(search)[0]
    assert outcome.chosen.point == (rival if is_replaced else sweep_point)
    assert outcome.keeps_sweep_recipe == (not is_replaced)


def test_a_finalist_of_an_earlier_start_stays_chosen_if_later_finalists_are_worse(search):
    """A larger budget adds points that are best in their first training and bad later."""
    index, outcome = next(
        (index, outcome)
        for index, outcome in enumerate(outcomes(search))
        if not outcome.keeps_sweep_recipe
    )
    study = list(search.searches.values())[index]
    before = dict(study.results)
    for rate in (1.1e-3, 1.2e-3, 1.3e-3):
        point = outcome.chosen.point.model_copy(update={"learning_rate": rate})
        study.results[Training(point, 0)] = search_result([0.001] * 9)
        for run in range(1, 4):
            study.results[Training(point, run)] = search_result([0.9] * 9)
    extended_outcome = outcomes(search)[index]
    study.results = before
    assert extended_outcome.chosen == outcome.chosen


def test_a_kept_recipe_has_a_gain_of_zero_without_a_standard_error(search, first_study):
    for run in range(4):
        first_study.results[Training(first_study.combination.sweep_point, run)] = search_result(
            [0.001] * 9
        )
    outcome = outcomes(search)[0]
    assert outcome.keeps_sweep_recipe
    assert (outcome.gain, outcome.gain_std_error) == (0, None)
    assert outcome_table([outcome], BRIEF).rows[0][-1] == "sweep's recipe kept"
    for outcome in outcomes(search):
        if outcome.chosen.point != outcome.sweep_recipe.point:
            assert not outcome.keeps_sweep_recipe


def test_the_written_recipe_is_read_back_with_the_chosen_values(search, sweep, tmp_path):
    path = tmp_path / "recipes" / "tuned-smoke.yaml"
    all_outcomes = outcomes(search)
    path.parent.write_text("", encoding="utf-8")
    with pytest.raises(SetupError, match=r"cannot be written: File exists\..* trials are kept"):
        write_recipe(path, sweep, all_outcomes, {})
    path.parent.unlink()
    write_recipe(path, sweep, all_outcomes, {"manifold_d4": "abc"})
    recipes = recipes_in_plan(load_sweep("smoke", {"recipe": str(path)}))
    for outcome in all_outcomes:
        recipe = recipes[outcome.model, outcome.dataset]
        assert (Point.of(recipe), recipe.epochs) == (outcome.chosen.point, 9)
    evidence = yaml.safe_load(path.read_text(encoding="utf-8"))["tuned"]
    assert evidence["settings"]["budget"] == 0.4
    assert evidence["train_size"] == max(sweep.train_sizes)
    assert evidence["made_by"]["data"] == {"manifold_d4": "abc"}
    for entry, outcome in zip(evidence["cells"], all_outcomes, strict=True):
        assert entry["validation_loss"] == pytest.approx(outcome.chosen.mean, rel=1e-3)
        assert entry["gain_std_error"] == pytest.approx(outcome.gain_std_error, rel=1e-3)
        assert (entry["num_trials"], entry["budget"]) == (outcome.num_trials, 10)


def test_a_combination_without_a_recipe_is_named_in_the_file_and_gives_exit_code_1(
    search, sweep, tmp_path
):
    path = tmp_path / "tuned.yaml"
    all_outcomes = list(outcomes(search))
    assert TuneSummary(tuple(all_outcomes), path, None, 0).exit_code == 0
    all_outcomes[0] = all_outcomes[0].model_copy(update={"chosen": None})
    summary = TuneSummary(tuple(all_outcomes), path, None, 0)
    assert summary.exit_code == 1
    write_recipe(path, sweep, all_outcomes, {})
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(document["overrides"]) == len(all_outcomes) - 1
    assert document["tuned"]["cells"][0]["not_tuned"] == "diverged or failed"


def test_a_recipe_near_chance_level_is_reported_as_a_problem(search, tmp_path):
    all_outcomes = list(outcomes(search))
    assert TuneSummary(tuple(all_outcomes), tmp_path, None, 0).problems == ()
    chosen = all_outcomes[0].chosen.model_copy(update={"mean": 0.692})
    all_outcomes[0] = all_outcomes[0].model_copy(update={"chosen": chosen})
    summary = TuneSummary(tuple(all_outcomes), tmp_path, None, 0)
    (problem,) = summary.problems
    combination = f"{all_outcomes[0].model} on {all_outcomes[0].dataset}"
    assert problem.startswith(f"{combination}: the validation loss of the best recipe (")
    assert "(0.692) is hardly below the chance loss (0.693). Widen `tune.learning_rate`" in problem
    assert summary.exit_code == 0


def test_tables_have_a_row_for_each_combination_and_mark_unknown_values(search):
    all_outcomes = list(outcomes(search))
    unknown = dict.fromkeys(("chosen", "sweep_recipe", "gain", "gain_std_error"))
    all_outcomes[1] = all_outcomes[1].model_copy(update=unknown)
    table = outcome_table(all_outcomes)
    brief = outcome_table(all_outcomes, BRIEF)
    rows = outcome_rows(all_outcomes)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert {len(row) for row in brief.rows} == {len(brief.header)} == {7}
    assert brief.header[-1] == "gain"
    assert table.rows[1][2:8] == ("none", "", "", "–", "–", "–")
    assert rows[1]["learning_rate"] is rows[1]["validation_loss"] is None
    assert rows[0]["learning_rate"] == all_outcomes[0].chosen.point.learning_rate


@pytest.fixture(scope="module")
def page(search, sweep, tmp_path_factory):
    workspace = Workspace.open(sweep, str(tmp_path_factory.mktemp("root")))
    return write_report(workspace, search, outcomes(search))


def test_the_page_has_every_combination_its_figure_and_loads_nothing_from_outside(page, search):
    text = page.read_text(encoding="utf-8")
    for model, dataset in search.searches:
        assert re.search(rf"<td>{model}</td><td>{dataset}</td>", text)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    (image,) = images
    assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
    assert "No test image was used." in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "isweep run smoke --set name=smoke-tuned --set recipe=tuned-smoke" in text
    assert "isweep compare smoke smoke-tuned" in text
    table = pd.read_csv(page.parent / "trials.csv")
    tried = sum(run == 0 for state in search.searches.values() for _, run in state.results)
    assert len(table) == tried
    columns = ["model", "dataset", "learning_rate", "weight_decay", "batch_size"]
    assert not table.duplicated(columns).any()
    assert set(table["status"]) <= {"complete", "diverged"}


def test_the_gain_is_the_mean_over_datasets_with_its_interval(search):
    all_outcomes = outcomes(search)
    gains = pd.DataFrame([(outcome.dataset, outcome.gain) for outcome in all_outcomes])
    mean_by_dataset = gains.groupby(0)[1].mean()
    sentence = gain_sentence(all_outcomes)
    printed = re.search(r"validation loss is (\S+) nat lower", sentence)[1]
    assert float(printed.replace("−", "-")) == pytest.approx(mean_by_dataset.mean(), rel=0.01)
    assert "95 % interval" in sentence
    without_gain = [outcome.model_copy(update={"gain": None}) for outcome in all_outcomes]
    assert gain_sentence(without_gain).startswith("No combination has both")


@pytest.mark.long
def test_a_search_without_trials_has_no_page_and_one_that_diverged_has_a_page_with_counts(
    tmp_path,
):
    sweep = smoke_sweep(tune={"budget": 0.1, "seeds": 2})
    search = Search(combinations_to_tune(plan_sweep(sweep)), sweep.tune)
    workspace = Workspace.open(sweep, str(tmp_path))
    assert write_report(workspace, search, outcomes(search)) is None
    request = search.next_trial()
    while request is not None:
        search.add_result(request.spec.trial_id, search_result([], **DIVERGED))
        request = search.next_trial()
    page = write_report(workspace, search, outcomes(search))
    text = page.read_text(encoding="utf-8")
    for outcome in outcomes(search):
        number = outcome.num_trials
        assert f"no training finished ({number} tried, {number} diverged, 0 failed)" in text
    table = trial_table(list(search.searches.values()))
    np.testing.assert_allclose(table["shown"], 2 * np.log(2))

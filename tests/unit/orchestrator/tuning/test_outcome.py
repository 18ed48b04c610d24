"""What is said of a search: means and errors by their formulas, a line per cell, a recipe that
reads back."""

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
from orchestrator.tuning.combinations import Point, combinations_to_tune
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
from tests.unit.orchestrator.tuning.examples import DIVERGED, result, run_through, sweep


@pytest.fixture(scope="module")
def changed():
    return sweep(tune={"budget": 0.4, "seeds": 4})


@pytest.fixture(scope="module")
def search(changed):
    one = Search(combinations_to_tune(plan_sweep(changed)), changed.tune)
    # Noise by run that is not the same for all points, so that errors are not 0.
    ran = run_through(one)
    rng = np.random.default_rng(0)
    for asked, found in ran:
        state = one.searches[asked.combination.key]
        noisy = [score.loss + rng.uniform(0, 0.01) for score in found.curve]
        state.results[asked.point, asked.run] = result(noisy, str(found.status))
    while (asked := one.next_trial()) is not None:  # noise may have made other points finalists
        one.add_result(asked.spec.trial_id, result([rng.uniform(0.3, 0.5)] * 9))
    return one


def test_means_errors_and_gains_are_those_of_the_runs(search):
    for state, outcome in zip(search.searches.values(), outcomes(search), strict=True):
        losses = {
            point: np.array([state.results[point, run].loss for run in range(1, 4)])
            for point in (outcome.chosen.point, outcome.sweep_recipe.point)
        }
        chosen, own = losses[outcome.chosen.point], losses[outcome.sweep_recipe.point]
        assert outcome.chosen.mean == pytest.approx(chosen.mean())
        assert outcome.chosen.std_error == pytest.approx(chosen.std(ddof=1) / np.sqrt(3))
        assert outcome.gain == pytest.approx((own - chosen).mean())
        assert outcome.gain_std_error == pytest.approx((own - chosen).std(ddof=1) / np.sqrt(3))
        assert outcome.chosen.mean == min(finalist.mean for finalist in outcome.finalists)
        best = {point for point, _ in state.complete()[:3]}
        assert {*best, state.combination.sweep_point} <= {
            finalist.point for finalist in outcome.finalists
        }


@pytest.fixture
def state(search):
    """The first cell, whose results a test may change."""
    one = next(iter(search.searches.values()))
    before = dict(one.results)
    yield one
    one.results = before


@pytest.mark.parametrize(
    ("gains", "left"),
    [
        ((0.03, 0.01, 0.02), True),
        ((0.05, -0.04, 0.02), False),
        ((0,) * 3, False),
        ((0.01, 0, 0), False),
    ],
)
def test_the_own_recipe_is_left_for_what_is_better_by_more_than_one_standard_error(
    search, state, gains, left
):
    """Of the differences, run by run: a run that is hard for both says nothing."""
    outcome = outcomes(search)[0]
    rival = (
        outcome.finalists[0].point
        if outcome.finalists[0] != outcome.sweep_recipe
        else outcome.finalists[1].point
    )
    own_losses = (0.9, 0.1, 0.2, 0.3)
    for point in [candidate.point for candidate in outcome.finalists]:
        state.results |= {(point, run): result([0.6] * 9) for run in range(1, 4)}
    state.results |= {
        (state.combination.sweep_point, run): result([loss] * 9)
        for run, loss in enumerate(own_losses)
    }
    losses = [own - gain for own, gain in zip(own_losses[1:], gains, strict=True)]
    state.results |= {(rival, run): result([loss] * 9) for run, loss in enumerate(losses, 1)}
    again = outcomes(search)[0]
    assert again.chosen.point == (rival if left else state.combination.sweep_point)
    assert again.keeps_sweep_recipe == (not left)


def test_a_finalist_of_an_earlier_start_is_chosen_still_when_later_ones_are_worse(search):
    """Found with more budget: best of all in its first training, bad in the others."""
    place, outcome = next(
        (place, found)
        for place, found in enumerate(outcomes(search))
        if not found.keeps_sweep_recipe
    )
    state = list(search.searches.values())[place]
    before = dict(state.results)
    for rate in (1.1e-3, 1.2e-3, 1.3e-3):
        point = outcome.chosen.point.model_copy(update={"learning_rate": rate})
        state.results |= {(point, run): result([0.9 if run else 0.001] * 9) for run in range(4)}
    again = outcomes(search)[place]
    state.results = before
    assert again.chosen == outcome.chosen


def test_where_the_own_recipe_is_kept_no_gain_is_claimed_with_an_error_of_zero(search, state):
    state.results |= {(state.combination.sweep_point, run): result([0.001] * 9) for run in range(4)}
    outcome = outcomes(search)[0]
    assert outcome.keeps_sweep_recipe
    assert (outcome.gain, outcome.gain_std_error) == (0, None)
    assert outcome_table([outcome], BRIEF).rows[0][-1] == "sweep's recipe kept"
    assert not any(
        found.keeps_sweep_recipe
        for found in outcomes(search)
        if found.chosen.point != found.sweep_recipe.point
    )


def test_the_recipe_reads_back_as_what_was_chosen(search, changed, tmp_path):
    path, found = tmp_path / "recipes" / "tuned-smoke.yaml", outcomes(search)
    path.parent.write_text("", encoding="utf-8")
    with pytest.raises(SetupError, match=r"cannot be written: File exists\..* trials are kept"):
        write_recipe(path, changed, found, {})
    path.parent.unlink()
    write_recipe(path, changed, found, {"manifold_d4": "abc"})
    again = load_sweep("smoke", {"recipe": str(path)})
    recipes = {
        (t.network.model.name, t.network.subset.prepared.dataset): t.network.recipe
        for t in plan_sweep(again).trials
    }
    for outcome in found:
        recipe = recipes[outcome.model, outcome.dataset]
        assert (Point.of(recipe), recipe.epochs) == (outcome.chosen.point, 9)
    evidence = yaml.safe_load(path.read_text(encoding="utf-8"))["tuned"]
    assert evidence["settings"]["budget"] == 0.4
    assert evidence["train_size"] == max(changed.train_sizes)
    assert evidence["made_by"]["data"] == {"manifold_d4": "abc"}
    for cell, outcome in zip(evidence["cells"], found, strict=True):
        assert cell["validation_loss"] == pytest.approx(outcome.chosen.mean, rel=1e-3)
        assert cell["gain_std_error"] == pytest.approx(outcome.gain_std_error, rel=1e-3)
        assert (cell["num_trials"], cell["budget"]) == (outcome.num_trials, 10)


def test_a_cell_without_a_recipe_is_named_in_the_file_left_out_of_it_and_ends_with_1(
    search, changed, tmp_path
):
    path, found = tmp_path / "tuned.yaml", list(outcomes(search))
    assert TuneSummary(tuple(found), path, None, 0).exit_code == 0
    found[0] = found[0].model_copy(update={"chosen": None})
    summary = TuneSummary(tuple(found), path, None, 0)
    assert summary.exit_code == 1
    write_recipe(path, changed, found, {})
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(document["overrides"]) == len(found) - 1
    assert document["tuned"]["cells"][0]["not_tuned"] == "diverged or failed"


def test_a_recipe_that_is_hardly_better_than_guessing_is_said(search, tmp_path):
    found = list(outcomes(search))
    assert TuneSummary(tuple(found), tmp_path, None, 0).problems == ()
    found[0] = found[0].model_copy(
        update={"chosen": found[0].chosen.model_copy(update={"mean": 0.692})}
    )
    (said,) = (summary := TuneSummary(tuple(found), tmp_path, None, 0)).problems
    where = f"{found[0].model} on {found[0].dataset}"
    assert said.startswith(f"{where}: the validation loss of the best recipe, ")
    assert "0.692, is hardly below the chance loss, 0.693. Widen tune.learning_rate" in said
    assert summary.exit_code == 0


def test_tables_have_a_row_per_cell_and_say_what_they_do_not_know(search):
    found = list(outcomes(search))
    found[1] = found[1].model_copy(
        update={"chosen": None, "sweep_recipe": None, "gain": None, "gain_std_error": None}
    )
    table, brief, rows = outcome_table(found), outcome_table(found, BRIEF), outcome_rows(found)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert {len(row) for row in brief.rows} == {len(brief.header)} == {7}
    assert brief.header[-1] == "gain"
    assert table.rows[1][2:8] == ("none", "", "", "–", "–", "–")
    assert rows[1]["learning_rate"] is rows[1]["validation_loss"] is None
    assert rows[0]["learning_rate"] == found[0].chosen.point.learning_rate


@pytest.fixture(scope="module")
def page(search, changed, tmp_path_factory):
    workspace = Workspace.open(changed, str(tmp_path_factory.mktemp("root")))
    return write_report(workspace, search, outcomes(search))


def test_the_page_has_every_cell_its_figure_and_nothing_from_outside(page, search):
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
    assert not table.duplicated(
        ["model", "dataset", "learning_rate", "weight_decay", "batch_size"]
    ).any()
    assert set(table["status"]) <= {"complete", "diverged"}


def test_the_gain_is_the_mean_over_datasets_with_its_interval(search):
    found = outcomes(search)
    by_dataset = pd.DataFrame([(c.dataset, c.gain) for c in found]).groupby(0)[1].mean()
    said = gain_sentence(found)
    number = float(
        re.search(r"validation loss is (\S+) nat lower", said).group(1).replace("−", "-")
    )
    assert number == pytest.approx(by_dataset.mean(), rel=0.01)
    assert "95 % interval" in said
    assert gain_sentence([c.model_copy(update={"gain": None}) for c in found]).startswith(
        "No combination has both"
    )


def test_a_search_in_which_all_diverged_has_a_page_that_says_so_and_one_without_points_none(
    changed, tmp_path
):
    one = Search(combinations_to_tune(plan_sweep(changed)), changed.tune)
    assert write_report(Workspace.open(changed, str(tmp_path)), one, outcomes(one)) is None
    while (asked := one.next_trial()) is not None:
        one.add_result(asked.spec.trial_id, result([], **DIVERGED))
    found = outcomes(one)
    text = write_report(Workspace.open(changed, str(tmp_path)), one, found).read_text(
        encoding="utf-8"
    )
    for outcome in found:
        number = outcome.num_trials
        assert f"no training finished ({number} tried, {number} diverged, 0 failed)" in text
    table = trial_table(list(one.searches.values()))
    np.testing.assert_allclose(table["shown"], 2 * np.log(2))

"""The page of a search: what it says has an interval, what it draws is what was tried."""

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kruskal

from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.tuning.cells import Point, tuning_cells
from orchestrator.tuning.outcome import (
    FEWEST_FOR_IMPORTANCE,
    PARAMETERS,
    explained,
    importance_table,
    outcomes,
)
from orchestrator.tuning.report import (
    _between_0_and_1,
    _logarithm,
    draw_all,
    gains,
    trial_table,
    write_report,
)
from orchestrator.tuning.search import Search, open_storage
from tests.unit.orchestrator.tuning.examples import DIVERGED, result, run_through, sweep

CHANGED = sweep(tune={"budget": 0.4})


def searched() -> Search:
    one = Search(tuning_cells(plan_sweep(CHANGED)), CHANGED.tune, open_storage(None))
    run_through(one)
    return one


@pytest.fixture(scope="module")
def search():
    return searched()


@pytest.fixture(scope="module")
def page(search, tmp_path_factory):
    workspace = Workspace.open(CHANGED, str(tmp_path_factory.mktemp("root")))
    return write_report(workspace, search, outcomes(search))


def test_the_page_has_every_cell_every_figure_and_nothing_from_outside(page, search):
    text = page.read_text(encoding="utf-8")
    for model, dataset in search.cells:
        assert re.search(rf"<td>{model}</td><td>{dataset}</td>", text)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert len(images) == 3
    for image in images:
        assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
    assert "No test image was read." in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "isweep run smoke --set name=smoke-tuned --set recipe=tuned-smoke" in text


def test_too_few_trials_to_tell_what_matters_are_said(page, tmp_path):
    few = sweep(tune={"budget": 0.04})
    one = Search(tuning_cells(plan_sweep(few)), few.tune, open_storage(None))
    run_through(one)
    text = write_report(Workspace.open(few, str(tmp_path)), one, outcomes(one)).read_text(encoding="utf-8")
    said = f"for models of {FEWEST_FOR_IMPORTANCE} points or more"
    assert said in text
    assert said not in page.read_text(encoding="utf-8")


def test_the_csv_beside_it_has_each_point_tried_once(page, search):
    table = pd.read_csv(page.parent / "trials.csv")
    tried = sum(run == 0 for state in search.cells.values() for _, run in state.results)
    assert len(table) == tried
    assert not table.duplicated(["model", "dataset", "learning_rate", "weight_decay", "batch_size"]).any()
    assert set(table["status"]) <= {"complete", "pruned", "diverged"}


def test_the_gain_is_the_mean_over_datasets_with_its_interval(search):
    found = outcomes(search)
    by_dataset = pd.DataFrame([(c.dataset, c.gain) for c in found]).groupby(0)[1].mean()
    said = gains(found)
    number = float(re.search(r"Validation loss is (\S+) nat lower", said).group(1).replace("−", "-"))
    assert number == pytest.approx(by_dataset.mean(), rel=0.01)
    assert "95 % interval" in said
    assert gains([c.model_copy(update={"gain": None}) for c in found]).startswith("No cell has both")


def test_a_search_in_which_all_diverged_has_a_page_that_says_so(tmp_path):
    one = Search(tuning_cells(plan_sweep(CHANGED)), CHANGED.tune, open_storage(None))
    while (asked := one.next()) is not None:
        one.finished(asked.spec.trial_id, result([], **DIVERGED))
    found = outcomes(one)
    text = write_report(Workspace.open(CHANGED, str(tmp_path)), one, found).read_text(encoding="utf-8")
    for outcome in found:
        assert f"{outcome.model} on {outcome.dataset}: all {outcome.num_trials} trials diverged" in text
    table = trial_table(list(one.cells.values()))
    np.testing.assert_allclose(table["shown"], 2 * np.log(2))


def test_nothing_tried_is_no_page(tmp_path):
    one = Search(tuning_cells(plan_sweep(CHANGED)), CHANGED.tune, open_storage(None))
    assert write_report(Workspace.open(CHANGED, str(tmp_path)), one, outcomes(one)) is None


def random_search(loss, num_points=24):
    """A search of one cell at random points; ``loss`` of a point and a generator is that at every epoch."""
    one = Search(tuning_cells(plan_sweep(CHANGED))[:1], CHANGED.tune, open_storage(None))
    (state,) = one.cells.values()
    rng = np.random.default_rng(0)
    rates, decays = (10 ** rng.uniform(low, high, num_points) for low, high in ((-4, -1), (-6, -2)))
    for rate, decay, size in zip(rates, decays, rng.choice([8, 16, 32], num_points), strict=True):
        point = Point(learning_rate=rate, weight_decay=decay, batch_size=int(size))
        state.results[point, 0] = result([loss(point, rng)] * 9)
    return [state]


def test_the_parameter_that_decides_is_told_from_chance(search, page):
    """The examples' loss depends on the rate alone."""
    table = importance_table(list(search.cells.values()))
    assert list(table["parameter"]) == [*PARAMETERS] * table["model"].nunique()
    assert table["share"].between(0, 1).all()
    told = table[table["share"] > table["by_chance"]]
    assert set(told["parameter"]) <= {"learning_rate"}
    by_decay = importance_table(random_search(lambda point, rng: 0.4 + np.log10(point.weight_decay) / 100))
    told = by_decay[by_decay["share"] > by_decay["by_chance"]]
    assert list(told["parameter"]) == ["weight_decay"]
    assert re.search(
        r"small_mlp \(\d+ points\): (nothing|learning rate) told from chance", page.read_text("utf-8")
    )


def test_what_is_explained_is_the_statistic_of_kruskal_and_wallis():
    rng = np.random.default_rng(0)
    groups, ranks = rng.integers(0, 4, 30), rng.permutation(30) + 1.0
    statistic = kruskal(*(ranks[groups == group] for group in range(4))).statistic
    assert explained(ranks[None], groups)[0] * 29 == pytest.approx(statistic)


def test_noise_is_not_told_from_chance():
    """Of twenty searches in which nothing matters one is expected to tell something; four are too many."""
    told = 0
    for seed in range(20):
        noise = np.random.default_rng(seed)
        table = importance_table(random_search(lambda point, _, noise=noise: noise.uniform(0.3, 0.5), 18))
        assert list(table["parameter"]) == list(PARAMETERS)
        told += (table["share"] > table["by_chance"]).any()
    assert told < 4


def test_points_that_are_all_alike_have_no_importance():
    assert importance_table(random_search(lambda point, rng: 0.4)).empty
    assert importance_table(random_search(lambda point, rng: rng.uniform(), FEWEST_FOR_IMPORTANCE - 1)).empty


@pytest.mark.filterwarnings("error")
def test_a_recipe_without_weight_decay_is_drawn_at_the_least_that_is_none():
    """Its logarithm is no number, and would take every other point from the axis."""
    table = pd.Series([0.0, 1e-4, 1e-2])
    assert _between_0_and_1(_logarithm(table)).tolist() == [0, 0, 1]
    assert _between_0_and_1(_logarithm(table * 0)).tolist() == [0.5] * 3
    undecayed = sweep(recipe={"from": "smoke", "epochs": 9, "weight_decay": 0.0}, tune={"budget": 0.12})
    one = Search(tuning_cells(plan_sweep(undecayed)), undecayed.tune, open_storage(None))
    run_through(one)
    assert 0 in trial_table(list(one.cells.values()))["weight_decay"].to_numpy()
    assert (
        len(draw_all(list(one.cells.values()), {}, {"manifold_d4": "natural", "manifold_d12": "natural"}))
        == 2
    )

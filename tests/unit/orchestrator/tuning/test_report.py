"""The page of a search: what it says has an interval, what it draws is what was tried."""

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.tuning.cells import tuning_cells
from orchestrator.tuning.outcome import gains, outcomes, trial_table, write_report
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


def test_the_page_has_every_cell_its_figure_and_nothing_from_outside(page, search):
    text = page.read_text(encoding="utf-8")
    for model, dataset in search.cells:
        assert re.search(rf"<td>{model}</td><td>{dataset}</td>", text)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    (image,) = images
    assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
    assert "No test image was read." in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "isweep run smoke --set name=smoke-tuned --set recipe=tuned-smoke" in text
    assert "isweep compare smoke smoke-tuned" in text


def test_the_csv_beside_it_has_each_point_tried_once(page, search):
    table = pd.read_csv(page.parent / "trials.csv")
    tried = sum(run == 0 for state in search.cells.values() for _, run in state.results)
    assert len(table) == tried
    assert not table.duplicated(["model", "dataset", "learning_rate", "weight_decay", "batch_size"]).any()
    assert set(table["status"]) <= {"complete", "diverged"}


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

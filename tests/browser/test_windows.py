"""MLflow's page and Ray's dashboard as a user opens them, at the addresses that `isweep` prints."""

import re
import subprocess
import time

import pytest

from tests.browser.chromium import (
    chromium,
    mlflow_pages,
    page_text,
    ray_trials,
    read_task_table_address,
    wait_for,
)
from tests.integration.sweeps import command

pytestmark = pytest.mark.chaos

NETWORKS = '''
from torch import nn


class Hasty(nn.Module):
    """Breaks when its training is under way, which no look before the start can see."""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.linear, self.calls = nn.Linear(num_inputs, num_outputs), 0

    def forward(self, images):
        self.calls += 1
        if self.calls > 40:
            raise RuntimeError("too hasty")
        return self.linear(images.flatten(1))


def hasty(*, num_outputs, in_channels, image_size):
    return Hasty(in_channels * image_size**2, num_outputs)
'''
SWEEP = """
name: windows
models: [small_mlp, "nets:hasty"]
datasets: [manifold_d4]
train_sizes: [30, 60, 120]
test_size: 40
image_size: 16
seeds: [0, 1]
recipe: {from: smoke, epochs: 200}
num_neighbors: 10
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sweep_folder = tmp_path_factory.mktemp("windows")
    (sweep_folder / "nets.py").write_text(NETWORKS, encoding="utf-8")
    (sweep_folder / "windows.yaml").write_text(SWEEP, encoding="utf-8")
    return sweep_folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), 1440, 900) as driver:
        yield driver


@pytest.fixture(scope="module")
def task_table(folder, browser):
    """Run the sweep. Return the text of Ray's task table when it had most trials, and of an error."""
    arguments = command("run", str(folder / "windows.yaml"), "--root", str(folder / "root"))
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(arguments, cwd=folder, text=True, **pipes) as run:
        address, function = read_task_table_address(run.stderr)
        token = (folder / "root" / "ray-token").read_text(encoding="utf-8").strip()
        ray_trials(browser, address, token, function)
        tables = []
        error_text = ""
        while run.poll() is None:
            tables.append(page_text(browser))
            links = browser.find_elements("xpath", "//tr//*[text()='Error']")
            if links and not error_text:
                browser.execute_script("arguments[0].click()", links[0])
                time.sleep(2)
                error_text = page_text(browser) if "too hasty" in page_text(browser) else ""
                browser.save_screenshot(str(folder / "error.png"))
            time.sleep(1)
        run.stderr.read()
        assert run.returncode == 1
    return max(tables, key=lambda table: table.count("trial ")), error_text


def test_rays_task_table_shows_trials_alone_and_failed_ones_with_their_message(task_table):
    table, error_text = task_table
    rows = re.findall(r"\n\t(\S.*?)\t\d+\t\s*(RUNNING|FAILED|FINISHED)", table)
    assert len(rows) >= 4, table
    assert all(re.match(r"trial (small_mlp|hasty)-manifold_d4-n\d+-s\d-", name) for name, _ in rows)
    assert {state for name, state in rows if "hasty" in name} <= {"RUNNING", "FAILED"}
    assert {state for name, state in rows if "small_mlp" in name} <= {"RUNNING", "FINISHED"}
    assert "FAILED" in table
    assert "code_error: RuntimeError: too hasty" in error_text


@pytest.fixture(scope="module")
def page_addresses(task_table, folder):
    """The addresses that `isweep ui` prints while it serves, by the question of each page."""
    with mlflow_pages("windows", folder / "root") as document:
        yield document["pages"]["isweep/windows"]


@pytest.mark.parametrize("question", ["Best model", "Best on manifold_d4"])
def test_mlflow_opens_on_the_best_models_with_loss_model_dataset_and_n_in_view(
    page_addresses, browser, question
):
    browser.get("about:blank")
    browser.get(page_addresses[question])
    page = wait_for(browser, "Runs", "test_loss", "6 matching runs", "small_mlp N=")
    for heading in ("model", "dataset"):
        assert re.search(rf"^{heading}$", page, re.MULTILINE), page
    losses = [float(number) for number in re.findall(r"^\d\.\d{4,}", page, re.MULTILINE)]
    assert len(losses) == 6
    assert losses == sorted(losses)
    assert "hasty" not in page


def test_mlflow_draws_the_curve_over_n_as_a_line(page_addresses, browser):
    browser.get("about:blank")
    browser.get(page_addresses["Test loss over N"])
    curve = "small_mlp manifold_d4 smoke+epochs=200 (test_loss)"
    page = wait_for(browser, "Test loss over N", "1 matching run", curve)
    assert "N=30" not in page  # the page lists curves alone, no trials
    while not (points := browser.find_elements("css selector", ".scatterlayer .point")):
        time.sleep(0.5)
    assert len(points) == 3
    assert browser.find_elements("css selector", ".scatterlayer .js-line")

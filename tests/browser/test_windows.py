"""MLflow's page and Ray's dashboard as a user opens them, at the addresses that `isweep` prints."""

import re
import subprocess
import time

import pytest

from tests.browser.chromium import chromium, mlflow_pages, ray_trials, text, trials_told, wait_for
from tests.integration.sweeps import command

pytestmark = pytest.mark.chaos

OWN = '''
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
    found = tmp_path_factory.mktemp("windows")
    (found / "nets.py").write_text(OWN, encoding="utf-8")
    (found / "windows.yaml").write_text(SWEEP, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), 1440, 900) as driver:
        yield driver


@pytest.fixture(scope="module")
def seen(folder, browser):
    """What Ray's task table showed as its address says, when most trials had ended; the sweep has
    run."""
    words = command("run", str(folder / "windows.yaml"), "--root", str(folder / "root"))
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(words, cwd=folder, text=True, **pipes) as run:
        address, function = trials_told(run.stderr)
        token = (folder / "root" / "ray-token").read_text(encoding="utf-8").strip()
        ray_trials(browser, address, token, function)
        tables, error = [], ""
        while run.poll() is None:
            tables.append(text(browser))
            links = browser.find_elements("xpath", "//tr//*[text()='Error']")
            if links and not error:
                browser.execute_script("arguments[0].click()", links[0])
                time.sleep(2)
                error = text(browser) if "too hasty" in text(browser) else ""
                browser.save_screenshot(str(folder / "error.png"))
            time.sleep(1)
        run.stderr.read()
        assert run.returncode == 1
    return max(tables, key=lambda table: table.count("trial ")), error


def test_rays_task_table_shows_trials_alone_and_failed_ones_with_their_message(seen):
    table, error = seen
    rows = re.findall(r"\n\t(\S.*?)\t\d+\t\s*(RUNNING|FAILED|FINISHED)", table)
    assert len(rows) >= 4, table
    assert all(re.match(r"trial (small_mlp|hasty)-manifold_d4-n\d+-s\d-", name) for name, _ in rows)
    assert {state for name, state in rows if "hasty" in name} <= {"RUNNING", "FAILED"}
    assert {state for name, state in rows if "small_mlp" in name} <= {"RUNNING", "FINISHED"}
    assert "FAILED" in table
    assert "code_error: RuntimeError: too hasty" in error


@pytest.fixture(scope="module")
def pages(seen, folder):
    """Addresses that `isweep ui` prints, by question, while it serves."""
    with mlflow_pages("windows", folder / "root") as shown:
        yield shown["pages"]["isweep/windows"]


@pytest.mark.parametrize("question", ["Best model", "Best on manifold_d4"])
def test_mlflow_opens_on_the_best_models_with_loss_model_dataset_and_n_in_view(
    pages, browser, question
):
    browser.get("about:blank")
    browser.get(pages[question])
    shown = wait_for(browser, "Runs", "test_loss", "6 matching runs", "small_mlp N=")
    for heading in ("model", "dataset"):
        assert re.search(rf"^{heading}$", shown, re.MULTILINE), shown
    losses = [float(found) for found in re.findall(r"^\d\.\d{4,}", shown, re.MULTILINE)]
    assert len(losses) == 6
    assert losses == sorted(losses)
    assert "hasty" not in shown


def test_mlflow_draws_the_curve_over_n_as_a_line(pages, browser):
    browser.get("about:blank")
    browser.get(pages["Test loss over N"])
    curve = "small_mlp manifold_d4 smoke+epochs=200 (test_loss)"
    shown = wait_for(browser, "Test loss over N", "1 matching run", curve)
    assert "N=30" not in shown  # no trial stands between the curves
    while not (points := browser.find_elements("css selector", ".scatterlayer .point")):
        time.sleep(0.5)
    assert len(points) == 3
    assert browser.find_elements("css selector", ".scatterlayer .js-line")

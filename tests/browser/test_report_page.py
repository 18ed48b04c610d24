"""The report in a real browser: sorting, filtering, hovering, narrow screens, no request outside."""

from contextlib import contextmanager

import pytest

from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.report import write_report
from tests.browser.chromium import chromium, requests
from tests.synthetic import synthetic_table

RUNS = "http://127.0.0.1:5000/#/experiments/1/runs/"


@pytest.fixture(scope="module")
def table():
    table = synthetic_table(
        num_natural=3, num_medical=2, trial_std=0.2, models=("resnet18", "vgg13")
    )
    return table.assign(test_accuracy=0.9)


@pytest.fixture(scope="module")
def fits(table):
    return fit_scaling_laws(table, explore=True)


@pytest.fixture(scope="module")
def page(table, fits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = {"runs": {table["trial_id"].min(): "abc123"}, "run_pages": RUNS}
    summary = {"description": "A sweep.", "preset": "name: <demo>", **runs}
    return write_report(table, fits, folder, sweep="demo", summary=summary)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def column_texts(browser, column):
    script = """
      const heads = [...document.querySelectorAll("#trial-table th")];
      const place = heads.findIndex(head => head.textContent === arguments[0]);
      return [...document.querySelectorAll("#trial-table tbody tr")].map(row => row.cells[place].textContent);
    """
    return browser.execute_script(script, column)


def click_heading(browser, heading):
    script = """const heads = [...document.querySelectorAll("#trial-table th")];
        heads.find(head => head.textContent === arguments[0]).click()"""
    browser.execute_script(script, heading)


def test_the_page_sorts_filters_and_explains_points(browser, page, table):
    requests(browser)  # drops the requests of the browser's first tab
    browser.get(page.as_uri())
    local = ("file:", "data:", "chrome:")
    assert [address for address in requests(browser) if not address.startswith(local)] == []
    assert len(column_texts(browser, "model")) == min(100, len(table))
    click_heading(browser, "test loss")
    losses = [float(text) for text in column_texts(browser, "test loss")]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(table["test_loss"].min(), rel=1e-3)
    click_heading(browser, "test loss")
    largest_loss = float(column_texts(browser, "test loss")[0])
    assert largest_loss == pytest.approx(table["test_loss"].max(), rel=1e-3)

    browser.execute_script(
        """const box = document.querySelector("#trial-table input"); box.value = "vgg13 medical0";
           box.dispatchEvent(new Event("input"));"""
    )
    matching_rows = table[(table["model"] == "vgg13") & (table["dataset"] == "medical0")]
    assert len(column_texts(browser, "model")) == len(matching_rows)
    assert set(column_texts(browser, "model")) == {"vgg13"}

    point = browser.execute_script(
        """const point = document.querySelector("figure svg a use");
           const at = point.getBoundingClientRect();
           point.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: at.x, clientY: at.y}));
           return document.querySelector(".tip").textContent;"""
    )
    assert "loss" in point
    browser.execute_script(
        """const point = document.querySelector("figure svg a use");
           point.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}))"""
    )
    assert 0 < len(column_texts(browser, "model")) < len(table)
    problems = ("SEVERE", "WARNING")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in problems] == []


CUT_ELEMENTS = """return [...document.querySelectorAll("table, .scroll, td, th, pre, figure")].filter(one =>
    one.getBoundingClientRect().right > document.documentElement.clientWidth + 1 ||
    (one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1))
    .map(one => one.tagName + " " + one.textContent.slice(0, 60))"""
SIDEWAYS_SCROLL = (
    "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
)
BROKEN_NUMBERS = """return [...document.querySelectorAll("td.number")].filter(one => {
    const lines = document.createRange(); lines.selectNodeContents(one);
    return !/\\s/.test(one.textContent) && lines.getClientRects().length > 1;
  }).map(one => one.textContent)"""


@contextmanager
def emulated_screen(browser, width, **options):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, **options}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_shows_every_column(browser, page):
    with emulated_screen(browser, 390, mobile=True):
        browser.get(page.as_uri())
        assert browser.execute_script(SIDEWAYS_SCROLL) <= 1
        assert browser.execute_script(CUT_ELEMENTS) == []
        labels = browser.execute_script(
            """return [...document.querySelector("#trial-table tbody tr").cells]
                .filter(cell => cell.textContent)
                .map(cell => getComputedStyle(cell, "::before").content)"""
        )
        assert {'"model"', '"N"', '"test loss"', '"trial"'} <= set(labels)
        click_heading(browser, "test loss")
        losses = [float(text) for text in column_texts(browser, "test loss")]
        assert losses == sorted(losses)


def test_paper_cuts_no_column_and_breaks_no_number(browser, page):
    # The content of A4 landscape with margins of 1 cm at 96 dpi.
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        with emulated_screen(browser, 1046, mobile=False):
            browser.get(page.as_uri())
            assert browser.execute_script(SIDEWAYS_SCROLL) <= 1
            assert browser.execute_script(CUT_ELEMENTS) == []
            assert browser.execute_script(BROKEN_NUMBERS) == []
            bar_text = browser.execute_script(
                "return document.querySelector('#trial-table .bar').innerText"
            )
            # A printed page says how many of all trials it shows.
            assert " of " in bar_text
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_only_a_trial_with_a_run_has_a_link(browser, page, table):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(page.as_uri())
    script = (
        "return [...document.querySelectorAll('#trial-table td a')].map(one => "
        "[one.textContent, one.href])"
    )
    links = WebDriverWait(browser, 20).until(lambda browser: browser.execute_script(script))
    assert links == [[table["trial_id"].min(), f"{RUNS}abc123"]]


def test_ten_thousand_trials_open_in_pages(browser, table, fits, tmp_path):
    import pandas as pd

    num_copies = -(-10_000 // len(table))  # rounded up
    copies = []
    for copy in range(num_copies):
        copies.append(table.assign(trial_id=table["trial_id"] + f"-{copy}", seed=copy))
    large_table = pd.concat(copies)
    path = write_report(large_table, fits, tmp_path, sweep="many", summary={})
    assert path.stat().st_size < 5_000_000
    browser.get(path.as_uri())
    assert len(column_texts(browser, "model")) == 100
    click_heading(browser, "test loss")
    losses = [float(text) for text in column_texts(browser, "test loss")]
    assert losses == sorted(losses)
    assert set(column_texts(browser, "N")) <= {f"{size:,}" for size in table["train_size"].unique()}
    loss_texts = column_texts(browser, "test loss")
    assert {len(text.replace(".", "").lstrip("0")) for text in loss_texts} == {4}
    headings = browser.execute_script(
        "return document.querySelector('#trial-table thead').textContent"
    )
    assert "pair" not in headings
    bar_text = browser.execute_script(
        """return document.querySelector("#trial-table .bar span").textContent"""
    )
    assert f"of {len(large_table)}" in bar_text

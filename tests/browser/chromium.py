"""A headless Chromium with a new profile and without background traffic."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.integration.sweeps import command

TIMEOUT_S = 400.0
"""Seconds that a page may take to show something: Ray and MLflow start on a busy machine."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


ARROW_DOWN = "\ue015"
ENTER = "\ue007"
"""Keys as WebDriver encodes them."""


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Yield a WebDriver session of a new Chromium, or skip the test if there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    webdriver_session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield webdriver_session
    finally:
        webdriver_session.quit()


def read_task_table_address(stderr: IO[str]) -> tuple[str, str]:
    """Read a run's output up to the address of its task table. Return it and the trials' function."""
    output = ""
    while True:
        match = re.search(r"open (\S+) and filter the Task Table by (\S+)\n", output)
        if match:
            return match[1], match[2]
        output += stderr.readline() or pytest.fail(output)


@contextmanager
def mlflow_pages(sweep: str, root: Path) -> Iterator[dict[str, Any]]:
    """Yield the document that ``isweep ui`` prints while it serves. End the command by Ctrl-C."""
    arguments = command("ui", sweep, "--json", "--root", str(root))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, **pipes) as server:
        output = ""
        # The document ends with this line. The command goes on and serves the page.
        while not output.endswith("\n}\n"):
            output += server.stdout.readline() or pytest.fail(server.stderr.read())
        try:
            yield json.loads(output)
            server.send_signal(signal.SIGINT)
            assert server.wait() == 130
        finally:
            server.kill()


def requests(driver: Any) -> list[str]:
    """Return the addresses that the page requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def page_text(driver: Any) -> str:
    """Return the visible text of the page."""
    return str(driver.execute_script("return document.body ? document.body.innerText : ''"))


def wait_for(driver: Any, *words: str) -> str:
    """Wait until the page shows all of the words, and return its text."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        shown_text = page_text(driver)
        if all(word in shown_text for word in words):
            return shown_text
        assert time.monotonic() < deadline, f"not all of {words} are in:\n{shown_text}"
        time.sleep(0.5)


def ray_trials(driver: Any, address: str, token: str, function: str) -> None:
    """Open a job's page of Ray's dashboard, and filter its task table by a function."""
    driver.execute_cdp_cmd("Network.enable", {})
    headers = {"headers": {"Authorization": f"Bearer {token}"}}
    driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", headers)
    deadline = time.monotonic() + TIMEOUT_S
    # A page that opens before the dashboard knows the job sends no second request.
    while "Task Table" not in page_text(driver):
        assert time.monotonic() < deadline, page_text(driver)
        driver.get("about:blank")
        driver.get(address)
        time.sleep(5)
    driver.find_elements("xpath", "//*[text()='Task Table']")[-1].click()
    time.sleep(1)
    label = "//label[text()='Function or Class Name']"
    box = driver.find_element("xpath", f"{label}/following-sibling::*//input")
    driver.execute_script("arguments[0].scrollIntoView()", box)
    wait_for(driver, function)  # the box offers functions of tasks that have started
    box.send_keys(function)
    time.sleep(1)
    box.send_keys(ARROW_DOWN, ENTER)

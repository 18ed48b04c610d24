"""A headless Chromium of its own: no profile of the user's, no background traffic."""

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

PATIENCE_S = 400.0

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


ARROW_DOWN, ENTER = "\ue015", "\ue007"


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Yield a driver, or skip the test where there is no Chromium to drive."""
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
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def trials_told(stderr: IO[str]) -> tuple[str, str]:
    """Read what a run says until it tells the address of its trials, and the function that they
    run."""
    said = ""
    while not (told := re.search(r"open (\S+) and filter the Task Table by (\S+)\n", said)):
        said += stderr.readline() or pytest.fail(said)
    return told[1], told[2]


@contextmanager
def mlflow_pages(sweep: str, root: Path) -> Iterator[dict[str, Any]]:
    """Yield what ``isweep ui`` prints while it serves; it is ended as by Ctrl-C."""
    words = command("ui", sweep, "--json", "--root", str(root))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as served:
        said = ""
        while not said.endswith("\n}\n"):  # the document's end; the page is served beyond it
            said += served.stdout.readline() or pytest.fail(served.stderr.read())
        try:
            yield json.loads(said)
            served.send_signal(signal.SIGINT)
            assert served.wait() == 130
        finally:
            served.kill()


def requests(driver: Any) -> list[str]:
    """Return the addresses that the page asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def text(driver: Any) -> str:
    """Return what the page shows, as text."""
    return str(driver.execute_script("return document.body ? document.body.innerText : ''"))


def wait_for(driver: Any, *words: str) -> str:
    """Wait until the page shows all of the words; returns its text."""
    until = time.monotonic() + PATIENCE_S
    while not all(word in (shown := text(driver)) for word in words):
        assert time.monotonic() < until, f"not all of {words} are in:\n{shown}"
        time.sleep(0.5)
    return shown


def ray_trials(driver: Any, address: str, token: str, function: str) -> None:
    """Open a job's page of Ray's dashboard, and choose a function in its table of tasks."""
    driver.execute_cdp_cmd("Network.enable", {})
    headers = {"headers": {"Authorization": f"Bearer {token}"}}
    driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", headers)
    until = time.monotonic() + PATIENCE_S
    while "Task Table" not in text(
        driver
    ):  # a page that opens before its job is known asks no second time
        assert time.monotonic() < until, text(driver)
        driver.get("about:blank")
        driver.get(address)
        time.sleep(5)
    driver.find_elements("xpath", "//*[text()='Task Table']")[-1].click()
    time.sleep(1)
    label = "//label[text()='Function or Class Name']"
    box = driver.find_element("xpath", f"{label}/following-sibling::*//input")
    driver.execute_script("arguments[0].scrollIntoView()", box)
    wait_for(driver, function)  # until there is one to choose
    box.send_keys(function)
    time.sleep(1)
    box.send_keys(ARROW_DOWN, ENTER)

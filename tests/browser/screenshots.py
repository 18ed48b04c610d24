"""Takes the pictures that README and docs show; see ``main`` for what to type."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.results.mlflow_pages import Page
from tests.browser.chromium import chromium

SECTIONS = {"report-best": "best-models", "report-trials": "trials"}
SETTLE_S = 6.0
"""Until a page that asks for its data has drawn them."""

OPEN_TASKS = """window.heading = [...document.querySelectorAll("*")]
    .filter(one => one.textContent.trim() === "Task Table").pop();
    if (heading) heading.click()"""
CLOSE_ASSISTANT = """const heading = [...document.querySelectorAll("*")]
    .filter(one => one.textContent.startsWith("MLflow Assistant") && one.querySelector("button")).pop();
    if (heading) [...heading.querySelectorAll("button")].pop().click()"""
SHOW_TASKS = "if (window.heading) window.heading.scrollIntoView()"


def main() -> None:
    """Take pictures of one place.

    ``python -m tests.browser.screenshots report REPORT FOLDER``, ``… ray ADDRESS TOKEN_FILE FOLDER`` while a
    sweep runs, or ``… mlflow ADDRESS EXPERIMENT FOLDER`` with ``mlflow ui`` running.
    """
    place, *rest, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), 1440, 900) as driver:
        {"report": report, "ray": ray_dashboard, "mlflow": mlflow_page}[place](driver, Path(folder), *rest)


def report(driver: Any, folder: Path, path: str) -> None:
    """One picture per section of a report."""
    driver.get(Path(path).absolute().as_uri())
    for name, section in SECTIONS.items():
        driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", section)
        _save(driver, folder / f"{name}.png")


def ray_dashboard(driver: Any, folder: Path, address: str, token_file: str) -> None:
    """Jobs, the tasks of the job, actors and nodes of Ray's dashboard."""
    headers = {"Authorization": f"Bearer {Path(token_file).read_text(encoding='utf-8').strip()}"}
    jobs = _asked(f"{address}/api/jobs/", headers)
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": headers})
    job = f"jobs/{jobs[0]['job_id']}"
    for name, page in {"jobs": "jobs", "tasks": job, "actors": "actors", "nodes": "cluster"}.items():
        driver.get("about:blank")
        driver.get(f"{address}/#/{page}")
        time.sleep(SETTLE_S)
        if name == "tasks":
            driver.execute_script(OPEN_TASKS)
            time.sleep(SETTLE_S)
            driver.execute_script(SHOW_TASKS)
            time.sleep(1)
        _save(driver, folder / f"ray-{name}.png")


def mlflow_page(driver: Any, folder: Path, address: str, experiment: str) -> None:
    """The views of a sweep's experiment."""
    found = _asked(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}", {})
    runs = f"{address}/#/experiments/{found['experiment']['experiment_id']}/runs"
    for name, view in Page("", loss_gain="gain").views().items():
        driver.get("about:blank")
        driver.get(f"{runs}?{view.query(name)}")
        time.sleep(2 * SETTLE_S)
        driver.execute_script(CLOSE_ASSISTANT)
        time.sleep(SETTLE_S)
        _save(driver, folder / f"mlflow-{name}.png")


def _asked(url: str, headers: dict[str, str]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return json.load(answer)


def _save(driver: Any, path: Path) -> None:
    """Save in 64 colours: a picture of a page needs no more, and a repository keeps it for ever."""
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

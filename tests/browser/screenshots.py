"""Take the documents' pictures of a demo: Ray's dashboard while it runs, and MLflow's page.

``python -m tests.browser.screenshots [ROOT]`` runs the demo, unless ROOT has its results. Without
ROOT it runs in a temporary root."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.chromium import (
    chromium,
    mlflow_pages,
    ray_trials,
    read_task_table_address,
    wait_for,
)
from tests.demo_page import save_picture
from tests.integration.sweeps import command

PICTURES = {"Best model": "mlflow-best", "Test loss over N": "mlflow-curve"}
DRAWING_S = 6.0
"""Seconds until a page has loaded and drawn its data."""
CLOSE_ASSISTANT = """const heading = [...document.querySelectorAll("*")].filter(one => one.offsetParent
        && one.textContent.startsWith("MLflow Assistant") && one.querySelector("button")).pop();
    if (heading) [...heading.querySelectorAll("button")].pop().click();
    return Boolean(heading)"""


def main() -> None:
    """Take all pictures."""
    with (
        tempfile.TemporaryDirectory() as name,
        chromium(Path(name) / "profile", 1440, 900) as driver,
    ):
        root = Path(sys.argv[1] if len(sys.argv) > 1 else name)
        if not (root / "sweeps" / "demo").exists():
            ray_dashboard(driver, root)
        mlflow_page(driver, root)


def ray_dashboard(driver: Any, root: Path) -> None:
    """Run the demo, and take a picture of its task table when some trials have ended."""
    arguments = command("run", "demo", "--root", str(root))
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        address, function = read_task_table_address(run.stderr)
        token = (root / "ray-token").read_text(encoding="utf-8").strip()
        ray_trials(driver, address, token, function)
        wait_for(driver, "FINISHED", "RUNNING")
        (table,) = driver.find_elements("xpath", "//*[text()='Task Table']")[-1:]
        driver.execute_script("arguments[0].scrollIntoView(); window.scrollBy(0, -110)", table)
        _save(driver, "ray-tasks")
        run.stderr.read()


def mlflow_page(driver: Any, root: Path) -> None:
    """Take pictures of the demo's views in MLflow, at the addresses that `isweep ui` prints."""
    with mlflow_pages("demo", root) as document:
        for question, picture in PICTURES.items():
            driver.get("about:blank")
            driver.get(document["pages"]["isweep/demo"][question])
            # MLflow's assistant covers the page. On a busy machine it opens late.
            for _ in range(4):
                time.sleep(DRAWING_S)
                if driver.execute_script(CLOSE_ASSISTANT):
                    break
            time.sleep(DRAWING_S)
            _save(driver, picture)


def _save(driver: Any, name: str) -> None:
    save_picture(Image.open(io.BytesIO(driver.get_screenshot_as_png())), name)


if __name__ == "__main__":
    main()

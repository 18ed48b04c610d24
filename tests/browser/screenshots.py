"""Takes the pictures that docs show of a demo: Ray's dashboard while it runs, and MLflow's page.

``python -m tests.browser.screenshots [ROOT]``; without a root in which it ran, it runs in one of
its own."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.chromium import chromium, mlflow_pages, ray_trials, trials_told, wait_for
from tests.demo_page import save_picture
from tests.integration.sweeps import command

PAGES = {"Best model": "mlflow-best", "Test loss over N": "mlflow-curve"}
SETTLE_S = 6.0
"""Until a page that asks for its data has drawn them."""
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
    """Run the demo, and show its trials when some have ended."""
    words = command("run", "demo", "--root", str(root))
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        address, function = trials_told(run.stderr)
        ray_trials(
            driver, address, (root / "ray-token").read_text(encoding="utf-8").strip(), function
        )
        wait_for(driver, "FINISHED", "RUNNING")
        (table,) = driver.find_elements("xpath", "//*[text()='Task Table']")[-1:]
        driver.execute_script("arguments[0].scrollIntoView(); window.scrollBy(0, -110)", table)
        _save(driver, "ray-tasks")
        run.stderr.read()


def mlflow_page(driver: Any, root: Path) -> None:
    """The views of the demo, at the addresses that `isweep ui` prints."""
    with mlflow_pages("demo", root) as shown:
        for question, picture in PAGES.items():
            driver.get("about:blank")
            driver.get(shown["pages"]["isweep/demo"][question])
            for _ in range(4):  # on a busy machine the assistant opens late
                time.sleep(SETTLE_S)
                if driver.execute_script(CLOSE_ASSISTANT):
                    break
            time.sleep(SETTLE_S)
            _save(driver, picture)


def _save(driver: Any, name: str) -> None:
    save_picture(Image.open(io.BytesIO(driver.get_screenshot_as_png())), name)


if __name__ == "__main__":
    main()

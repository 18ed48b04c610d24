"""Takes the pictures of the report that README shows: python -m tests.browser.screenshots REPORT FOLDER."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import chromium

SECTIONS = {"report-best": "best-models", "report-trials": "trials"}


def main() -> None:
    """Open the report and save one picture per section."""
    report, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), 1000, 620) as driver:
        driver.get(report.as_uri())
        for name, section in SECTIONS.items():
            driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", section)
            driver.save_screenshot(str(folder / f"{name}.png"))


if __name__ == "__main__":
    main()

"""How large is the report of 1,000 and 10,000 trials, and how long do opening, sorting and filtering take?

Synthetic tables of the study's shape, as in ``analysis_scale``; above 1,000 trials their rows are repeated
under further seeds, since only the page is measured and not the fits. Opening is Chromium's own time from the
start of the navigation to the first frame after the load event; sorting and filtering from the click or the
key to the end of the next frame. Nobody else makes this page: the other side are the promised limits, and the
ratios are of 1,000 trials. Medians of five, in a headless Chromium; needs chromedriver and selenium.

Usage: python benchmarks/report_page.py [--json] [--repeats 5]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from analysis_scale import study_table
from measure_common import parser, report

from orchestrator.analysis import fit_scaling_laws
from orchestrator.analysis.report import write_report

LIMITS = {"bytes": 5_000_000, "open_s": 2.0, "sort_s": 0.2, "filter_s": 0.2}
"""Of 1,000 trials; a fifth of a second is no noticeable pause. 10,000 need only open."""

OPENED = """const done = arguments[0];
    const end = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000)));
    document.readyState === "complete" ? end() : window.addEventListener("load", end)"""
TIMED = """const [act, done] = [new Function(arguments[0]), arguments[1]];
    const start = performance.now();
    act();
    requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)))"""
SORT = """[...document.querySelectorAll("#trial-table th")]
    .find(head => head.textContent === "test loss").click()"""
FILTER = """const box = document.querySelector("#trial-table input");
    box.value = box.value ? "" : "model01 medical"; box.dispatchEvent(new Event("input"))"""


def written(num_trials: int, folder: Path) -> Path:
    """Write the report of that many trials."""
    table = study_table(min(num_trials, 1000))
    fits = fit_scaling_laws(table)
    copies = [
        table.assign(trial_id=table["trial_id"] + f"-{seed}", seed=seed)
        for seed in range(-(-num_trials // len(table)))
    ]
    many = pd.concat(copies).head(num_trials)
    return write_report(many, fits, folder, sweep="benchmark", summary={})


def seen(page: Path, repeats: int) -> dict[str, float]:
    """Open a page several times; return medians of what a reader waits for."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.browser.chromium import chromium

    times: dict[str, list[float]] = {"open_s": [], "sort_s": [], "filter_s": []}
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as driver:
        driver.set_script_timeout(120)
        for _ in range(repeats):
            driver.get("about:blank")
            driver.get(page.as_uri())
            times["open_s"].append(driver.execute_async_script(OPENED))
            times["sort_s"].append(driver.execute_async_script(TIMED, SORT))
            times["filter_s"].append(driver.execute_async_script(TIMED, FILTER))
    return {"bytes": page.stat().st_size, **{name: median(found) for name, found in times.items()}}


def main() -> None:
    """Measure both sizes and print them."""
    arguments = parser(__doc__)
    arguments.set_defaults(repeats=5)
    asked = arguments.parse_args()
    ours: dict[str, Any] = {}
    for num_trials in (1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            ours[f"{num_trials}_trials"] = seen(written(num_trials, Path(folder)), asked.repeats)
    ratio = {name: ours["1000_trials"][name] / limit for name, limit in LIMITS.items()}
    report(asked.json, "report_page", ours, LIMITS, ratio)


if __name__ == "__main__":
    main()

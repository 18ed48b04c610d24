"""What README shows of the demo, from one run of it: output, figures, a sentence with its numbers.

    isweep run demo 2>&1 | tee demo.txt
    isweep report demo --figures png
    python -m tests.demo_page ROOT demo.txt

The numbers go to ``benchmarks/results/demo.json``, to which ``tests/unit/test_docs.py`` holds
README."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.harness import source
from orchestrator.analysis.results_tables.points import POOLED
from orchestrator.results.columns import attack_columns

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
RESULT = REPOSITORY / "benchmarks" / "results" / "demo.json"
FIGURES = {"dataset_properties": "demo-properties", "loss_gain_on_sharpness": "demo-robustness"}


def main(root: Path, output: Path) -> None:
    """Write what README shows of the demo below ``root``, which said ``output``."""
    report = root / "sweeps" / "demo" / "report"
    said = output.read_text(encoding="utf-8").replace(str(root.absolute().parent), "…").strip()
    numbers = found(json.loads((report / "fits.json").read_text(encoding="utf-8"))) | {
        "said": brief(said)
    }
    RESULT.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_figures(report / "figures")
    text = README.read_text(encoding="utf-8")
    README.write_text(filled(text, numbers), encoding="utf-8")


def save_figures(folder: Path) -> None:
    """Save the report's figures that README shows, with what their numbers are from."""
    drawn_with = PngInfo()
    drawn_with.add_text("Source", source(RESULT))
    for figure, name in FIGURES.items():
        save_picture(Image.open(folder / f"{figure}.png"), name, pnginfo=drawn_with)


def save_picture(picture: Image.Image, name: str, **more: Any) -> None:
    """Save a picture for docs in its 256 most frequent colours: a repository keeps it for ever."""
    exact, palette = picture.convert("RGB"), Image.new("P", (1, 1))
    colours = sorted(exact.getcolors(exact.width * exact.height) or [], reverse=True)
    palette.putpalette([value for _, colour in colours[:256] for value in colour])
    few = exact.quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(REPOSITORY / "docs" / "images" / f"{name}.png", optimize=True, **more)


def found(fits: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that README tells: of attacks those that the page's answer names."""
    attack = max(
        (
            fit
            for fit in fits["fits"]
            if (fit["kind"], fit["status"]) == ("attack", "ok") and fit["model"] != POOLED
        ),
        key=lambda fit: fit["estimates"][0]["value"],
    )
    r = attack["estimates"][0]
    return {
        "name": "demo",
        "num_datasets": len(fits["datasets"]),
        "num_trials": fits["num_trials"],
        "attack": f"{attack_columns([attack['response']])[0].words} on {attack['model']}",
        "r": r["value"],
        "interval": r["interval"],
        "num_at_guessing": fits["num_at_chance_level"],
        "num_points": fits["num_points"],
        "claims": {
            answer["question"]["key"]: answer["adjusted_p"]
            for answer in fits["answers"]
            if answer["p_value"] is not None
        },
        "established": [
            answer["question"]["key"]
            for answer in fits["answers"]
            if answer["verdict"] in ("supported", "contradicted")
        ],
    }


def sentences(numbers: dict[str, Any]) -> str:
    """Return what the demo found, as README says it."""
    low, high = numbers["interval"]
    claims = numbers["claims"]
    num_detected = str(len(numbers["established"]) or "None")
    zero = "excludes 0"
    if low <= 0 <= high:
        zero = "includes 0"
    verdict = "the question is undecided"
    if "attacks_on_sharpness" in numbers["established"]:
        verdict = "an effect was detected"
    lines = (
        f"*The demo on a two-core machine (x86-64): {numbers['num_datasets']} datasets, "
        f"{numbers['num_points']} trainings.",
        f"For {numbers['attack']}, the loss gained by the attack correlates with K_F "
        f"(r = {numbers['r']:.2f}).",
        f"The 95 % interval, {low:.2f} to {high:.2f}, {zero}, and {verdict}.",
        f"{num_detected} of the {len(claims)} tests detected an effect (smallest "
        f"adjusted p: {min(claims.values()):.2f}).",
        f"In {numbers['num_at_guessing']} trainings the loss is at chance level.*",
    )
    return "\n".join(lines).replace(" -", " −")


def brief(said: str) -> list[str]:
    """Leave out the clock, which is that of one machine, and lines that only count on."""
    lines = dict.fromkeys(re.sub(r"^\[[^\]]*\] +", "", line) for line in said.splitlines())
    kept = [line for line in lines if not re.search(r"^train .*running|^prepare .*/", line)]
    prepared = [line for line in kept if line.startswith("prepare")]
    first, between = prepared[1], prepared[2:-1]
    return ["…" if line == first else line for line in kept if line not in between]


def stages(said: str) -> list[str]:
    """Return what a run says that it does, or README of it, once each and in order."""
    lines = (re.sub(r"^\[[^\]]*\] +", "", line) for line in said.splitlines())
    found = (re.match(r"start  \w+|[a-z]+(?=  |$)|[A-Z][A-Za-z ]+(?=:)", line) for line in lines)
    return [*dict.fromkeys(stage[0] for stage in found if stage)]


def filled(text: str, numbers: dict[str, Any]) -> str:
    """Return README with what the demo's committed run said and found."""
    shown = "\n".join(["```", *numbers["said"], "```"])
    return with_block(with_block(text, "demo-output", shown), "demo-found", sentences(numbers))


def with_block(text: str, name: str, content: str) -> str:
    """Return a document with what stands between the marks of a name replaced."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = text.partition(start)
    return before + start + content + end + rest.partition(end)[2]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Fill in what README shows of the demo, from one run of it: its output, its answers, two figures.

    isweep run demo 2>&1 | tee demo.txt
    isweep report demo --figures png
    python -m tests.demo_page ROOT demo.txt

The answers are the first sentences of ``isweep fit demo``. They go to ``benchmarks/results/demo.json``, to
which ``tests/unit/test_docs.py`` holds README.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import isweep
from benchmarks.harness import source
from orchestrator.analysis.findings import what_was_found
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.law_fits.exponents import TWONN
from orchestrator.analysis.number_formats import number

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
RESULT = REPOSITORY / "benchmarks" / "results" / "demo.json"
FIGURES = {"dataset_properties": "demo-properties", "loss_gain_on_sharpness": "demo-robustness"}
"""Figure of the report -> its picture in the documents."""
MAX_WIDTH = 120
"""Characters of a line of README."""
CLOCK = re.compile(r"^\[[^\]]*\] +")
"""Time at the beginning of a line of output."""
PROGRESS = re.compile(r"^train .*running|^prepare .*/")
"""A line that only counts on."""


def main(root: Path, output_file: Path) -> None:
    """Write what README shows of the demo.

    Args:
        root: Folder that holds the demo's results.
        output_file: What ``isweep run demo`` printed.
    """
    folder_of_root = str(root.absolute().parent)
    output = output_file.read_text(encoding="utf-8").replace(folder_of_root, "…").strip()
    document = answers_of(isweep.open("demo", root=root).fits.records)
    document["output"] = without_clock(output)
    RESULT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_figures(root / "sweeps" / "demo" / "report" / "figures")
    README.write_text(filled(README.read_text(encoding="utf-8"), document), encoding="utf-8")


def answers_of(fits: ScalingFits) -> dict[str, Any]:
    """Return what the demo answers: the first sentences of ``isweep fit demo``, and its tests."""
    p_values = {}
    for answer in fits.answers:
        if answer.adjusted_p is not None:
            p_values[answer.question.key] = answer.adjusted_p
    exponents = {}
    for estimator, fit in (("MLE", fits.exponent()), (TWONN, fits.exponent(variant=TWONN))):
        exponent = fit.estimate("exponent")
        assert exponent is not None
        exponents[estimator] = [exponent.value, *exponent.interval]
    fall = fits.fall()
    return {
        "name": "demo",
        "num_datasets": len(fits.datasets),
        "num_trials": fits.num_trials,
        "num_at_chance_level": fits.num_at_chance_level,
        "adjusted_p": p_values,
        "summary": [*what_was_found(fits)],
        "exponents": exponents,
        "smallest_train_size": fall.train_sizes[0],
        "num_at_smallest": fall.num_at_smallest,
        "num_unfitted": fall.num_unfitted,
    }


def remark_on_the_fall(document: dict[str, Any]) -> str:
    """Return README's remark on how the loss falls and at which rate, in one line."""
    rates = ", ".join(
        f"{number(value)} ({number(low)} to {number(high)}) with {estimator}"
        for estimator, (value, low, high) in document["exponents"].items()
    )
    return (
        f"at N = {document['smallest_train_size']}, {document['num_unfitted']} of "
        f"{document['num_at_smallest']} networks do not fit their training images. "
        "The loss falls like N^(−b/d_data). "
        f"Here b depends on the estimator of d_data: {rates}"
    )


def save_figures(folder: Path) -> None:
    """Save the report's figures that README shows, with the result that they are drawn from."""
    metadata = PngInfo()
    metadata.add_text("Source", source(RESULT))
    for figure, name in FIGURES.items():
        save_picture(Image.open(folder / f"{figure}.png"), name, pnginfo=metadata)


def save_picture(picture: Image.Image, name: str, **options: Any) -> None:
    """Save a picture for the documents in its 256 most frequent colors, so that it stays small."""
    exact = picture.convert("RGB")
    colors = sorted(exact.getcolors(exact.width * exact.height) or [], reverse=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, color in colors[:256] for value in color])
    reduced = exact.quantize(palette=palette, dither=Image.Dither.NONE)
    reduced.save(REPOSITORY / "docs" / "images" / f"{name}.png", optimize=True, **options)


def without_clock(output: str) -> list[str]:
    """Return the output's lines without times and counters; of the datasets the first and last."""
    lines = list(dict.fromkeys(CLOCK.sub("", line) for line in output.splitlines()))
    lines = [line for line in lines if not PROGRESS.search(line)]
    prepared = [line for line in lines if line.startswith("prepare")]
    first_left_out, *others_left_out = prepared[1:-1]
    shown_lines = ["…" if line == first_left_out else line for line in lines]
    return [line for line in shown_lines if line not in others_left_out]


def stages(output: str) -> list[str]:
    """Return the stages that a run names in its output, once each and in order."""
    names: dict[str, None] = {}
    for line in output.splitlines():
        stage = re.match(r"start  \w+|[a-z]+(?=  |$)|[A-Z][A-Za-z ]+(?=:)", CLOCK.sub("", line))
        if stage is not None:
            names[stage[0]] = None
    return [*names]


def filled(text: str, document: dict[str, Any]) -> str:
    """Return README with the output and the answers of the demo's committed run."""
    output = "\n".join(["```", *document["output"], "```"])
    summary = " ".join(document["summary"])
    answers = "\n".join(wrap(f"*{summary}*", MAX_WIDTH))
    return with_block(with_block(text, "demo-output", output), "demo-found", answers)


def with_block(text: str, name: str, content: str) -> str:
    """Return a document with what stands between the marks of a name replaced."""
    start = f"<!-- {name} -->\n"
    end = f"\n<!-- /{name} -->"
    before, _, content_and_after = text.partition(start)
    _, _, after = content_and_after.partition(end)
    return f"{before}{start}{content}{end}{after}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Is preparation from an archive as fast as from the unpacked folder, and how long does a large listing take?

Writes N files (PNG or DICOM, 512x512) in class folders, packs them as ``.zip``, ``.tar`` and ``.tar.gz``,
and prepares each to 224x224 in this process, the forms interleaved over the repeats; the ratio is the
median over the repeats of archive over folder. Then lists 100,000 empty files named like images. "theirs"
is the unpacked folder: no peer prepares these layouts. ``--forms`` takes one form of archive at a time and
``--files-at`` keeps the files between such runs, so that each is a few minutes long.

Usage: python benchmarks/prepare_archives.py [--files 6000] [--kind png|dicom] [--forms zip tar tar.gz]
    [--files-at DIR] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import median

from prepare_scaling import SIDE, write_files

from search_spaces.datasets import own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
from tasks.sources import source_for
from tasks.sources.base import RawRequest

NUM_LISTED = 100_000
FORMS = ["zip", "tar", "tar.gz"]
SPEC = PreparedSpec(dataset="bench", image_size=224, channels=1)


def class_folders(flat: Path, folder: Path) -> None:
    """Sort what ``write_files`` made into two class folders, as its table says."""
    for line in (flat / "manifest.csv").read_text().splitlines()[1:]:
        name, label = line.split(",")
        target = folder / label / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        (flat / name).rename(target)


def pack(folder: Path, out: Path) -> None:
    """Pack a folder in all forms."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(out / "raw.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder).as_posix())
    for name, mode in (("raw.tar", "w"), ("raw.tar.gz", "w:gz")):
        with tarfile.open(out / name, mode, **({"compresslevel": 1} if mode == "w:gz" else {})) as archive:
            for path in files:
                archive.add(path, path.relative_to(folder).as_posix())


def make_files(out: Path, count: int, kind: str) -> None:
    """Write the folder and its archives, unless a run before did."""
    if (out / "raw.tar.gz").exists():
        return
    (out / "flat").mkdir(parents=True)
    write_files(out / "flat", count, kind)
    class_folders(out / "flat", out / "raw")
    pack(out / "raw", out)


def prepare(raw: Path, out: Path) -> float:
    """Return the CPU seconds of one preparation from scratch; wall time would measure the neighbours too."""
    own = OwnSourceSpec(kind="folder", path=str(raw), domain="natural")
    start = time.process_time()
    prepare_dataset(SPEC, own_dataset_spec("bench", own), raw=raw, destination=out, executor=InlineExecutor())
    seconds = time.process_time() - start
    shutil.rmtree(out)
    return seconds


def listing_seconds(folder: Path) -> float:
    """Return the wall seconds of listing 100,000 names in 1,000 group folders."""
    for group in range(1000):
        place = folder / str(group % 2) / f"p{group}"
        place.mkdir(parents=True)
        for number in range(NUM_LISTED // 1000):
            (place / f"{number}.png").touch()
    own = OwnSourceSpec(kind="folder", path=str(folder), domain="natural")
    start = time.perf_counter()
    listing = source_for("folder").list_items(RawRequest(own_dataset_spec("bench", own), SPEC, folder))
    if len(listing.items) != NUM_LISTED:
        raise RuntimeError(f"listed {len(listing.items)} of {NUM_LISTED}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=6_000)
    parser.add_argument("--kind", choices=("png", "dicom"), default="dicom")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--files-at", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = arguments.files_at or Path(name, "files")
        make_files(out, arguments.files, arguments.kind)
        forms = {"folder": out / "raw", **{form: out / f"raw.{form}" for form in arguments.forms}}
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(arguments.repeats):
            for form, raw in forms.items():
                seconds[form].append(prepare(raw, Path(name, "out")))
        listed = listing_seconds(Path(name, "many"))
    ratios = {
        form: median(ours / plain for ours, plain in zip(seconds[form], seconds["folder"], strict=True))
        for form in arguments.forms
    }
    result = {
        "name": "_".join(("prepare_archives", arguments.kind, *(() if len(forms) > 3 else arguments.forms))),
        "ours": {form: median(found) for form, found in seconds.items() if form != "folder"},
        "theirs": {"folder": median(seconds["folder"])},
        "ratio": max(ratios.values()),
        "ratios": ratios,
        "listing_100000_s": listed,
        "environment": {
            "files": arguments.files, "side": SIDE, "repeats": arguments.repeats, "num_cpus": os.cpu_count(),
            "load_average": os.getloadavg()[0], "python": platform.python_version(),
        },
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.files:,} {arguments.kind} files of {SIDE}x{SIDE} to 224x224, one process")
    for form, found in seconds.items():
        ratio = f"  {ratios[form]:.2f} x folder (target 1.3)" if form in ratios else ""
        print(f"  {form:8s} {median(found):7.1f} s{ratio}")
    print(f"  listing {NUM_LISTED:,} files: {listed:.1f} s (target 10)")


if __name__ == "__main__":
    main()

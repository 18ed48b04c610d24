"""Does preparation get faster with workers, and does its memory stay bounded?

Generates N files (PNG or DICOM, 512x512), prepares them to 224x224 with 1 and then with 2 Ray workers, and
prints the rates, their ratio and the peak resident memory of the busiest process. "theirs" is our own single
worker: no peer prepares these layouts. ``--files-at`` keeps the files for another run.

Usage: python benchmarks/prepare_scaling.py [--files 10000] [--kind png|dicom] [--files-at DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from search_spaces.datasets import own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import RayExecutor

SIDE = 512


def write_files(folder: Path, count: int, kind: str) -> None:
    """Write ``count`` files of both classes and their manifest; few distinct pictures, numbered to differ."""
    from PIL import Image

    # The generator of test files lies beside this folder, which a script's own path does not hold.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.raw_trees.dicoms import make_dicom, save_dicom

    base = np.random.default_rng(0).integers(0, 4000, (SIDE // 8, SIDE // 8)).astype(np.uint16)
    smooth = np.kron(base, np.ones((8, 8), np.uint16))
    lines = ["path,label"]
    for index in range(count):
        values = smooth.copy()
        values.flat[: 16 * 64] += np.repeat((index >> np.arange(16)) & 1, 64).astype(np.uint16) * 90
        name = f"{index % 100:02d}/{index}.{'png' if kind == 'png' else 'dcm'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if kind == "png":
            Image.fromarray((values >> 4).astype(np.uint8)).save(folder / name, compress_level=1)
        else:
            save_dicom(folder / name, make_dicom(values, patient=f"p{index // 4}", bits=12))
        lines.append(f"{name},{index % 2}")
    (folder / "manifest.csv").write_text("\n".join(lines))


class PeakMemory(threading.Thread):
    """Watches the unique memory of this process and its Ray workers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib, self._stop_event = 0.0, threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        import psutil

        while not self._stop_event.wait(0.2):
            for process in psutil.process_iter(["name", "cmdline"]):
                line = " ".join(process.info["cmdline"] or [])
                if line.startswith("ray::read_block") or process.pid == os.getpid():
                    try:
                        memory = process.memory_info()
                    except psutil.Error:
                        continue
                    self.peak_mib = max(self.peak_mib, (memory.rss - memory.shared) / 2**20)

    def stop(self) -> float:
        """Return the highest memory seen, in MiB."""
        self._stop_event.set()
        self.join()
        return self.peak_mib


def prepare(raw: Path, out: Path, kind: str, num_workers: int) -> tuple[float, float]:
    """Return (seconds, peak MiB of the busiest process)."""
    own = OwnSourceSpec(kind="csv" if kind == "png" else "dicom_csv", path=str(raw), domain="natural")
    watch = PeakMemory()
    watch.start()
    start = time.perf_counter()
    prepare_dataset(
        PreparedSpec(dataset="bench", image_size=224, channels=1),
        own_dataset_spec("bench", own),
        raw=raw,
        destination=out / f"workers{num_workers}",
        executor=RayExecutor(num_workers),
    )
    return time.perf_counter() - start, watch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kind", choices=("png", "dicom"), default="dicom")
    parser.add_argument("--files-at", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as name:
        few, raw, out = Path(name, "few"), arguments.files_at or Path(name, "raw"), Path(name, "out")
        few.mkdir()
        write_files(few, 64, arguments.kind)
        prepare(few, Path(name, "warm"), arguments.kind, 2)
        if not (raw / "manifest.csv").exists():
            write_files(raw, arguments.files, arguments.kind)
        times = {workers: prepare(raw, out, arguments.kind, workers) for workers in (1, 2)}
    (one, memory_one), (two, memory_two) = times[1], times[2]
    result = {
        "name": f"prepare_scaling_{arguments.kind}",
        "ours": {"files_per_s": arguments.files / two, "seconds": two, "peak_mib": memory_two},
        "theirs": {
            "one_worker": {"files_per_s": arguments.files / one, "seconds": one, "peak_mib": memory_one}
        },
        "ratio": one / two,
        "environment": {
            "files": arguments.files, "side": SIDE, "num_cpus": os.cpu_count(),
            "load_average": os.getloadavg()[0], "python": platform.python_version(), "ray": version("ray"),
        },
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{arguments.files:,} {arguments.kind} files of {SIDE}x{SIDE} to 224x224")
        for workers, (seconds, memory) in times.items():
            rate = arguments.files / seconds
            print(f"  {workers} worker(s): {seconds:7.1f} s  {rate:7.0f} files/s  peak {memory:6.0f} MiB")
        print(f"  ratio {one / two:.2f} (target 1.8)")


if __name__ == "__main__":
    main()

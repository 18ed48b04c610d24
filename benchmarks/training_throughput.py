"""How many images per second a training sees: resident tensor against a plain ``DataLoader``.

Theirs decodes and resizes every image of every epoch from a PNG file, as the released code of
Konz & Mazurowski does; ours decodes once, at preparation, and trains on rows of one tensor. Same network,
optimiser, batch size and epochs; both sides run in turns in this process and the best turn of each counts.
On a CPU both have one thread, as trials do, and seconds are those the process spent computing, so that
other work on the machine does not decide the ratio; on a GPU they are wall time.

    python benchmarks/training_throughput.py [--json] [--device cuda] [--turns 3]

The settings differ in how much of the time is the network's: with ResNet-18 at 224 pixels a CPU is busy
with convolutions and no loader matters much; the row without a network shows what each side's input costs,
which is what limits a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from search_spaces.models import model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials.models import build_model
from tasks.trials.seeding import deterministic
from tasks.trials.training import resident, split_batches, train


@dataclass(frozen=True)
class Setting:
    """One row: which network (None: input only), image side, side of the PNG files, images, batch, epochs."""

    model: str | None
    image_size: int
    png_size: int
    num_images: int
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """As printed."""
        return f"{self.model or 'input only'}, {self.image_size} px from {self.png_size} px PNG"


# ResNet-18 with the released batch size; a BraTS slice is 240 pixels wide, radiographs come at 512 and more.
SETTINGS = (
    Setting("resnet18", 224, 512, 40, 40, 1),
    Setting("small_cnn", 32, 240, 200, 32, 3),
    Setting("small_mlp", 32, 240, 200, 32, 3),
    Setting(None, 224, 512, 80, 40, 2),
)


class PngFiles(Dataset):
    """Decode and resize at every access."""

    def __init__(self, paths: list[Path], labels: torch.Tensor, image_size: int) -> None:
        self.paths, self.labels, self.image_size = paths, labels, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.paths[index]) as image:
            resized = transforms.resize(
                image.convert("L"), [self.image_size, self.image_size], antialias=True
            )
            return transforms.pil_to_tensor(resized).float(), self.labels[index]


def write_images(folder: Path, setting: Setting) -> tuple[list[Path], torch.Tensor]:
    """Smooth shapes with some noise: PNGs that compress about as well as radiographs do."""
    generator = np.random.default_rng(0)
    paths = []
    for index in range(setting.num_images):
        coarse = Image.fromarray(generator.integers(0, 230, (16, 16), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((setting.png_size, setting.png_size), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index:05d}.png")
        Image.fromarray(noisy).save(paths[-1])
    return paths, torch.arange(setting.num_images) % 2


def network(setting: Setting, device: str) -> nn.Module:
    assert setting.model is not None
    return build_model(
        model_spec(setting.model),
        num_outputs=2,
        in_channels=1,
        input_scale=1 / 255,
        dropout=None,
        seed=0,
        image_size=setting.image_size,
    ).to(device)


def theirs(files: PngFiles, setting: Setting, device: str) -> None:
    loader = DataLoader(files, batch_size=setting.batch_size, shuffle=True)
    model = network(setting, device) if setting.model else None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4) if model else None
    for _ in range(setting.epochs):
        for pixels, labels in loader:
            pixels, labels = pixels.to(device), labels.to(device)
            if model is None or optimizer is None:
                continue
            optimizer.zero_grad()
            F.cross_entropy(model(pixels), labels).backward()
            optimizer.step()


def ours(images: torch.Tensor, labels: torch.Tensor, setting: Setting, device: str) -> None:
    if setting.model is None:
        for _ in range(setting.epochs):
            for rows in split_batches(torch.randperm(len(images)).to(device), setting.batch_size):
                images[rows].to(torch.float32)
        return
    recipe = RecipeSpec(name="throughput", batch_size=setting.batch_size, epochs=setting.epochs)
    train(network(setting, device), images, labels, recipe, seed=0, device=device)


def seconds(work: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(setting: Setting, device: str, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, deterministic(device, num_threads=1):
        files = PngFiles(*write_images(Path(folder), setting), setting.image_size)
        start = time.perf_counter()
        array = torch.stack([files[index][0] for index in range(len(files))]).to(torch.uint8).numpy()
        preparation = time.perf_counter() - start
        images, labels = resident(array, device), files.labels.to(device)
        best = {"ours": float("inf"), "theirs": float("inf")}
        for _ in range(turns):
            best["theirs"] = min(best["theirs"], seconds(lambda: theirs(files, setting, device), device))
            best["ours"] = min(best["ours"], seconds(lambda: ours(images, labels, setting, device), device))
    seen = setting.num_images * setting.epochs
    return {
        "setting": setting.name,
        "ours": seen / best["ours"],
        "theirs": {"plain DataLoader": seen / best["theirs"]},
        "ratio": best["theirs"] / best["ours"],
        "preparation_seconds_per_image": preparation / setting.num_images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    rows = [measure(setting, arguments.device, arguments.turns) for setting in SETTINGS]
    study = rows[0]
    result = {
        "name": "training_throughput",
        "unit": "images per second",
        "ours": study["ours"],
        "theirs": study["theirs"],
        "ratio": study["ratio"],
        "settings": rows,
        "environment": {
            "device": torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine(),
            "threads": 1,
            "seconds": "of computing" if arguments.device == "cpu" else "of wall time",
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"images per second, {arguments.device}, one thread")
    for row in rows:
        plain = row["theirs"]["plain DataLoader"]
        print(
            f"{row['setting']:<40}  ours {row['ours']:>10.1f}  DataLoader {plain:>8.1f}  x{row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()

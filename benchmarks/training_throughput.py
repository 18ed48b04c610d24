"""CPU time per image in training: ours against a plain loop over image files.

Theirs decodes and resizes every image in every epoch from a PNG file, as the released code of Konz
& Mazurowski does. It trains in float32 with PyTorch's defaults. Ours decodes once, during
preparation. It trains on rows of one tensor, channels last, in the precision of the study's recipe
(bfloat16; float32 for the demo's network), in a process that does not return freed pages to the
system. "in memory" is the plain loop without files. It shows the ratio if decoding costs nothing.

Each side has its own process with one thread, as trials have. The sides take turns, and each turn
of ours is compared with the turn of theirs next to it, so that other load on the machine affects
both. The median of these ratios counts. Networks are built before the timing. Seconds are processor
time of the process, and wall time on a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from harness import Result, run
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from search_spaces.models import model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials.image_tensors import to_device
from tasks.trials.isolation import deterministic, keep_freed_memory
from tasks.trials.models import build_model
from tasks.trials.training import train


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark.

    The fields are the network, image side, side of the PNG files, number of images, batch size,
    epochs, our precision and the target.
    """

    model: str
    image_size: int
    png_size: int
    num_images: int
    batch_size: int
    epochs: int
    precision: Literal["float32", "bfloat16"]
    goal: float

    @property
    def name(self) -> str:
        """Return the name for printing."""
        return (
            f"{self.model}, {self.image_size} px from {self.png_size} px PNG, batch "
            f"{self.batch_size}"
        )


# The released batch sizes; a BraTS slice is 240 pixels wide, radiographs come at 512 and more.
SETTINGS = (
    Setting("resnet18", 224, 512, 40, 40, 1, "bfloat16", 2.5),
    Setting("vgg13", 224, 512, 12, 6, 1, "bfloat16", 2.3),
    Setting("resnet18", 64, 240, 160, 40, 2, "bfloat16", 1.9),
    Setting("vgg13", 64, 240, 24, 6, 1, "bfloat16", 1.9),
    Setting("small_cnn", 32, 240, 320, 32, 4, "float32", 1.9),
)


class PngFiles(Dataset):
    """A dataset that decodes and resizes a PNG file at every access."""

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
    """Write PNG files of smooth shapes with some noise.

    They compress about as well as radiographs.
    """
    generator = np.random.default_rng(0)
    paths = []
    for index in range(setting.num_images):
        coarse = Image.fromarray(generator.integers(0, 230, (16, 16), dtype=np.uint8))
        smooth = np.asarray(
            coarse.resize((setting.png_size, setting.png_size), Image.Resampling.BICUBIC)
        )
        noisy = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index:05d}.png")
        Image.fromarray(noisy).save(paths[-1])
    return paths, torch.arange(setting.num_images) % 2


def network(setting: Setting, device: str) -> nn.Module:
    usual = {"num_outputs": 2, "in_channels": 1, "input_scale": 1 / 255, "dropout": None, "seed": 0}
    return build_model(model_spec(setting.model), image_size=setting.image_size, **usual).to(device)


def plain(batches: Callable[[], Any], setting: Setting, device: str) -> Callable[[], None]:
    """Train as a tutorial does: in float32, with PyTorch's default memory layout and optimizer."""
    model = network(setting, device).to(memory_format=torch.contiguous_format).train()

    def turn() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
        for _ in range(setting.epochs):
            for pixels, labels in batches():
                optimizer.zero_grad()
                F.cross_entropy(model(pixels.to(device)), labels.to(device)).backward()
                optimizer.step()

    return turn


def side(name: str, setting: Setting, folder: str, device: str) -> Callable[[], None]:
    """Return a function that does one turn of the side ``name``."""
    paths = sorted(Path(folder).glob("*.png"))
    files = PngFiles(paths, torch.arange(len(paths)) % 2, setting.image_size)
    loader = DataLoader(files, batch_size=setting.batch_size, shuffle=True)
    if name == "image files":
        return plain(lambda: loader, setting, device)
    array = torch.stack([files[index][0] for index in range(len(files))]).to(torch.uint8).numpy()
    images, labels = to_device(array, device), files.labels.to(device)
    if name == "in memory":

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for rows in torch.randperm(len(images)).split(setting.batch_size):
                yield images[rows].float(), labels[rows]

        return plain(batches, setting, device)
    keep_freed_memory()
    settings = {
        "batch_size": setting.batch_size,
        "epochs": setting.epochs,
        "precision": setting.precision,
    }
    recipe, model = (
        RecipeSpec(name="throughput", learning_rate=1e-4, **settings),
        network(setting, device),
    )

    def ours() -> None:
        train(model, images, labels, recipe, seed=0, device=device)

    return ours


TURN: list[Callable[[], None]] = []
"""The work of this process, once it is set up."""


def set_up(name: str, setting: Setting, folder: str, device: str) -> None:
    ExitStack().enter_context(deterministic(device, num_threads=1))  # until the process ends
    TURN.append(side(name, setting, folder, device))


def take_turn(device: str) -> float:
    """Return the seconds of one turn."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    TURN[0]()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(setting: Setting, device: str, turns: int) -> dict[str, Any]:
    seen = setting.num_images * setting.epochs
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_images(Path(folder), setting)
        options: dict[str, Any] = {"mp_context": get_context("spawn"), "initializer": set_up}
        sides = [
            stack.enter_context(
                ProcessPoolExecutor(1, **options, initargs=(name, setting, folder, device))
            )
            for name in ("image files", "ours", "in memory")
        ]
        # In the first turn libraries set themselves up.
        rounds = [
            [one.submit(take_turn, device).result() for one in sides] for _ in range(turns + 1)
        ][1:]
    files_s, ours_s, memory_s = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "setting": setting.name,
        "precision": setting.precision,
        "ours": seen / ours_s,
        "theirs": {"image files": seen / files_s, "in memory": seen / memory_s},
        "ratio": statistics.median(files / ours for files, ours, _ in rounds),
        "ratio_in_memory": statistics.median(memory / ours for _, ours, memory in rounds),
        "goal": setting.goal,
    }


def training_throughput(*, device: str = "cpu", turns: int = 3, only: str = "") -> Result:
    """Measure images per second for all settings, or for models whose name contains ``only``.

    The ratio is that of the first setting.
    """
    rows = [measure(setting, device, turns) for setting in SETTINGS if only in setting.model]
    return {
        **{name: rows[0][name] for name in ("ours", "theirs", "ratio")},
        "unit": "images per second " + ("of computing" if device == "cpu" else "of wall time"),
        "settings": rows,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "bfloat16_instructions": torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported(),
        "threads": 1,
        "turns": turns,
    }


if __name__ == "__main__":
    run(training_throughput)

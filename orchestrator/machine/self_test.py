"""Whether captured graphs give the numbers of the libraries' own path on this GPU, and are not
slower.

A network is trained three times from the same start, inside the determinism that trials use:
plainly (A), plainly again (A'), and by captured graphs (F). What two plain trainings differ by is
the GPU's own noise; F may differ from A by four times as much. The loss of the first batch is
compared with float32 on the CPU, so that a GPU that is wrong in all three is found. ``python -m
orchestrator.machine.self_test`` runs it in a process of its own, which a broken capture cannot
outlive, and prints the verdict as JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.machine.gpus import capability
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from search_spaces.models import model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials.isolation import contained, deterministic, trial_memory
from tasks.trials.models import PixelModel, build_model
from tasks.trials.training import as_pixels, autocast, train

NUM_EPOCHS = 6
"""A ragged batch comes once an epoch: it is captured in the fourth, and replayed in two more."""
NOISE_FACTOR = 4.0
LEAST_NOISE = {"loss": 1e-5, "weight": 1e-6}
"""Also where two plain trainings agree to the last bit: some hundred roundings of a loss in
float32, and a hundredth of what one step of Adam moves a weight at the test's learning rate."""
LEAST_SPREAD = 0.05
"""Of the seconds of plain steps: graphs are slower when they take so much longer than the slower of
two plain trainings, or longer by what these differ by, where that is more."""
FIRST_LOSS_TOLERANCE = 2e-2
"""Of the first batch's loss in bfloat16 to float32's: bfloat16 keeps 8 bits."""


@dataclass(frozen=True)
class Case:
    """A network that is trained, with a batch that leaves a ragged rest."""

    model: str
    batch_size: int
    num_images: int = 110
    image_size: int = 224


CASES = (Case("resnet18", 40), Case("vgg13", 6))
SMALL_CASES = (Case("resnet18", 8, 18, 32), Case("small_cnn", 8, 18, 32))
"""For a CPU, which has no graphs: they try the test itself."""


@dataclass(frozen=True)
class CaseResult:
    """What a case found.

    Attributes:
        losses: largest difference of an epoch's loss: between A and A', and between F and A.
        weights: of a weight, likewise.
        first_loss: of the first batch: on the device, and in float32 on the CPU.
        seconds: of a plain epoch, of the other training's, and of one by graphs, captures not
            counted.
    """

    model: str
    losses: tuple[float, float]
    weights: tuple[float, float]
    first_loss: tuple[float, float]
    seconds: tuple[float, float, float]

    @property
    def problem(self) -> str:
        """What is wrong, in one line; empty where nothing is."""
        here, on_cpu = self.first_loss
        if not abs(here - on_cpu) <= FIRST_LOSS_TOLERANCE:
            return f"{self.model}: the first loss is {here:.4f}, on the CPU {on_cpu:.4f}"
        for what, (spread, difference) in (("loss", self.losses), ("weight", self.weights)):
            if not difference <= NOISE_FACTOR * max(spread, LEAST_NOISE[what]):  # false for NaN
                between = f"between two plain trainings by {spread:.1e}"
                return f"{self.model}: a {what} differs by {difference:.1e}, {between}"
        return ""


@dataclass(frozen=True)
class Verdict:
    """Whether graphs are taken, in one line why not, and whether an error ended it or they were
    slower.
    """

    graphs: bool
    reason: str
    seconds: float
    cases: tuple[CaseResult, ...]
    error: bool = False
    slower: bool = False


def run(device: torch.device, cases: Sequence[Case] = CASES) -> Verdict:
    """Run the self-test on a device; nothing that it meets is raised."""
    start, results, failed, slower = time.perf_counter(), list[CaseResult](), False, False
    try:
        for case in cases:
            results.append(run_case(case, device))
        reason = "; ".join(result.problem for result in results if result.problem)
        plain, again, graph = (
            sum(times) for times in zip(*(case.seconds for case in results), strict=True)
        )
        slower = graph > max(plain, again) + max(abs(plain - again), LEAST_SPREAD * plain)
        if slower and not reason:
            reason = (
                f"they take {graph:.2f} s an epoch, plain steps {plain:.2f} s and {again:.2f} s"
            )
    except Exception as error:  # whatever a driver, a library or a capture does
        first = (str(error).splitlines() or [""])[0][:300]
        reason, failed = f"{case.model}: {type(error).__name__}: {first}", True
    return Verdict(not reason, reason, time.perf_counter() - start, tuple(results), failed, slower)


def run_case(case: Case, device: torch.device) -> CaseResult:
    """Train one network three times and compare."""
    images, labels = noise(case.num_images, case.image_size)
    half = device.type != "cuda" or capability() >= BFLOAT16_FROM
    recipe = RecipeSpec(
        name="self-test",
        epochs=NUM_EPOCHS,
        batch_size=case.batch_size,
        learning_rate=1e-4,
        input_scale=1 / 255,
        precision="bfloat16" if half else "float32",
    )
    # Graphs draw other numbers than Python does, which is no fault; without dropout nothing is
    # drawn.
    dropout = None if case.model.startswith("resnet") else 0.0

    def trained(*, graphs: bool) -> tuple[Tensor, Tensor, float]:
        """Return all epochs' losses, all weights, and the seconds of an epoch once all is
        captured.
        """
        model = built(case.model, case.image_size, dropout)
        history = train(model, images, labels, recipe, seed=0, device=device, graphs=graphs)
        weights = torch.cat(
            [value.detach().double().flatten().cpu() for value in model.state_dict().values()]
        )
        losses = torch.tensor([record.train_loss for record in history], dtype=torch.float64)
        return losses, weights, min(record.seconds for record in history[-2:])

    with trial_memory(device), contained(0, device), deterministic(device):
        start = built(case.model, case.image_size, dropout)
        first, classes = images[: case.batch_size], labels[: case.batch_size]
        expected = _first_loss(start, first, classes, "float32")
        found = _first_loss(
            start.to(device), first.to(device), classes.to(device), recipe.precision
        )
        plain, graph, again = (trained(graphs=graphs) for graphs in (False, True, False))
    losses = _largest(plain[0], again[0]), _largest(plain[0], graph[0])
    weights = _largest(plain[1], again[1]), _largest(plain[1], graph[1])
    seconds = plain[2], again[2], graph[2]
    return CaseResult(case.model, losses, weights, (found, expected), seconds)


def noise(number: int, side: int) -> tuple[Tensor, Tensor]:
    """Return seeded images of noise (``number`` x 1 x ``side`` x ``side``, bytes), and two labels
    in turn.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 1, side, side), generator=draw, dtype=torch.uint8)
    return images, torch.arange(number) % 2


def built(model: str, side: int, dropout: float | None = None) -> PixelModel:
    """Return a network for such images, from a fixed start, on the CPU."""
    return build_model(
        model_spec(model),
        num_outputs=2,
        in_channels=1,
        input_scale=1 / 255,
        dropout=dropout,
        seed=0,
        image_size=side,
    )


def _first_loss(model: PixelModel, images: Tensor, labels: Tensor, precision: str) -> float:
    with torch.no_grad(), autocast(precision, images.device):
        return float(F.cross_entropy(model.train()(as_pixels(images)).float(), labels))


def _largest(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        return math.inf
    return float((first - second).abs().max())


def main() -> None:
    """Run on the device that is named."""
    device = torch.device(sys.argv[1])
    verdict = run(device, CASES if device.type == "cuda" else SMALL_CASES)
    print(json.dumps(asdict(verdict)))  # noqa: T201


if __name__ == "__main__":
    main()

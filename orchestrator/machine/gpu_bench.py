"""The networks, images and settings of ``isweep gpu-check``.

On a GPU, ``isweep gpu-check`` uses the networks of the paper's trials. With ``--device cpu``
it uses one small network, which is enough to test the command itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.self_test.case import SMALL_CASES, Case
from orchestrator.machine.self_test.network import build_network, random_images
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.models import PAPER_MODELS
from search_spaces.specs import NetworkSpec, TrialSpec
from tasks.trials.isolation import deterministic, fixed_torch_state, trial_memory
from tasks.trials.models import PixelModel
from tasks.trials.records import CONTEXT_BYTES, EpochRecord
from tasks.trials.training import train

CPU_IMAGE_SIZE = 16
"""Height and width in pixels of the images that are used on a CPU."""
SLOW_PART_MODELS = ("resnet18", "vgg16")
"""Networks that the slow measurements use. These measurements take minutes for each
network."""
BATCHES_PER_EPOCH = 10
"""Number of training batches in an epoch."""
WARM_UP_EPOCHS = 4
"""Number of first epochs whose times are ignored. The first epoch contains three warm-up steps
and the capture of the CUDA graph."""
MAX_EPOCHS = 10**6
"""Number of epochs of a training that is stopped when its measurement is over. No measurement
needs so many epochs."""


class _MeasurementOver(Exception):
    """Error that ends a training after an epoch, because its measurement is over."""


@dataclass(frozen=True)
class Bench:
    """A device on which times and memory are measured, with the networks and settings of its
    trials.

    Attributes:
        device: the device, a GPU or a CPU.
        models: names of the networks.
        image_size: height and width of the images in pixels.
        bfloat16: True if trials train in bfloat16, False if they train in float32.
        graphs: names of the networks whose trials use CUDA graphs.
    """

    device: torch.device
    models: tuple[str, ...]
    image_size: int
    bfloat16: bool = True
    graphs: Set[str] = frozenset()

    @property
    def on_gpu(self) -> bool:
        """True if the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def slow_part_models(self) -> tuple[str, ...]:
        """Networks for the slow measurements. On a GPU, one has batch norm and the other has
        none.
        """
        return SLOW_PART_MODELS if self.on_gpu else self.models

    @property
    def trials(self) -> tuple[TrialSpec, ...]:
        """The trials whose hours are predicted. On a GPU these are the paper's trials, on a
        CPU the demo's.
        """
        return paper_or_demo_trials(self.on_gpu, self.bfloat16)

    def trial(self, model: str) -> TrialSpec:
        """Return the trial of this network that has the most training images."""
        trials = [trial for trial in self.trials if trial.network.model.name == model]
        return max(trials, key=lambda trial: trial.network.train_size)

    def network(self, model: str) -> NetworkSpec:
        """Return the network spec of the trial that has the most training images."""
        return self.trial(model).network

    def batch_size(self, model: str) -> int:
        """Return the batch size of a network's recipe."""
        return self.network(model).recipe.batch_size

    def self_test_cases(self) -> tuple[Case, ...]:
        """Return the cases of the self-test. Each case is a network with the settings of its
        trials.
        """
        if not self.on_gpu:
            return SMALL_CASES
        # No trial runs during the check, so the self-tests can use all cores.
        num_threads = len(os.sched_getaffinity(0))
        return tuple(Case.of_network(self.network(model), num_threads) for model in self.models)

    def images(self, num_images: int) -> tuple[Tensor, Tensor]:
        """Return random images with one channel, and alternating labels 0 and 1. Both are on
        the device.
        """
        images, labels = random_images(num_images, self.image_size)
        return images.to(self.device), labels.to(self.device)

    def build(self, model: str) -> PixelModel:
        """Build a network on the device, with the memory layout that its training uses."""
        spec = self.network(model).model
        network = build_network(Case(spec, 1, image_size=self.image_size))
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    @contextmanager
    def trial_settings(self, share: float | None = None) -> Iterator[None]:
        """Run a ``with`` block with the settings and the memory limit of a trial that has this
        share of the GPU.
        """
        with (
            trial_memory(self.device, share),
            fixed_torch_state(0, self.device),
            deterministic(self.device),
        ):
            yield

    def share_of(self, tensor_bytes: float) -> float:
        """Return the share of the GPU, at most 1, that has room for ``tensor_bytes`` of
        tensors.
        """
        total = torch.cuda.get_device_properties(self.device).total_memory
        return min(1.0, (CONTEXT_BYTES + tensor_bytes) / total)

    def reserved_bytes(self) -> int:
        """Return the bytes of GPU memory that this process has reserved for tensors."""
        return torch.cuda.memory_reserved(self.device) if self.on_gpu else 0

    def run_in_share(self, work: Callable[[], object], share: float | None = None) -> str:
        """Run ``work`` within a share of the GPU. Return its failure kind, or an empty text if
        it succeeds.
        """
        try:
            with self.trial_settings(share):
                work()
        except Exception as error:
            row = library_error(error)
            return type(error).__name__ if row is None else str(row.kind)
        return ""

    def train_network(
        self,
        model: str,
        images: Tensor,
        labels: Tensor,
        num_epochs: int,
        *,
        graphs: bool = False,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> list[float]:
        """Train a new network, and return the seconds of each epoch."""
        recipe = self.network(model).recipe.model_copy(update={"epochs": num_epochs})
        history = train(
            self.build(model),
            images,
            labels,
            recipe,
            seed=0,
            device=self.device,
            graphs=graphs,
            on_epoch=on_epoch,
        )
        return [record.seconds for record in history]

    def step_seconds(
        self,
        model: str,
        duration_s: float,
        *,
        graphs: bool,
        sample_load: Callable[[], object] = lambda: None,
    ) -> list[float]:
        """Train for at least ``duration_s`` seconds. Return the mean time of a step in
        seconds, for each measured epoch.

        All batches are full. The first epochs are ignored.

        Args:
            model: name of the network.
            duration_s: smallest total time of the measured epochs, in seconds.
            graphs: True if steps are captured as graphs.
            sample_load: function that runs in a thread after half of the duration. The
                training continues until this function returns, so the GPU is busy all the
                time.
        """
        # The training calls `measure` after each epoch:
        # 1. Ignore the first epochs.
        # 2. After half of the duration, start `sample_load` in a thread.
        # 3. After the whole duration, end the training as soon as `sample_load` has returned.
        epoch_seconds: list[float] = []
        load_sample: Future[object] | None = None

        def measure(record: EpochRecord) -> None:
            nonlocal load_sample
            if record.epoch <= WARM_UP_EPOCHS:
                return
            epoch_seconds.append(record.seconds)
            measured_s = sum(epoch_seconds)
            if load_sample is None and measured_s >= duration_s / 2:
                load_sample = pool.submit(sample_load)
            is_long_enough = len(epoch_seconds) >= 2 and measured_s >= duration_s
            if is_long_enough and load_sample is not None and load_sample.done():
                raise _MeasurementOver

        with ThreadPoolExecutor(max_workers=1) as pool:
            self._train_until_over(model, measure, graphs=graphs)
        return [seconds / BATCHES_PER_EPOCH for seconds in epoch_seconds]

    def images_per_second(
        self,
        model: str,
        duration_s: float,
        wait_for_start: Callable[[], None],
        *,
        graphs: bool,
    ) -> float:
        """Return how many images per second a training processes during a period of time.

        Args:
            model: name of the network.
            duration_s: length of the period in seconds.
            wait_for_start: function that is called after the first epochs. The period starts
                when the function returns.
            graphs: True if steps are captured as graphs.
        """
        epoch_ends: list[float] = []

        def measure(record: EpochRecord) -> None:
            if record.epoch < WARM_UP_EPOCHS:
                return
            if record.epoch == WARM_UP_EPOCHS:
                wait_for_start()
            epoch_ends.append(time.perf_counter())
            if epoch_ends[-1] - epoch_ends[0] >= duration_s and len(epoch_ends) > 2:
                raise _MeasurementOver

        self._train_until_over(model, measure, graphs=graphs)
        num_images = (len(epoch_ends) - 1) * BATCHES_PER_EPOCH * self.batch_size(model)
        return num_images / (epoch_ends[-1] - epoch_ends[0])

    def _train_until_over(
        self, model: str, measure: Callable[[EpochRecord], None], *, graphs: bool
    ) -> None:
        """Train with full batches until ``measure`` raises :class:`_MeasurementOver`.

        ``measure`` is called after each epoch.
        """
        images, labels = self.images(BATCHES_PER_EPOCH * self.batch_size(model))
        with suppress(_MeasurementOver):
            self.train_network(model, images, labels, MAX_EPOCHS, graphs=graphs, on_epoch=measure)


@cache
def paper_or_demo_trials(on_gpu: bool, bfloat16: bool) -> tuple[TrialSpec, ...]:
    """Return the paper's trials for a GPU, or the demo's trials for a CPU.

    If the GPU does not support bfloat16, the paper's trials train in float32.
    """
    changes = {}
    if on_gpu and not bfloat16:
        changes = {"recipe": {"from": "paper", "precision": "float32"}}
    name = "paper" if on_gpu else "demo"
    return tuple(plan_sweep(load_sweep(name, changes=changes)).trials)


def make_bench(device: str, *, bfloat16: bool = True, graphs: Set[str] = frozenset()) -> Bench:
    """Return the bench for a device, which is ``cuda`` or ``cpu``."""
    if device == "cpu":
        return Bench(torch.device(device), ("small_cnn",), CPU_IMAGE_SIZE)
    return Bench(torch.device(device), tuple(PAPER_MODELS), 224, bfloat16, graphs)

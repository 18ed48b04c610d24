"""Capture training steps as CUDA graphs, and replay them.

The batches of the study have 6 to 40 images. With such small batches, a step of a ResNet
spends most of its time on the launch of 274 to 687 kernels. A CUDA graph launches all these
kernels at once. A graph always reads and writes the same memory, so the images, labels and
weights of a step must stay at the same addresses. The gradients are in the memory of the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

WARM_UP_STEPS = 3
"""Number of training steps before a capture. PyTorch's notes on CUDA graphs recommend this
number."""


class CaptureError(RuntimeError):
    """A training step could not be captured as a CUDA graph.

    The memory of the failed capture stays allocated until the process ends (pytorch#190308).
    """


TakeStep = Callable[[Tensor], None]
"""Function that takes one training step. Its argument contains the indices of the batch's
images, ``(batch_size,)``."""
Replay = Callable[[], None]
"""Function that replays a captured graph. On a machine without a GPU, tests use a function
that runs the captured work directly."""
Capture = Callable[[Callable[[], None]], Replay]
"""Function that captures the work of its argument as a graph, as :func:`capture_graph` does.
It does not run the work."""


def capture_graph(work: Callable[[], None]) -> Replay:
    """Capture ``work`` as a CUDA graph on the current device, without running it.

    Returns:
        A function that replays the graph.

    Raises:
        CaptureError: ``work`` cannot be captured. The attribute ``__cause__`` contains the
            original error.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptureError(f"a step could not be captured: {reason}") from error
    replay: Replay = graph.replay
    return replay


class CapturedSteps:
    """The CUDA graphs of a training step, one graph per batch size.

    There are at most two batch sizes: the size of full batches, and the size of the last batch
    of an epoch. PyTorch requires a few steps on a side stream before a capture. So the first
    :data:`WARM_UP_STEPS` batches of each size run without a graph. These steps are part of the
    training: a training with graphs takes the same steps as a training without graphs.

    No graph is deleted before the training ends. If one graph were deleted earlier, the other
    graphs of its stream would lose the workspace of cuBLAS (pytorch#193402).

    Args:
        step: The step to capture, such as a :class:`tasks.trials.steps.Step`.
        capture: Function that captures the work of a step, as :func:`capture_graph` does.
    """

    def __init__(self, step: TakeStep, capture: Capture = capture_graph) -> None:
        self._step = step
        self._capture = capture
        # The keys of these dictionaries are batch sizes. A graph reads the indices of its
        # images from the same tensor at every replay.
        self._rows: dict[int, Tensor] = {}
        self._replays: dict[int, Replay] = {}
        self._num_batches: dict[int, int] = {}

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images with these indices, ``(batch_size,)`` int64."""
        size = len(rows)
        self._num_batches[size] = self._num_batches.get(size, 0) + 1
        if self._num_batches[size] <= WARM_UP_STEPS:
            with side_stream(rows.device):
                self._step(rows)
            return
        if size not in self._replays:
            self._rows[size] = rows.clone()
            # The capture does not run the step. For this batch too, the replay below runs the
            # step.
            self._replays[size] = self._capture(lambda: self._step(self._rows[size]))
        self._rows[size].copy_(rows)
        self._replays[size]()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run a ``with`` block on a side stream. On a CPU, run the block without a stream.

    The block starts after the earlier work of the current stream has finished. The current
    stream then waits for the work of the block.
    """
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # Each process has only one side stream per device, because streams cannot share cached
    # memory, and cuBLAS allocates a workspace for each stream.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

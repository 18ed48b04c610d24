"""Executors. They run the same calls either as Ray tasks on a cluster or in this process.

This is the only module of the package ``tasks`` that imports Ray.
"""

from __future__ import annotations

import copy
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from search_spaces.errors import SetupError, SweepError

MAX_RETRIES = 3
"""Number of times that Ray starts a task again after its worker died. A worker can die for
reasons outside the task: the provider takes a spot node back, or the kernel kills a process to
free memory. If the worker of a task dies four times in a row, the task is probably the
reason."""
CANCEL_AFTER_S = 1.0
"""Seconds that this process waits for running calls to end before it cancels them."""
NOTE_AFTER_S = 60.0
"""Seconds without a finished call after which the executor prints a note that other work may
use all CPUs."""
NODE_TIMEOUT_S = 60.0
"""Seconds that this process waits until a node reports whether a path exists."""


class Executor(ABC):
    """The interface of all executors.

    Attributes:
        num_workers: Number of calls that run at the same time. Callers use it to decide into
            how many calls they divide their work.
    """

    num_workers = 1

    def with_label(self, label: str) -> Executor:
        """Return an executor that shows ``label`` in the displayed names of its calls."""
        return self

    def share(self, value: Any) -> Any:
        """Return a handle of a value. Pass the handle instead of the value if many calls need
        it.
        """
        return value

    @abstractmethod
    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index of the argument tuple, result)`` whenever a call has finished.

        Args:
            function: Function to call with each argument tuple. If an argument is a handle
                from :meth:`share`, the function receives the value.
            argument_tuples: One tuple for each call.
            spread: True to distribute the calls over the nodes of a cluster.
        """


class InlineExecutor(Executor):
    """An executor that calls functions in this process, where a debugger can step through them.

    Args:
        before_call: Function that runs before each call. It may raise an exception to stop the
            remaining calls.
    """

    def __init__(self, before_call: Callable[[], object] = lambda: None) -> None:
        self._before_call = before_call

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index, result)`` in the order of the argument tuples."""
        for index, arguments in enumerate(argument_tuples):
            self._before_call()
            yield index, function(*arguments)


class RayExecutor(Executor):
    """An executor that runs calls as Ray tasks on the cluster to which ``ray.init`` has connected.

    Args:
        driver_node_only: True to run every task on the node of this process. If the nodes do
            not share a file system, this is necessary for tasks that read or write files. If
            Ray was started without CPUs on this node, tasks use the CPUs of the machine.
        nodes: Ids of the nodes on which tasks may run; None for all nodes.
        note: Function that receives a message if tasks wait for CPUs that other work uses.
            Each call of :meth:`map_unordered` sends at most one message. Ray itself prints
            nothing.

    Raises:
        SetupError: Ray is not connected.
    """

    def __init__(
        self,
        *,
        driver_node_only: bool = False,
        nodes: Sequence[str] | None = None,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        import ray

        if not ray.is_initialized():
            raise SetupError(
                "Ray is not connected, so no work can be sent to it",
                hint="Call ray.init() first",
            )
        self.driver_node_only = driver_node_only
        self._note = note
        self._label = ""
        self._place = "the cluster"
        self._placement: dict[str, Any] = {}
        num_cpus = ray.cluster_resources().get("CPU", 1)
        if driver_node_only:
            node = ray.get_runtime_context().get_node_id()
            self._place = "the driver's node"
            self._placement = {"scheduling_strategy": _on_node(node)}
            num_cpus = num_cpus_by_node()[node]
            if num_cpus < 1:
                # Only this node has the files, but Ray was started without CPUs on it. A task
                # that reserves a CPU would wait for ever.
                self._placement["num_cpus"] = 0
                num_cpus = len(os.sched_getaffinity(0))
        elif nodes is not None:
            self._place = "the nodes that have the files"
            self._placement = {"label_selector": {"ray.io/node-id": f"in({','.join(nodes)})"}}
            cpus = num_cpus_by_node()
            num_cpus = sum(cpus.get(node, 0.0) for node in nodes)
        self.num_workers = max(1, int(num_cpus))

    def with_label(self, label: str) -> RayExecutor:
        """Return an executor that names its tasks ``LABEL FUNCTION 3/12`` in Ray's dashboard."""
        executor = copy.copy(self)
        executor._label = label
        return executor

    def share(self, value: Any) -> Any:
        """Put a value into Ray's object store. Tasks read its numpy arrays without a copy."""
        import ray

        return ray.put(value)

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index, result)`` whenever a call has finished. At most ``num_workers``
        calls run at a time.

        Each call reserves one CPU. During the call, BLAS and torch use only one thread.

        Args:
            function: Function to call with each argument tuple. Workers must be able to import
                it.
            argument_tuples: One tuple for each call. The executor takes a tuple only when it
                can start the call.
            spread: True to distribute calls over the nodes. With False, Ray fills the nearest
                node first, which is its default. True is faster if a call takes longer than
                sending its arguments.

        Raises:
            SweepError: A call raised this error.
            SetupError: The worker of a task died ``MAX_RETRIES + 1`` times.
        """
        import ray

        options: dict[str, Any] = {
            "num_cpus": 1,
            "max_retries": MAX_RETRIES,
            "retry_exceptions": False,
        }
        if spread:
            options["scheduling_strategy"] = "SPREAD"
        options.update(self._placement)
        task = ray.remote(_call_on_one_thread)
        task_name = self._task_name(function)
        count = f"/{len(argument_tuples)}" if isinstance(argument_tuples, Sized) else ""
        pending = enumerate(argument_tuples)
        in_flight: dict[Any, int] = {}
        timeout_s = self._note_after_s()
        try:
            while True:
                for index, arguments in islice(pending, self.num_workers - len(in_flight)):
                    call = task.options(**options, name=f"{task_name} {index + 1}{count}")
                    in_flight[call.remote(function, *arguments)] = index
                if not in_flight:
                    return
                finished, _ = ray.wait(list(in_flight), num_returns=1, timeout=timeout_s)
                if not finished:
                    self._note(
                        f"{task_name}: no task has finished for {NOTE_AFTER_S:.0f} s. Each task "
                        f"needs 1 CPU of {self._place}. If other work uses all CPUs, the "
                        "tasks start as soon as a CPU is free."
                    )
                timeout_s = None
                for reference in finished:
                    yield in_flight.pop(reference), _get(reference, function.__name__)
        finally:
            # If a call failed or the caller stops early, some tasks are still running. They
            # must not stay on the cluster.
            _cancel(list(in_flight))

    def _task_name(self, function: Callable[..., Any]) -> str:
        readable = function.__name__.strip("_").replace("_", " ")
        return f"{self._label} {readable}".strip()

    def _note_after_s(self) -> float | None:
        """Return the seconds after which a note is printed; None if there are free CPUs.

        Call this method before the first task starts, because tasks reserve CPUs. Ray cannot
        report the free CPUs of a single node. If tasks may run only on some nodes, this method
        therefore always returns a number.
        """
        import ray

        has_free_cpus = ray.available_resources().get("CPU", 0.0) >= 1
        if has_free_cpus and not self._placement:
            return None
        return NOTE_AFTER_S


def num_cpus_by_node() -> dict[str, float]:
    """Return the number of CPUs of each node of the cluster. The keys are node ids."""
    import ray

    return {
        node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]
    }


def _on_node(node: str) -> Any:
    """Return Ray's scheduling strategy for a task that may run only on the node with this id."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def nodes_that_see(path: Path) -> list[str]:
    """Return the ids of the nodes with CPUs on which ``path`` exists.

    The list does not contain nodes that do not answer within :data:`NODE_TIMEOUT_S` seconds.
    """
    import ray

    exists = ray.remote(os.path.exists)
    nodes: dict[Any, str] = {}
    for node, num_cpus in num_cpus_by_node().items():
        if num_cpus >= 1:
            call = exists.options(num_cpus=0, max_retries=0, scheduling_strategy=_on_node(node))
            nodes[call.remote(str(path))] = node
    if not nodes:
        return []
    answered, unanswered = ray.wait(list(nodes), num_returns=len(nodes), timeout=NODE_TIMEOUT_S)
    for reference in unanswered:
        ray.cancel(reference, force=True)
    nodes_with_path: list[str] = []
    for reference in answered:
        with suppress(ray.exceptions.RayError):  # the node was lost in the meantime
            if ray.get(reference):
                nodes_with_path.append(nodes[reference])
    return nodes_with_path


def _cancel(calls: list[Any]) -> None:
    """Wait for :data:`CANCEL_AFTER_S` seconds, then cancel the calls that are still running.

    A call may end at the moment in which this process cancels it. Ray then aborts this process
    with the error "Tried to complete task that was not pending". Waiting first makes this
    rare. The fix in ray-project/ray#54798 concerns another cause of this error.
    """
    import ray

    if not calls:
        return
    _, running = ray.wait(calls, num_returns=len(calls), timeout=CANCEL_AFTER_S)
    for call in running:
        ray.cancel(call, force=False)


def _get(reference: Any, name: str) -> Any:
    """Return the result of a call, or raise its SweepError or OSError without Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (SweepError, OSError)):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        raise SetupError(
            f"The worker of the task {name!r} died {MAX_RETRIES + 1} times",
            hint="Check the kernel log of the node for processes that were killed to free "
            "memory, and use fewer workers",
        ) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise SetupError(
            f"The task {name!r} needs more memory than its node has: {str(error).splitlines()[0]}",
            hint="Use fewer workers on each node",
        ) from error


def _call_on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while BLAS and torch use only one thread, because its task has one CPU."""
    from threadpoolctl import threadpool_limits

    # Importing torch takes seconds, so its threads are limited only if the worker has already
    # imported it.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    with threadpool_limits(1):
        return function(*arguments)

"""Executors: the same calls as Ray tasks on a cluster, or in this process.

This is the only module of the package that imports Ray.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from search_spaces.errors import SetupError, SweepError

MAX_RETRIES = 3
"""Attempts after the first. A worker may die for reasons outside the task (a spot node, the
kernel's memory killer), but a task whose worker dies four times in a row is itself the reason."""
ENDING_S = 1.0
"""Seconds that calls have to end by themselves before they are canceled."""
PATIENCE_S = 60.0
"""Seconds that calls wait for CPUs of other work before a note is printed."""


class InlineExecutor:
    """An executor that calls functions in this process, so that a debugger can step through.

    Args:
        go_on: called before each call. It may raise to stop.

    Attributes:
        num_workers: calls that run at a time. Callers cut their work accordingly.
    """

    num_workers = 1

    def __init__(self, go_on: Callable[[], object] = lambda: None) -> None:
        self._go_on = go_on

    def labelled(self, label: str) -> Executor:
        """Return an executor whose calls have ``label`` in their names, where names are shown."""
        return self

    def share(self, value: Any) -> Any:
        """Return a handle of a value that many calls take as an argument."""
        return value

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index of the argument tuple, result)`` as calls finish.

        Args:
            function: called with each argument tuple. Handles of :meth:`share` arrive as values.
            argument_tuples: one tuple per call.
            spread: spread the calls over the nodes of a cluster.
        """
        for index, arguments in enumerate(argument_tuples):
            self._go_on()
            yield index, function(*arguments)


Executor = InlineExecutor
"""The type of all executors."""


class RayExecutor(InlineExecutor):
    """An executor that runs calls as Ray tasks, on the cluster that ``ray.init`` has connected to.

    Args:
        driver_node_only: run every task on this process's node: for tasks that read or write files
            if the nodes share no file system. A node that was started without CPUs then uses those
            of the machine.
        nodes: ids of the nodes that tasks may run on; None for all.
        note: called once per map if its tasks wait for CPUs of other work. Ray waits silently.

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
                "Ray is not connected, so no work can be sent to it", hint="Call ray.init() first"
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
                # On a head without CPUs tasks would wait for ever, but only it has the files.
                self._placement["num_cpus"] = 0
                num_cpus = len(os.sched_getaffinity(0))
        elif nodes is not None:
            self._place = "the nodes that have the files"
            self._placement = {"label_selector": {"ray.io/node-id": f"in({','.join(nodes)})"}}
            cpus = num_cpus_by_node()
            num_cpus = sum(cpus.get(node, 0.0) for node in nodes)
        self.num_workers = max(1, int(num_cpus))

    def labelled(self, label: str) -> RayExecutor:
        """Return an executor whose tasks Ray's dashboard calls ``LABEL FUNCTION NUMBER/COUNT``."""
        labelled = copy.copy(self)
        labelled._label = label
        return labelled

    def share(self, value: Any) -> Any:
        """Put a value into the object store. Tasks read numpy arrays of it without a copy."""
        import ray

        return ray.put(value)

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index, result)`` as calls finish, with at most ``num_workers`` calls running.

        Each call reserves one CPU, and has BLAS and torch limited to one thread.

        Args:
            function: importable on the workers.
            argument_tuples: one tuple per call; read only as fast as calls finish.
            spread: spread calls over the nodes, instead of filling the nearest node first, as Ray
                does by default. It suits calls that take longer than sending their arguments.

        Raises:
            SweepError: a call raised it.
            SetupError: a task's worker died ``MAX_RETRIES + 1`` times.
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
                        f"{task_name}: nothing came back for {PATIENCE_S:.0f} s. Each task asks "
                        f"for 1 CPUs of {self._place}; where other work holds them, the tasks go "
                        "on as soon as some are free."
                    )
                timeout_s = None
                for reference in finished:
                    yield in_flight.pop(reference), _get(reference, function.__name__)
        finally:
            # An error, or a caller who stops early, must not leave tasks on the cluster.
            _end(list(in_flight))

    def _task_name(self, function: Callable[..., Any]) -> str:
        readable = function.__name__.strip("_").replace("_", " ")
        return f"{self._label} {readable}".strip()

    def _note_after_s(self) -> float | None:
        """Return after how many seconds a note is due; None if there are free CPUs.

        It is called before the first task, since the tasks themselves hold CPUs later. Ray does not
        know the free CPUs of a single node, so there a note is always due.
        """
        import ray

        has_free_cpus = ray.available_resources().get("CPU", 0.0) >= 1
        if has_free_cpus and not self._placement:
            return None
        return PATIENCE_S


def num_cpus_by_node() -> dict[str, float]:
    """Return the CPUs that each node of the connected cluster offers, by the node's id."""
    import ray

    return {
        node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]
    }


def _on_node(node: str) -> Any:
    """Return Ray's scheduling strategy of a task that runs on one node, and on no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def nodes_that_see(path: Path) -> list[str]:
    """Return the ids of the nodes with CPUs on which ``path`` exists.

    A node that does not answer within a minute is not among them.
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
    answered, silent = ray.wait(list(nodes), num_returns=len(nodes), timeout=PATIENCE_S)
    for reference in silent:
        ray.cancel(reference, force=True)
    seeing: list[str] = []
    for reference in answered:
        with suppress(ray.exceptions.RayError):  # the node was lost meanwhile
            if ray.get(reference):
                seeing.append(nodes[reference])
    return seeing


def _end(calls: list[Any]) -> None:
    """Cancel calls that do not end by themselves soon.

    Ray aborts this process if a call is canceled at the moment in which it ends: "Tried to
    complete task that was not pending" (ray-project/ray#54798 fixes another cause of it).
    """
    import ray

    if not calls:
        return
    _, running = ray.wait(calls, num_returns=len(calls), timeout=ENDING_S)
    for call in running:
        ray.cancel(call, force=False)


def _get(reference: Any, name: str) -> Any:
    """Return a result, or raise the call's SweepError without Ray's wrapping."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SweepError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        raise SetupError(
            f"The worker of the task {name!r} died {MAX_RETRIES + 1} times",
            hint="Look for the kernel's memory killer in the node's log, and use smaller blocks or "
            "fewer workers",
        ) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise SetupError(
            f"The task {name!r} needs more memory than its node has: {str(error).splitlines()[0]}",
            hint="Use smaller blocks or fewer workers per node",
        ) from error


def _call_on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with BLAS and torch limited to one thread: its task has reserved one CPU."""
    from threadpoolctl import threadpool_limits

    # Only if the worker has imported torch: to import it costs seconds.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    with threadpool_limits(1):
        return function(*arguments)

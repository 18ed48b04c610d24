"""The one place where this package meets Ray: the same calls on a cluster and in the same
process.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

from search_spaces.errors import SetupError, SweepError

# A worker may die for reasons outside the task (a spot node, the kernel's memory killer); a task
# that takes its worker down four times in a row is itself the reason, and trying again would never
# end.
MAX_RETRIES = 3
ENDING_S = 1.0
"""How long calls that are not wanted any more may take to end by themselves."""
PATIENCE_S = 60.0
"""How long calls may wait for CPUs that others hold before it is said."""


class InlineExecutor:
    """Runs many calls of one function, here in this process, so that a debugger can step through.

    ``go_on`` is called before each, and may raise.

    Attributes:
        num_workers: How many calls run beside each other; callers cut their work accordingly.
    """

    num_workers = 1

    def __init__(self, go_on: Callable[[], object] = lambda: None) -> None:
        self._go_on = go_on

    def labelled(self, label: str) -> Executor:
        """Return the same executor, whose calls are shown to people under ``label``, where they are
        shown.
        """
        return self

    def share(self, value: Any) -> Any:
        """Put a value where every call can read it, once; returns a handle to pass as an
        argument.
        """
        return value

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index of the argument tuple, result)`` as calls finish; handles arrive as
        values.
        """
        for index, arguments in enumerate(argument_tuples):
            self._go_on()
            yield index, function(*arguments)


Executor = InlineExecutor
"""Of any kind."""


class RayExecutor(InlineExecutor):
    """Runs calls as Ray tasks on the cluster that ``ray.init`` has already connected to.

    Args:
        driver_node_only: Run every task on this process's node: for tasks that read or write files,
            where the nodes share no file system. A node that was started without CPUs then uses the
            machine's.
        nodes: Ids of the nodes that tasks may run on; None for all.
        note: Told once a call when its tasks wait for CPUs that other work holds; Ray waits without
            a word.

    Raises:
        SetupError: If Ray is not connected.
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
                "Ray must be connected before work is sent to it", "", "call ray.init() first"
            )
        self.driver_node_only, self._note, self._label = driver_node_only, note, ""
        self._node_options: dict[str, Any] = {}
        self._where, available = "the cluster", ray.cluster_resources().get("CPU", 1)
        if driver_node_only:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            node = ray.get_runtime_context().get_node_id()
            self._where, available = "the driver's node", num_cpus_by_node()[node]
            self._node_options = {
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)
            }
            if available < 1:
                # A head that offers no CPUs would leave tasks waiting for ever; its files are only
                # there.
                self._node_options["num_cpus"], available = 0, len(os.sched_getaffinity(0))
        elif nodes is not None:
            self._where = "the nodes that have the files"
            self._node_options = {"label_selector": {"ray.io/node-id": f"in({','.join(nodes)})"}}
            available = sum(num_cpus_by_node().get(node, 0.0) for node in nodes)
        self.num_workers = max(1, int(available))

    def labelled(self, label: str) -> RayExecutor:
        """Return the same executor, whose tasks Ray's dashboard calls ``LABEL FUNCTION
        PLACE/COUNT``.
        """
        labelled = copy.copy(self)
        labelled._label = label
        return labelled

    def share(self, value: Any) -> Any:
        """Put a value into the object store once; numpy arrays are then read without a copy."""
        import ray

        return ray.put(value)

    def map_unordered(
        self,
        function: Callable[..., Any],
        argument_tuples: Iterable[Sequence[Any]],
        *,
        spread: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(index, result)`` in order of completion, with at most ``num_workers`` tasks in
        flight.

        Each asks for a CPU, and has BLAS and torch held to one thread.

        Args:
            function: Importable on the workers.
            argument_tuples: One tuple per call; read only as fast as calls finish.
            spread: Share calls out over the nodes, instead of filling the nearest node first, as
                Ray does by itself: for calls that take long enough for their arguments' way to
                other nodes.

        Raises:
            SweepError: The one a call raised, as itself.
            SetupError: If a task took its worker down ``MAX_RETRIES + 1`` times.
        """
        import ray

        options = {
            "num_cpus": 1,
            "max_retries": MAX_RETRIES,
            "retry_exceptions": False,
            **({"scheduling_strategy": "SPREAD"} if spread else {}),
            **self._node_options,
        }
        remote = ray.remote(_call_on_one_thread)
        in_flight: dict[Any, int] = {}
        arguments = enumerate(argument_tuples)
        count = f"/{len(argument_tuples)}" if isinstance(argument_tuples, Sized) else ""
        called = f"{self._label} {function.__name__.strip('_').replace('_', ' ')}".strip()
        # Later its own tasks hold CPUs too. What one node has free Ray does not tell.
        held = bool(self._node_options) or ray.available_resources().get("CPU", 0.0) < 1
        patience = PATIENCE_S if held else None
        try:
            while True:
                while (
                    len(in_flight) < self.num_workers
                    and (item := next(arguments, None)) is not None
                ):
                    named = remote.options(**options, name=f"{called} {item[0] + 1}{count}")
                    in_flight[named.remote(function, *item[1])] = item[0]
                if not in_flight:
                    return
                done, _ = ray.wait(list(in_flight), num_returns=1, timeout=patience)
                if not done:
                    self._note(
                        f"{called}: nothing came back for {PATIENCE_S:.0f} s. Each task asks for 1 "
                        "CPUs of "
                        f"{self._where}; where other work holds them, the tasks go on as soon as "
                        "some are "
                        "free."
                    )
                patience = None
                for reference in done:
                    yield in_flight.pop(reference), _get(reference, function.__name__)
        finally:
            # An error, or a caller who stops early, must not leave tasks eating the cluster.
            _end(list(in_flight))


def num_cpus_by_node() -> dict[str, float]:
    """Return the CPUs that each living node of the connected cluster offers, by the node's id."""
    import ray

    return {
        node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]
    }


def nodes_that_see(path: Path) -> list[str]:
    """Return the ids of nodes with CPUs on which ``path`` exists; one silent for a minute sees
    none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(os.path.exists)
    asked = {
        look.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(str(path)): node
        for node, num_cpus in num_cpus_by_node().items()
        if num_cpus >= 1
    }
    done, late = (
        ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S) if asked else ([], [])
    )
    for reference in late:
        ray.cancel(reference, force=True)
    seeing = []
    for reference in done:
        with suppress(ray.exceptions.RayError):  # a node that was lost meanwhile sees nothing
            seeing += [asked[reference]] if ray.get(reference) else []
    return seeing


def _end(calls: list[Any]) -> None:
    """Cancel calls, but for those that end by themselves soon.

    Ray aborts this process where a call is cancelled in the moment in which it ends, with "Tried to
    complete task that was not pending" (ray-project/ray#54798 closes another way to it).
    """
    import ray

    if calls:
        _, calls = ray.wait(calls, num_returns=len(calls), timeout=ENDING_S)
    for call in calls:
        ray.cancel(call, force=False)


def _get(reference: Any, name: str) -> Any:
    """Fetch a result; a user's mistake comes out as itself, without Ray's wrapping."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SweepError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        raise SetupError(
            f"The task {name!r} must not take its worker down",
            f"the worker died {MAX_RETRIES + 1} times",
            (
                "look for the kernel's memory killer in the node's log; use smaller blocks or "
                "fewer "
                "workers"
            ),
        ) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise SetupError(
            f"The task {name!r} must fit into the node's memory",
            str(error).splitlines()[0],
            "use smaller blocks or fewer workers per node",
        ) from error


def _call_on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call with BLAS and torch held to one thread, so that tasks side by side do not
    oversubscribe.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get(
        "torch"
    )  # only if the worker has it already: importing it costs seconds
    if torch is not None:
        torch.set_num_threads(1)
    with threadpool_limits(1):
        return function(*arguments)

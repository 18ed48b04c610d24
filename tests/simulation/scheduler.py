"""Virtual time, and threads of which one runs at a time. A seeded draw selects the next thread."""

from __future__ import annotations

import _thread
import math
from collections.abc import Callable
from random import Random
from typing import Any

LONGEST_S = 50_000.0
"""Seconds of virtual time after which a schedule counts as endless."""
MOST_STEPS = 200_000


def _closed() -> Any:
    """Return a gate that one release opens for one acquire."""
    gate = _thread.allocate_lock()
    gate.acquire()
    return gate


class Killed(BaseException):
    """The process of this thread is dead. Only the scheduler catches this exception."""


class Endless(Exception):
    """A schedule does not end: no thread can run, or threads run for ever."""


class Violation(BaseException):
    """A promise of the product is broken.

    It is no ``Exception``, so that the product does not handle it as an error of Tune.
    """


class Process:
    """Threads that die together, such as a driver's.

    Attributes:
        root: The root on which the driver works.
        clock_off_s: Seconds by which its wall clock is wrong.
        asked_to_stop: Whether a user stopped the driver.
        beside: Whether another driver worked at the same time.
        over: First words of the errors with which the sweep must end.
        frozen_until: Virtual second until which no thread runs: the process was suspended, or
            its machine slept.
        frozen_s: Seconds in which no thread ran, in all.
        taken: Whether another driver took over its lease in that time.
        token: The token of its lease.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = ""
        self.token = ""
        self.clock_off_s = 0.0
        self.over = set[str]()
        self.frozen_until = self.frozen_s = 0.0
        self.asked_to_stop = self.beside = self.taken = False
        self.dead = self.stopped = self.finished = False


class Task:
    """A thread that waits until the scheduler passes it the turn."""

    def __init__(
        self, scheduler: Scheduler, process: Process, target: Callable[[], None], name: str
    ) -> None:
        self.scheduler = scheduler
        self.process = process
        self.name = name
        self.until: float = 0.0
        self.ready: Callable[[], bool] | None = None
        self.done = False
        self.error = None
        self._turn = _closed()
        self._target = target

    def start(self) -> None:
        """Start the thread, so that the scheduler can pass it the turn."""
        self.until = self.scheduler.now
        self.scheduler.tasks.append(self)
        _thread.start_new_thread(self._run, ())

    def is_alive(self) -> bool:
        return not self.done

    def join(self, timeout: float | None = None) -> None:
        self.scheduler.wait(lambda: self.done, timeout)

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self.process.dead:
                self._target()
        except Killed:
            pass
        except BaseException as error:  # the world raises it in the test's own thread
            self.error = error
        self.done = True
        self.scheduler.hand_on(self)

    def may_run(self, now: float) -> bool:
        if self.process.dead or self.process.frozen_until > now:
            return self.process.dead
        return self.until <= now or (self.ready is not None and self.ready())

    def next_check_at(self, now: float) -> float:
        """Return the virtual second at which :meth:`may_run` must be checked again."""
        return self.until if self.process.frozen_until <= now else self.process.frozen_until


class Scheduler:
    """A scheduler that passes the turn from one task to the next.

    Attributes:
        now: Virtual seconds.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.num_steps = 0
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self._director = _closed()
        self._main: Task | None = None
        self._error: Endless | None = None

    def wait(self, ready: Callable[[], bool] | None, timeout: float | None) -> None:
        """Let other tasks run until ``ready`` returns true, or for ``timeout`` seconds.

        Raises:
            Killed: the process of the current task is dead.
            KeyboardInterrupt: the process was stopped, and the task is its main thread.
        """
        task = self.current
        assert task is not None
        task.until = math.inf if timeout is None else self.now + max(0.0, timeout)
        task.ready = ready
        if not self.hand_on(task):
            task._turn.acquire()
        if task.process.dead:
            raise Killed
        if task.process.stopped and task.name == task.process.name:
            task.process.stopped = False
            raise KeyboardInterrupt

    def hand_on(self, task: Task) -> bool:
        """Pass the turn to the next task, or to the director. Return True if ``task`` keeps it."""
        if self._main is None or self._main.done:
            self._director.release()
            return False
        try:
            self.current = self._next()
        except Endless as error:
            self._error = error
            self._director.release()
            return False
        if self.current is task:
            return True
        self.current._turn.release()
        return False

    def run(self, main: Task) -> None:
        """Pass turns until ``main``, which has started, is done.

        Raises:
            Endless: ``main`` is never done.
        """
        if main.done:
            return
        self._main = main
        self.current = self._next()
        self.current._turn.release()
        self._director.acquire()
        self._main = None
        if self._error is not None:
            raise self._error

    def _next(self) -> Task:
        while True:
            self.tasks = [task for task in self.tasks if not task.done]
            able = [task for task in self.tasks if task.may_run(self.now)]
            if able:
                break
            self.now = min(task.next_check_at(self.now) for task in self.tasks)
            if self.now > LONGEST_S:
                names = [task.name for task in self.tasks]
                raise Endless(f"still at work after {LONGEST_S:g} s: {names}")
        self.num_steps += 1
        if self.num_steps > MOST_STEPS:
            raise Endless(f"still at work after {MOST_STEPS:,} steps at {self.now:g} s")
        return able[0] if len(able) == 1 else self.random.choice(able)

    def bury(self, process: Process) -> None:
        """Let every thread of a process end."""
        process.dead = True
        for task in [task for task in self.tasks if task.process is process]:
            while not task.done:
                self.current = task
                task._turn.release()
                self._director.acquire()


class SimulatedCondition:
    """A :class:`threading.Condition` of simulated threads, with a lock that is reentrant."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._owner = None
        self._depth = 0
        self._notified = 0

    def __enter__(self) -> SimulatedCondition:
        me = self._scheduler.current
        if self._owner not in (None, me) and not self._owner.done:
            self._scheduler.wait(lambda: self._owner is None or self._owner.done, None)
        self._depth = self._depth + 1 if self._owner is me else 1
        self._owner = me
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner = None

    def notify_all(self) -> None:
        self._notified += 1

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        me = self._owner
        depth = self._depth
        end = None if timeout is None else self._scheduler.now + timeout
        while True:
            result = predicate()
            if result:
                return result
            remaining_s = None if end is None else end - self._scheduler.now
            if remaining_s is not None and remaining_s <= 0:
                return result
            num_notified = self._notified
            self._owner = None
            self._depth = 0
            self._scheduler.wait(lambda before=num_notified: self._notified > before, remaining_s)
            if self._owner is not None and not self._owner.done:
                self._scheduler.wait(lambda: self._owner is None or self._owner.done, None)
            self._owner = me
            self._depth = depth


class SimulatedClock:
    """The clock of one process: virtual seconds, and a wall clock that can be set wrong."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process

    def time(self) -> float:
        return 1.8e9 + self._scheduler.now + self._process.clock_off_s

    def monotonic(self) -> float:
        return self._scheduler.now

    def sleep(self, seconds: float) -> None:
        self._scheduler.wait(None, seconds)

    def condition(self) -> SimulatedCondition:
        return SimulatedCondition(self._scheduler)

    def thread(self, target: Callable[[], None], name: str) -> Task:
        return Task(self._scheduler, self._process, target, name)

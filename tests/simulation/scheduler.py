"""Virtual time and threads of which one runs at a time: which one, a seeded draw decides."""

from __future__ import annotations

import _thread
import math
from collections.abc import Callable
from random import Random
from typing import Any

LONGEST_S = 50_000.0
"""Of virtual time: a schedule that takes longer does not end."""
MOST_STEPS = 200_000


def _closed() -> Any:
    """Return a gate that one release opens for one acquire."""
    gate = _thread.allocate_lock()
    gate.acquire()
    return gate


class Killed(BaseException):
    """The process of this thread is gone; nothing catches it but the scheduler."""


class Endless(Exception):
    """Nothing can happen any more, or things happen for ever."""


class Violation(BaseException):
    """Something that must always hold did not; no `except Exception` of the product takes it for
    Tune's."""


class Process:
    """Threads that die together, such as a driver's.

    Attributes:
        root: That a driver works on.
        clock_off_s: By how much somebody set its wall clock.
        asked_to_stop: Whether a user did.
        beside: Whether another driver worked at the same time.
        over: For what a sweep must end, in the first words of its errors.
        frozen_until: Until when none of its threads runs: somebody stopped it, or its machine
            slept.
        frozen_s: For how long that was so, in all.
        taken: Whether another driver took its lease over meanwhile.
        token: Of its lease.
    """

    def __init__(self, name: str) -> None:
        self.name, self.root, self.token, self.clock_off_s, self.over = (
            name,
            "",
            "",
            0.0,
            set[str](),
        )
        self.frozen_until = self.frozen_s = 0.0
        self.asked_to_stop = self.beside = self.taken = False
        self.dead = self.stopped = self.finished = False


class Task:
    """A thread: waits until it is given the turn."""

    def __init__(
        self, scheduler: Scheduler, process: Process, target: Callable[[], None], name: str
    ) -> None:
        self.scheduler, self.process, self.name = scheduler, process, name
        self.until: float = 0.0
        self.ready: Callable[[], bool] | None = None
        self.done, self.error = False, None
        self._turn = _closed()
        self._target = target

    def start(self) -> None:
        """Be among those that may get the turn."""
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
        except BaseException as error:  # the world tells the test
            self.error = error
        self.done = True
        self.scheduler.hand_on(self)

    def may_run(self, now: float) -> bool:
        if self.process.dead or self.process.frozen_until > now:
            return self.process.dead
        return self.until <= now or (self.ready is not None and self.ready())

    def looks_at(self, now: float) -> float:
        """Return when it may run at the latest, or looks whether it may."""
        return self.until if self.process.frozen_until <= now else self.process.frozen_until


class Scheduler:
    """Gives the turn to one task after another.

    Attributes:
        now: Virtual seconds.
    """

    def __init__(self, random: Random) -> None:
        self.random, self.now, self.num_steps = random, 0.0, 0
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self._director = _closed()
        self._main: Task | None = None
        self._error: Endless | None = None

    def wait(self, ready: Callable[[], bool] | None, timeout: float | None) -> None:
        """Let others run until ``ready`` or for ``timeout`` seconds; in a dead process, for
        ever."""
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
        """Give the turn to the next task, or to the director; True where it stays with ``task``."""
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
        """Give turns until ``main``, which has started, is done.

        Raises:
            Endless: where that never comes.
        """
        if main.done:
            return
        self._main, self.current = main, self._next()
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
            self.now = min(task.looks_at(self.now) for task in self.tasks)
            if self.now > LONGEST_S:
                names = [task.name for task in self.tasks]
                raise Endless(f"still at work after {LONGEST_S:g} s: {names}")
        self.num_steps += 1
        if self.num_steps > MOST_STEPS:
            raise Endless(f"still at work after {MOST_STEPS:,} steps at {self.now:g} s")
        return able[0] if len(able) == 1 else self.random.choice(able)

    def bury(self, process: Process) -> None:
        """Let every thread of a process meet its end."""
        process.dead = True
        for task in [task for task in self.tasks if task.process is process]:
            while not task.done:
                self.current = task
                task._turn.release()
                self._director.acquire()


class SimulatedCondition:
    """As :class:`threading.Condition` with a lock that its holder may take again."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._owner, self._depth, self._notified = scheduler, None, 0, 0

    def __enter__(self) -> SimulatedCondition:
        me = self._scheduler.current
        if self._owner not in (None, me) and not self._owner.done:
            self._scheduler.wait(lambda: self._owner is None or self._owner.done, None)
        self._owner, self._depth = me, (self._depth if self._owner is me else 0) + 1
        return self

    def __exit__(self, *ended: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner = None

    def notify_all(self) -> None:
        self._notified += 1

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        me, depth = self._owner, self._depth
        end = None if timeout is None else self._scheduler.now + timeout
        while not (found := predicate()):
            left = None if end is None else end - self._scheduler.now
            if left is not None and left <= 0:
                break
            seen = self._notified
            self._owner, self._depth = None, 0
            self._scheduler.wait(lambda seen=seen: self._notified > seen, left)
            if self._owner is not None and not self._owner.done:
                self._scheduler.wait(lambda: self._owner is None or self._owner.done, None)
            self._owner, self._depth = me, depth
        return found


class SimulatedClock:
    """The clock of one process: virtual seconds, and a wall clock that somebody sets now and
    then."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler, self._process = scheduler, process

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

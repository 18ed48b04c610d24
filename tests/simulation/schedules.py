"""Schedules of faults, drawn by a seed or named. A schedule that fails is reduced to the fewest
faults that still fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from random import Random

from tests.simulation.outside import FAULTS, LONG, Fault
from tests.simulation.scheduler import Violation
from tests.simulation.sweeps import Grid, Tuning
from tests.simulation.world import World

MOST_FAULTS = 8
HORIZON = 400
"""Calls that an undisturbed sweep makes, roughly. Faults begin within these calls."""
EACH = 4
"""One seed in so many runs a search. The other seeds run grids."""


def draw(seed: int) -> list[Fault]:
    """Return the faults of a seed, in order."""
    random = Random(seed)
    faults = []
    for _ in range(random.randint(0, MOST_FAULTS)):
        kind = random.choice(FAULTS)
        amount = random.expovariate(1 / 40) if kind in LONG else random.random()
        faults.append(Fault(int(random.random() ** 1.5 * HORIZON), kind, amount))
    return sorted(faults)


def run_seed(seed: int) -> World:
    """Run a seed.

    Raises:
        Violation: a promise is broken. The message has the seed, the fewest faults and the log.
    """
    sweep_kind = Grid if seed % EACH else Tuning
    return run(f"seed {seed}", lambda faults: World(seed, faults, sweep_kind), draw(seed))


def run_named(name: str, seed: int) -> World:
    """Run a schedule of :data:`NAMED` with the delays and turns of a seed; see :func:`run_seed`."""
    sweep_kind = Tuning if name in OF_SEARCHES else Grid
    faults = sorted(NAMED[name], key=attrgetter("step"))
    title = f"seed {seed} of {name}"
    return run(title, lambda faults: World(seed, faults, sweep_kind), faults)


def run(title: str, create_world: Callable[[list[Fault]], World], faults: list[Fault]) -> World:
    """Run a schedule. If the run fails, drop every fault without which it still fails.

    Args:
        title: the schedule's name, with which the message of a violation begins.
        create_world: returns a new world for a list of faults.
        faults: the schedule's faults, in order.

    Raises:
        Violation: the run failed. The message lists the remaining faults and the last log lines.
    """
    world = create_world(faults)
    try:
        return world.run()
    except (Exception, Violation) as error:
        cause: BaseException = error
    for fault in list(faults):
        fewer_faults = [candidate for candidate in faults if candidate is not fault]
        reduced_world = create_world(fewer_faults)
        try:
            reduced_world.run()
        except (Exception, Violation) as error:
            faults = fewer_faults
            cause = error
            world = reduced_world
    details = "\n".join([*map(str, faults), *world.outside.log[-60:]])
    raise Violation(f"{title}: {type(cause).__name__}: {cause}\n{details}") from cause


def _repeated(kind: str, steps: Sequence[int], amount: float = 0.0) -> list[Fault]:
    return [Fault(step, kind, amount) for step in steps]


REAL = {
    "worker SIGKILL every 5 s for 60 s": _repeated("worker dies", range(10, 130, 10)),
    "raylet SIGKILL, a node added": _repeated("node lost", (30,)),
    "memory hog": _repeated("memory kill", (20, 40, 60)),
    "memory hog alone": _repeated("memory kill", (20,)),
    "driver SIGKILL at 20 moments": _repeated("driver killed", range(5, 405, 20)),
    "object store away 30 s": _repeated("storage away", (40,), 30.0),
    "disk filled and freed": _repeated("disk full", (40,), 60.0),
    "MLflow dropped_replies": _repeated("server resets", range(10, 200, 10), 1.0),
    "MLflow away": _repeated("server away", (30,), 60.0),
    "MLflow resetting": _repeated("server resets", (30, 90), 20.0),
    "MLflow slow": _repeated("server slow", (10,), 300.0),
    "MLflow restarted": _repeated("server away", (30, 90, 150), 10.0),
    "PostgreSQL restarted": _repeated("server away", (60,), 20.0),
    "two hosts parted 5 s": _repeated("worker says nothing", (30,)),
    "two hosts parted 15 s": [Fault(30, "worker says nothing", 0.0), Fault(40, "worker dies", 0.0)],
    "two hosts parted 60 s": _repeated("node lost", (30, 34, 38)),
}
"""The simulated counterpart of each long run on real processes (``make chaos``), by its name."""

OF_SEARCHES = {
    "a killed search goes on as an unbroken one": _repeated("driver killed", range(20, 220, 25)),
    "a search that is extended, and its data changed": [
        *_repeated("driver killed", (60, 160)),
        *_repeated("sweep extended", (80,)),
        *_repeated("data changed", (200,)),
    ],
    "a search loses its memory of what was asked": _repeated(
        "file deleted", range(40, 200, 12), 0.1
    ),
}
"""Schedules of ``isweep tune``. The first simulates ``tests/integration/test_killed_search.py``."""

LIMITS = {
    "Tune breaks now and then": _repeated("Tune breaks", range(20, 900, 55)),
    "Tune breaks and breaks": _repeated("Tune breaks", (20,) * 7),
    "other code here and there": _repeated("other code", range(15, 300, 15)),
    "other code on every node": _repeated("other code", (20,) * 12),
    "a trial that kills its worker": _repeated("a trial fails again", (5, 200), 0.05),
    "trials that kill their workers": _repeated("a trial fails again", (5, 5, 5), 0.05),
    "a worker tells what is wrong": [
        *_repeated("data are bad", (20,)),
        *_repeated("a recipe is bad", (24,)),
        *_repeated("a worker's disk is full", (28,)),
        *_repeated("setup fails", range(32, 300, 8)),
    ],
    "a stop while MLflow is away": [
        *_repeated("server away", (30, 200), 100.0),
        *_repeated("user stops", (40, 210)),
    ],
    "a driver is killed around the storing of a result": [
        *_repeated("worker dies", range(10, 400, 15)),
        *_repeated("killed behind a removal", (30, 60, 90)),
        *_repeated("killed behind a result", (220, 280)),
    ],
    "a trial that takes all memory": _repeated("a trial fails again", (5,), 0.44),
    "others take all memory for a while": _repeated("a trial finds no memory", (5, 9), 15.0),
    "others take all memory for good": _repeated("a trial finds no memory", (5,), 25.0),
    "GPUs that fail whatever they are given": _repeated("device fails", range(10, 260, 5)),
    "a slow trial that tells of epochs": _repeated("a trial is slow", (5,)),
    "no node for minutes": _repeated("node lost", (30, 30, 30), 4.0),
    "a failure is replaced by another trial's": [
        *_repeated("worker dies", range(6, 160, 4)),
        Fault(170, "file exchanged", 0.5),
        Fault(170, "file exchanged", 0.7),
        Fault(170, "file exchanged", 0.9),
        *_repeated("driver killed", (176,)),
    ],
    "results are copied from another sweep": [
        *_repeated("result copied from another sweep", (100, 140), 0.5),
        *_repeated("driver killed", (120, 160)),
    ],
    "a lease that somebody deletes": _repeated("lease deleted", (40, 90)),
    "no right to write results": _repeated("storage refuses", (60,), 30.0),
}
"""Faults that a sweep survives up to a limited number."""

FOUND = {
    "a diverged trial of new data shows the loss of the old": _repeated("data changed", (100,)),
    "a run reopened with a lost reply stays running": [
        *_repeated("file damaged", range(60, 200, 20), 0.2),
        *_repeated("server resets", range(200, 400, 15), 3.0),
    ],
    "two drivers take over a dead one's lease": [
        *_repeated("second driver", (20, 20, 20)),
        *_repeated("driver killed", (20,)),
        *_repeated("server slow", (24,), 400.0),
    ],
    "a driver that sleeps loses its lease": [
        *_repeated("second driver", (30,)),
        *_repeated("driver frozen", (34,), 150.0),
    ],
    "a trial dies of something else while MLflow is away": [
        *_repeated("worker dies", range(6, 20, 2)),
        *_repeated("server away", (20,), 15.0),
        *_repeated("network error", range(21, 29)),
    ],
    "a driver that wakes leaves the lease of the next": [
        *_repeated("second driver", (20,)),
        *_repeated("driver frozen", (24,), 75.0),
    ],
    "a machine that sleeps costs no trial": _repeated("driver frozen", (40, 100), 400.0),
    "a server restored in the middle": _repeated("server restored", (60, 120), 0.1),
    "a trial that waits for its worker when Tune breaks loses no attempt": _repeated(
        "Tune breaks", (40, 60)
    ),
}
"""Schedules that revealed a fault of the product, or in which several things fail at once."""
NAMED = {**REAL, **OF_SEARCHES, **LIMITS, **FOUND}

"""Where the next point comes from: one Optuna study per cell, asked and told by us.

Optuna's storage is a view, like MLflow: it is made anew from the store at every start, so it holds every
point once, in the order of asking, and none runs that nobody trains. See
``docs/decisions/0012-own-ask-and-tell.md``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.results.patience import Patience
from orchestrator.tuning.cells import Point, TuningCell
from orchestrator.tuning.rungs import rung_epochs
from search_spaces.fingerprint import derive_seed
from search_spaces.tuning import Sampler, SearchSpace
from tasks.trials.search_result import SearchResult, SearchStatus, capped

STARTUP_TRIALS = 4
"""Points that are drawn at random before a model of the loss is believed, the given ones included."""
NAME = "{} on {}"


def open_storage(path: Path | None, patience: Patience | None = None) -> BaseStorage:
    """Return a new, empty storage: a journal file that ``optuna-dashboard`` opens, or memory for None.

    Args:
        path: Of the journal.
        patience: Waits for a disk that is full; None raises at once.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path is None:
        return InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not emptied in place: who has the old one open goes on reading the old one. A driver that was killed in
    # a write left Optuna's lock, which is waited for, and for ever where the root has moved since; the root's
    # own lock says that nobody else writes.
    for left in (path, path.with_name(f"{path.name}.lock")):
        left.unlink(missing_ok=True)
    return JournalStorage(_PatientJournal(path, patience))


class _PatientJournal(JournalFileBackend):
    """A journal that a full disk leaves without half a line: nobody could read on behind one."""

    def __init__(self, path: Path, patience: Patience | None) -> None:
        super().__init__(str(path))
        self._path, self._patience = path, patience

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, all or none of them; as the store does, wait where there is no room."""
        size = self._path.stat().st_size

        def append() -> None:
            try:
                super(_PatientJournal, self).append_logs(logs)
            except OSError:
                os.truncate(self._path, size)
                raise

        if self._patience is None:
            append()
        else:
            self._patience.until_done(append)


class CellStudy:
    """The study of one cell.

    Args:
        cell: What is searched.
        sampler: Who proposes points.
        storage: From :func:`open_storage`.
        seed: Of the whole search.
    """

    def __init__(self, cell: TuningCell, sampler: Sampler, storage: BaseStorage, seed: int = 0) -> None:
        self._cell, self._sampler, self._seed = cell, sampler, seed
        self._space = distributions(cell.space)
        self._rungs = rung_epochs(cell.num_epochs)
        self._asked: dict[str, optuna.Trial] = {}
        self.study = optuna.create_study(
            storage=storage, study_name=NAME.format(*cell.key), direction="minimize"
        )

    def propose(self, again: int = 0) -> Point:
        """Return the sampler's next point, which nobody has asked for yet.

        It follows from the seed, the points of the study in their order and what is known of them: a search
        that goes on after a kill proposes what it would have proposed without one.

        Args:
            again: Counts proposals that nothing was told between.
        """
        trials = self.study.get_trials(deepcopy=False)
        seed = derive_seed("sampler", self._seed, list(self._cell.key), len(trials), again) % 2**32
        # On a copy: the study has points as they are trained, rounded, and none that is not.
        thought = optuna.create_study(sampler=make_sampler(self._sampler, seed))
        thought.add_trials(trials)
        params = thought.ask(self._space).params
        return self._cell.nearest(Point.model_validate(params).rounded())

    def ask(self, point: Point) -> str:
        """Begin a point, which must lie in the space; returns its ticket."""
        self.study.enqueue_trial(point.model_dump())
        trial = self.study.ask(self._space)
        self._asked[ticket := str(trial.number)] = trial
        return ticket

    def tell(self, ticket: str, result: SearchResult) -> None:
        """Tell what a point that was asked for gave."""
        trial = self._asked.pop(ticket)
        for epoch, loss in reports(result, self._rungs).items():
            trial.report(loss, epoch)
        for name, value in attributes(result).items():
            trial.set_user_attr(name, value)
        if result.status == SearchStatus.PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, result.capped_loss)

    def fail(self, ticket: str) -> None:
        """Tell that a point gave nothing."""
        self.study.tell(self._asked.pop(ticket), state=TrialState.FAIL)

    def add(self, point: Point, result: SearchResult) -> None:
        """Tell of a point that an earlier start asked for, in its turn."""
        pruned = result.status == SearchStatus.PRUNED
        self.study.add_trial(
            optuna.create_trial(
                params=point.model_dump(),
                distributions=self._space,
                # Of a pruned trial Optuna takes the last intermediate value.
                value=result.capped_loss,
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                intermediate_values=reports(result, self._rungs),
                user_attrs=attributes(result),
            )
        )


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return a space in Optuna's words."""
    return {
        "learning_rate": FloatDistribution(*space.learning_rate, log=True),
        "weight_decay": FloatDistribution(*space.weight_decay, log=True),
        "batch_size": CategoricalDistribution(space.batch_size),
    }


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return a sampler; see ``benchmarks/search.py`` for how they compare."""
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)


def reports(result: SearchResult, rungs: tuple[int, ...]) -> dict[int, float]:
    """Return the losses that Optuna is told of on the way: at the rungs, and at the end."""
    shown = {*rungs, result.curve[-1].epoch if result.curve else 0}
    return {
        score.epoch: capped(score.loss, result.chance_loss) for score in result.curve if score.epoch in shown
    }


def attributes(result: SearchResult) -> dict[str, object]:
    """Return what ``optuna-dashboard`` shows beside a trial's value."""
    return {"status": str(result.status), "epochs": result.epochs, "loss": result.loss}

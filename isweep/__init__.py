"""The front for notebooks and scripts: run, open, plan, tune, measure, predict.

>>> import isweep
>>> sweep = isweep.run("demo")            # or a sweep file's path, a mapping, a SweepSpec
>>> sweep.table, sweep.best(dataset="digits"), sweep.failures, sweep.fits.to_frame(), sweep.report
>>> search = isweep.tune("demo")  # learning rates: search.table, search.recipe, search.report
>>> record = isweep.measure("./my-images", train_sizes=[500, 1000])
>>> isweep.predict(record, sweep, target_loss=0.3)
"""

import lazy_loader

_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name in __all__ or name.startswith("_"):
        return _named(name)
    raise AttributeError(
        f"isweep has no {name}; it has {', '.join(__all__)}: isweep.open(NAME).table"
    )

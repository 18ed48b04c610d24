"""Run sweeps, measure images and read results, from notebooks and scripts.

A first session::

    import isweep

    isweep.measure("./my-images", image_size=32)  # d_data and K_F, nothing is trained
    sweep = isweep.run("demo")                    # or the path of a sweep file, or a mapping
    sweep.table                                   # one row per trial, a DataFrame
    sweep.best(dataset="digits")                  # the best model at each train size
    sweep.report                                  # the page with all answers

- ``run``, ``open``, ``plan`` and ``tune`` work on a sweep.
- ``measure`` measures images.
- ``learning_curves`` and ``predict`` predict scores and numbers of images.
- ``compare``, ``claims`` and ``power`` evaluate sweeps.

``help(isweep.run)`` prints the arguments and errors of a function.
"""

from typing import TYPE_CHECKING

import lazy_loader

_load_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if TYPE_CHECKING:
    __version__: str

_REPLACEMENTS = {
    "fit": "isweep.open('demo').fits for a sweep, or the command `isweep fit` for your own table",
    "report": "isweep.open('demo').report",
    "results": "isweep.open('demo').table",
}
"""Replacements in Python for the commands of ``isweep`` that are not functions of this
module."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("isweep")
    if name in __all__ or name.startswith("_"):
        return _load_name(name)
    if name in _REPLACEMENTS:
        raise AttributeError(f"isweep has no attribute {name!r}. Use {_REPLACEMENTS[name]}.")
    raise AttributeError(
        f"isweep has no attribute {name!r}. Choose one of {', '.join(__all__)}. For "
        "example, isweep.open('demo').table is the results table of the sweep demo."
    )

"""Single computations of a study: data preparation, measures, training and attacks.

No module of this package depends on sweeps. The names in ``__init__.pyi`` are imported when they
are used, so that ``import tasks`` is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

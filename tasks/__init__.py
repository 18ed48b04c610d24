"""The computation of one unit of the study: data preparation, measures, training, attacks.
There is no sweep logic here.

The names of ``__init__.pyi`` are imported when they are used, so that ``import tasks`` stays cheap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

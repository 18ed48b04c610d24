"""Do the single computations of a study: prepare and measure data, train and attack networks.

No module of this package imports code about sweeps. ``__init__.pyi`` lists the public names.
Python imports the module of a public name only when a program uses this name, so ``import
tasks`` is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

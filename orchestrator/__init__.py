"""All units together: plan, Ray Tune sweep, measures, result store, MLflow, analysis, command line.

The names of ``__init__.pyi`` are for notebooks and for people who bring their own pipeline;
each is imported when it is used, so importing this package imports neither torch, ray nor
mlflow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

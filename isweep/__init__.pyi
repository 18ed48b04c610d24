from .comparing import Claims as Claims
from .comparing import Comparison as Comparison
from .comparing import Power as Power
from .comparing import claims as claims
from .comparing import compare as compare
from .comparing import power as power
from .curves import LearningCurves as LearningCurves
from .curves import learning_curves as learning_curves
from .measuring import Measurement as Measurement
from .measuring import measure as measure
from .predicting import predict as predict
from .running import Tuned as Tuned
from .running import run as run
from .running import tune as tune
from .sweeps import Fits as Fits
from .sweeps import Plan as Plan
from .sweeps import Sweep as Sweep
from .sweeps import SweepError as SweepError
from .sweeps import SweepSpec as SweepSpec
from .sweeps import open as open
from .sweeps import plan as plan

__version__: str

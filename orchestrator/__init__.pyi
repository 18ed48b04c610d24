from .analysis import fit_scaling_laws as fit_scaling_laws
from .analysis import predict as predict
from .analysis.report import results_table as results_table
from .planning.plan import Workspace as Workspace
from .planning.plan import plan_sweep as plan_sweep
from .planning.sweep_file import load_sweep as load_sweep
from .running.options import RunOptions as RunOptions
from .running.run import run_sweep as run_sweep

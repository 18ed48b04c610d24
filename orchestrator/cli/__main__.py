"""Run the command ``isweep`` as ``python -m orchestrator.cli``."""

from orchestrator.cli import entry

if __name__ == "__main__":
    entry()

"""``python -m orchestrator.cli`` is the command ``isweep``."""

from orchestrator.cli import entry

if __name__ == "__main__":
    entry()

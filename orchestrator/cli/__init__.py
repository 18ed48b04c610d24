"""The command line: parsing and printing only."""

from orchestrator.cli.app import entry, main

__all__ = ["entry", "main"]

"""The command line: parsing and printing only. One module per group of commands, options beside them."""

from orchestrator.cli.app import entry, main, parse

__all__ = ["entry", "main", "parse"]

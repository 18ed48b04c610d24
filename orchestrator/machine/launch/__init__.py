"""Checks of launch files for ``ray up``: format, mistakes for each cloud provider, and hints."""

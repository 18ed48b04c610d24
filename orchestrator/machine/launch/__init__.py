"""Check the launch files of ``ray up``: format, mistakes of each cloud provider, and fixes."""

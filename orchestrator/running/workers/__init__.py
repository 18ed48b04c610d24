"""The code that runs in a worker: run a trial on its device, and report its result or failure."""

"""The code that runs in a worker. It runs a trial on its device, and reports the result or the
failure.
"""

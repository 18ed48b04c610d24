"""The GPUs of this machine as NVIDIA's driver and torch describe them, and hints if they do
not work.
"""

"""The self-test of a GPU. It checks that the GPU computes correctly and that trials can use
CUDA graphs.
"""

"""The self-test of a GPU: is it correct, and can trials use CUDA graphs?"""

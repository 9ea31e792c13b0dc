"""The Triton kernels, one file an operation; each has the arguments of the op it serves."""

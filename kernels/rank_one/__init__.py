"""The Triton kernels for rank-one chains, one file an operation, and the step of a chain."""

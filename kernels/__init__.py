"""The Triton kernels, a folder for each structure of chains, and in it a file an operation."""

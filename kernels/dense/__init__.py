"""The Triton kernels for chains of matrices, one file an operation.

Tokens are taken in tiles of one step. With few classes a program computes a tile's whole loss
between two products that never leave it; with more, or where p itself is wanted, the products are
kernels of their own. Rows whose digits float32 does not keep are recomputed in float64.
"""

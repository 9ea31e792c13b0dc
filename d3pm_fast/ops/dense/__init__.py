"""The operations on chains of matrices on the CPU, on groups of tokens of one step.

``logits -> v -> v Qbar_s -> r -> r Qbar_s^T -> gradient``, in chunks that stay in the cache. The
products are PyTorch's, what is between them is one kernel each (``csrc/cpu/dense_target.h``). A
kernel reports rows whose digits the group's arithmetic does not keep; they are calculated again in
float64, and where that is not enough, in log space.
"""

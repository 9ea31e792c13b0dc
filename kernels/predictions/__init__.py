"""The Triton kernels of predictions: logits made of parameters, and shaped for sampling."""

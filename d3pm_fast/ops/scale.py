"""The factor that comes from above, most often 1."""

from torch import Tensor

from .implementations import implementation

# What PyTorch multiplies at a time on a CPU: it widens 16 bits into a copy of all of them.
ENTRIES = 1 << 18


def scale_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient in place, without a copy; factors of 1 cost no pass over it.

    Args:
        grad: ``(B, *S, K)``, contiguous, or so as ``(B, K, *S)``.
        factor: one number, of no axes, or one for each token, ``(B, *S)``; float32 or float64, in
            which the product is made and then rounded to the gradient's dtype.
    """
    if grad.device.type == "cpu":
        return _scale_on_cpu(grad, factor)
    if implementation("auto", grad.device).name != "triton":
        return grad.mul_(factor.unsqueeze(-1) if factor.ndim else factor)
    from ..kernels.common.scale import scale_ as scale_on_gpu

    return scale_on_gpu(grad, factor.contiguous())  # type: ignore[no-any-return]


def _scale_on_cpu(grad: Tensor, factor: Tensor) -> Tensor:
    if factor.ndim == 0:
        return grad if factor.item() == 1 else grad.mul_(factor)
    if bool((factor == 1).all()):
        return grad
    items, factors = grad, factor
    if grad.is_contiguous():
        items, factors = grad.flatten(0, -2), factor.flatten()
    length = max(ENTRIES * len(items) // max(grad.numel(), 1), 1)
    for part, by in zip(items.split(length), factors.split(length), strict=True):
        part.mul_(by.unsqueeze(-1))
    return grad

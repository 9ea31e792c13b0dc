"""The factor that comes from above, most often 1."""

from torch import Tensor

from .implementations import implementation

# What PyTorch multiplies at a time on a CPU: it widens 16 bits into a copy of all of them.
ENTRIES = 1 << 18


def scale_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient in place, without a copy; factors of 1 cost no pass over it.

    Args:
        grad: ``(*S, K)``, contiguous.
        factor: one number, of no axes, or one for each token, ``(*S)``; float32 or float64, in
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
    num_classes = grad.shape[-1]
    length = max(ENTRIES // num_classes, 1)
    parts = grad.view(-1, num_classes).split(length), factor.reshape(-1, 1).split(length)
    for part, factors in zip(*parts, strict=True):
        part.mul_(factors)
    return grad

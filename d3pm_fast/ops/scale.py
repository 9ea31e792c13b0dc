"""The factor that comes from above, most often 1."""

from torch import Tensor

from .implementations import implementation


def scale_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient in place by a number; one of 1 costs no pass over it."""
    if grad.device.type == "cpu":
        return grad if factor.item() == 1 else grad.mul_(factor)
    if implementation("auto", grad.device).name != "triton":
        return grad.mul_(factor)
    from ..kernels.scale import scale_ as scale_on_gpu

    return scale_on_gpu(grad, factor)  # type: ignore[no-any-return]

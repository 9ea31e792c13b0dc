"""Where a run computes and in which precision."""

import torch

from ..d3pm import D3PM
from ..ops import implementation


def pick_device(name: str) -> torch.device:
    """Return the named device; ``"auto"`` is the GPU where there is one.

    Raises:
        ValueError: PyTorch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} is not to be had here: {reason}") from error


def place(diffusion: D3PM, device: torch.device) -> D3PM:
    """Return the diffusion on a device.

    Raises:
        ValueError: its implementation does not serve there.
    """
    try:
        implementation(diffusion.impl, device, diffusion.transition)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return diffusion.to(device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of the network's arithmetic; ``"auto"`` is bfloat16 where it is fast."""
    low = has_bfloat16(device) if precision == "auto" else precision != "float32"
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=low)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 numbers."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # AVX-512's bfloat16 without AMX trains slower than float32.
    return any(capabilities.get(name, False) for name in ("amx_bf16", "arm_bf16"))

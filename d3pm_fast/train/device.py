"""Where a run computes and in which precision."""

import torch


def pick_device(name: str) -> torch.device:
    """Return the named device; ``"auto"`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of the network's arithmetic; ``"auto"`` is bfloat16 where it is fast."""
    low = has_bfloat16(device) if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 numbers."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # AVX-512's bfloat16 without AMX trains slower than float32.
    return any(capabilities.get(name, False) for name in ("amx_bf16", "arm_bf16"))

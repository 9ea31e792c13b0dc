"""``torch.ops.d3pm_fast.q_posterior``, ``p_posterior`` and ``p_posterior_grad``."""

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..chains.structures import DENSE, RANK_ONE, SPARSE, RankOneStep
from ..records import AnyStep, Model
from .dense import posterior as dense
from .host import base_in, chain_arguments, pointer, raise_bad_index, start_cuda
from .kernel import triton_kernel
from .register import Operation


def _fake_q_posterior(
    x0: Tensor, x_t: Tensor, step: AnyStep, num_classes: int, dtype: torch.dtype
) -> Tensor:
    return x0.new_empty(*x0.shape, num_classes, dtype=dtype)


def _fake_p_posterior(logits: Tensor, x_t: Tensor, step: AnyStep, model: Model) -> Tensor:
    return torch.empty_like(logits)


def _fake_p_posterior_grad(
    logits: Tensor, upstream: Tensor, x_t: Tensor, step: AnyStep, model: Model
) -> Tensor:
    return torch.empty_like(logits)


q_posterior = Operation("q_posterior", _fake_q_posterior)
p_posterior = Operation("p_posterior", _fake_p_posterior)
p_posterior_grad = Operation("p_posterior_grad", _fake_p_posterior_grad)


def _cpu_q_posterior(
    x0: Tensor, x_t: Tensor, step: RankOneStep, num_classes: int, dtype: torch.dtype
) -> Tensor:
    out, base = _fake_q_posterior(x0, x_t, step, num_classes, dtype), base_in(step, dtype)
    bad = cpu.q_posterior(
        str(dtype),
        chain_arguments((x0.numel(), num_classes), step, base),
        x0.data_ptr(),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        raise_bad_index(num_classes, step.rows, step.table, x0=x0, x_t=x_t)
    return out


def _cpu_p_posterior(logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model) -> Tensor:
    return _p_on_cpu(logits, None, x_t, step, model)


def _p_on_cpu(
    logits: Tensor, upstream: Tensor | None, x_t: Tensor, step: RankOneStep, model: Model
) -> Tensor:
    out, num_classes = torch.empty_like(logits), logits.shape[-1]
    base = base_in(step, logits.dtype)
    bad = cpu.p_posterior(
        str(logits.dtype),
        chain_arguments((x_t.numel(), num_classes), step, base),
        *model,
        logits.data_ptr(),
        pointer(upstream),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        raise_bad_index(num_classes, step.rows, step.table, x_t=x_t)
    return out


def _cuda_q_posterior(
    x0: Tensor, x_t: Tensor, step: RankOneStep, num_classes: int, dtype: torch.dtype
) -> Tensor:
    out = _fake_q_posterior(x0, x_t, step, num_classes, dtype)
    _on_cuda(out, None, None, x0, x_t, step, Model(False, False))
    return out


def _cuda_p_posterior(logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model) -> Tensor:
    return _p_on_cuda(logits, None, x_t, step, model)


def _p_on_cuda(
    logits: Tensor, upstream: Tensor | None, x_t: Tensor, step: RankOneStep, model: Model
) -> Tensor:
    out = torch.empty_like(logits)
    _on_cuda(out, logits, upstream, None, x_t, step, model)
    return out


def _on_cuda(
    out: Tensor,
    logits: Tensor | None,
    upstream: Tensor | None,
    x0: Tensor | None,
    x_t: Tensor,
    step: RankOneStep,
    model: Model,
) -> None:
    base = base_in(step, out.dtype)
    start_cuda(
        "posterior",
        out,
        str(out.dtype),
        chain_arguments((x_t.numel(), out.shape[-1]), step, base),
        *model,
        pointer(logits),
        pointer(upstream),
        pointer(x0),
        x_t.data_ptr(),
        out.data_ptr(),
    )


q_posterior.serve("reference", reference.q_posterior, [RANK_ONE, DENSE, SPARSE])
q_posterior.serve("cpu", _cpu_q_posterior, [RANK_ONE])
q_posterior.serve("cuda", _cuda_q_posterior, [RANK_ONE])
q_posterior.serve("triton", triton_kernel("rank_one.posterior.q_posterior"), [RANK_ONE])
q_posterior.serve("cpu", dense.q_posterior, [DENSE, SPARSE])
q_posterior.serve("triton", triton_kernel("dense.posterior.q_posterior"), [DENSE, SPARSE])

p_posterior.serve("reference", reference.p_posterior, [RANK_ONE, DENSE, SPARSE])
p_posterior.serve("cpu", _cpu_p_posterior, [RANK_ONE])
p_posterior.serve("cuda", _cuda_p_posterior, [RANK_ONE])
p_posterior.serve("triton", triton_kernel("rank_one.posterior.p_posterior"), [RANK_ONE])
p_posterior.serve("cpu", dense.p_posterior, [DENSE, SPARSE])
p_posterior.serve("triton", triton_kernel("dense.posterior.p_posterior"), [DENSE, SPARSE])

p_posterior_grad.serve("cpu", _p_on_cpu, [RANK_ONE])
p_posterior_grad.serve("cuda", _p_on_cuda, [RANK_ONE])
p_posterior_grad.serve("triton", triton_kernel("rank_one.posterior.p_posterior_grad"), [RANK_ONE])
p_posterior_grad.serve("cpu", dense.p_posterior_grad, [DENSE, SPARSE])
p_posterior_grad.serve("triton", triton_kernel("dense.posterior.p_posterior_grad"), [DENSE, SPARSE])

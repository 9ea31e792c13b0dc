"""``torch.ops.d3pm_fast.q_posterior``, ``p_posterior`` and ``p_posterior_grad``."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._compiled import cpu
from ..chains.structures import DENSE, RANK_ONE, SPARSE, RankOneStep
from ..records import AnyStep, Model
from .dense import posterior as dense
from .host import chain_record, pi_in, pointer, raise_bad_index, start_cuda
from .kernel import triton_kernel
from .register import Operation


def _fake_q_posterior(x0: Tensor, x_t: Tensor, step: AnyStep, dtype: torch.dtype) -> Tensor:
    return x0.new_empty(*x0.shape, step.num_classes, dtype=dtype)


def fake_p_posterior(logits: Tensor, x_t: Tensor, step: AnyStep, model: Model) -> Tensor:
    """Return log-probabilities without their numbers."""
    return torch.empty_like(logits)


def _fake_p_posterior_grad(
    logits: Tensor, x_t: Tensor, step: AnyStep, model: Model, upstream: Tensor
) -> Tensor:
    return torch.empty_like(logits)


q_posterior = Operation("q_posterior", _fake_q_posterior)
p_posterior = Operation("p_posterior", fake_p_posterior)
p_posterior_grad = Operation("p_posterior_grad", _fake_p_posterior_grad)


def _cpu_q_posterior(x0: Tensor, x_t: Tensor, step: RankOneStep, dtype: torch.dtype) -> Tensor:
    out, pi = _fake_q_posterior(x0, x_t, step, dtype), pi_in(step, dtype)
    call = _q_record(x0, x_t, step, pi, out)
    if cpu.q_posterior(str(dtype), call, torch.get_num_threads()):
        raise_bad_index(step.num_classes, step.rows, step.table, x0=x0, x_t=x_t)
    return out


def _cuda_q_posterior(x0: Tensor, x_t: Tensor, step: RankOneStep, dtype: torch.dtype) -> Tensor:
    out, pi = _fake_q_posterior(x0, x_t, step, dtype), pi_in(step, dtype)
    start_cuda("q_posterior", out, str(dtype), _q_record(x0, x_t, step, pi, out))
    return out


def _q_record(
    x0: Tensor, x_t: Tensor, step: RankOneStep, pi: Tensor | None, out: Tensor
) -> tuple[Any, ...]:
    chain = chain_record(x0.numel(), step, pi, step.forbidden)
    return chain, x0.data_ptr(), x_t.data_ptr(), out.data_ptr()


# Both operations of p, by one function: log p itself where there is nothing to pull back.


def _p_on_cpu(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    out, pi = torch.empty_like(logits), pi_in(step, logits.dtype)
    call = _p_record(logits, upstream, x_t, step, model, pi, out)
    if cpu.p_posterior(str(logits.dtype), call, torch.get_num_threads()):
        raise_bad_index(logits.shape[-1], step.rows, step.table, x_t=x_t)
    return out


def _p_on_cuda(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    out, pi = torch.empty_like(logits), pi_in(step, logits.dtype)
    call = _p_record(logits, upstream, x_t, step, model, pi, out)
    start_cuda("p_posterior", logits, str(logits.dtype), call)
    return out


def _p_record(
    logits: Tensor,
    upstream: Tensor | None,
    x_t: Tensor,
    step: RankOneStep,
    model: Model,
    pi: Tensor | None,
    out: Tensor,
) -> tuple[Any, ...]:
    chain = chain_record(x_t.numel(), step, pi, step.forbidden)
    tensors = logits.data_ptr(), pointer(upstream), x_t.data_ptr(), out.data_ptr()
    return chain, model, *tensors


q_posterior.serve("reference", reference.q_posterior, [RANK_ONE, DENSE, SPARSE])
q_posterior.serve("cpu", _cpu_q_posterior, [RANK_ONE])
q_posterior.serve("cuda", _cuda_q_posterior, [RANK_ONE])
q_posterior.serve("triton", triton_kernel("rank_one.posterior.q_posterior"), [RANK_ONE])
q_posterior.serve("cpu", dense.q_posterior, [DENSE, SPARSE])
q_posterior.serve("triton", triton_kernel("dense.posterior.q_posterior"), [DENSE, SPARSE])

p_posterior.serve("reference", reference.p_posterior, [RANK_ONE, DENSE, SPARSE])
p_posterior.serve("cpu", _p_on_cpu, [RANK_ONE])
p_posterior.serve("cuda", _p_on_cuda, [RANK_ONE])
p_posterior.serve("triton", triton_kernel("rank_one.posterior.p_posterior"), [RANK_ONE])
p_posterior.serve("cpu", dense.p_posterior, [DENSE, SPARSE])
p_posterior.serve("triton", triton_kernel("dense.posterior.p_posterior"), [DENSE, SPARSE])

p_posterior_grad.serve("cpu", _p_on_cpu, [RANK_ONE])
p_posterior_grad.serve("cuda", _p_on_cuda, [RANK_ONE])
p_posterior_grad.serve("triton", triton_kernel("rank_one.posterior.p_posterior"), [RANK_ONE])
p_posterior_grad.serve("cpu", dense.p_posterior, [DENSE, SPARSE])
p_posterior_grad.serve("triton", triton_kernel("dense.posterior.p_posterior"), [DENSE, SPARSE])

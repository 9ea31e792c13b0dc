"""The module that owns or wraps a head, alone and under FSDP2."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

import d3pm_fast as d3

K, T, D, SHAPE = 11, 8, 4, (3, 5)


@pytest.fixture
def problem():
    diffusion = d3.D3PM(d3.transitions.absorbing(K, d3.schedules.cosine(T), mask_id=K - 1))
    x0, t = torch.randint(K - 1, SHAPE), torch.tensor([1, 4, T])
    return diffusion, x0, diffusion.q_sample(x0, t), t


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [K, K - 1])
def test_it_is_the_loss_of_its_head(problem, num_rows, bias):
    diffusion, *tokens = problem
    module = d3.LinearLoss(D, num_rows, diffusion, bias=bias, memory_budget=100, dtype=torch.double)
    hidden = torch.randn(*SHAPE, D).double().requires_grad_()
    value = module(hidden, *tokens, reduction="sum")
    expected = diffusion.loss(module.head(hidden), *tokens, reduction="sum")
    leaves = hidden, *module.head.parameters()
    torch.testing.assert_close(value, expected)
    found, truth = (torch.autograd.grad(x, leaves) for x in (value, expected))
    for x, y in zip(found, truth, strict=True):
        torch.testing.assert_close(x, y)
    found, truth = module.log_prob(hidden, tokens[0]), F.log_softmax(module.head(hidden), -1)
    torch.testing.assert_close(found.log_prob, truth.gather(-1, tokens[0][..., None])[..., 0])


def test_it_wraps_a_head_that_is_tied(problem):
    diffusion, x0, x_t, t = problem
    embedding, head = nn.Embedding(K, D), nn.Linear(D, K, bias=False)
    head.weight = embedding.weight
    module = d3.LinearLoss.wrap(head, diffusion)
    assert module.head is head
    module(embedding(x_t).tanh(), x0, x_t, t).backward()
    (expected,) = torch.autograd.grad(
        diffusion.loss(head(embedding(x_t).tanh()), x0, x_t, t), embedding.weight
    )
    torch.testing.assert_close(embedding.weight.grad, expected)
    with pytest.raises(TypeError, match=r"head must be a torch.nn.Linear, got Embedding"):
        d3.LinearLoss.wrap(embedding, diffusion)


@pytest.mark.parametrize("offload", [OffloadPolicy(), CPUOffloadPolicy(pin_memory=False)])
def test_it_is_what_fsdp_gathers(problem, tmp_path, offload):
    diffusion, *tokens = problem
    module = d3.LinearLoss(D, K, diffusion)
    hidden = torch.randn(*SHAPE, D)
    module(hidden, *tokens).backward()
    expected = module.head.weight.grad.clone()
    module.zero_grad()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        fully_shard(module, offload_policy=offload)
        module(hidden, *tokens).backward()
        assert isinstance(module.head.weight.grad, DTensor)
        torch.testing.assert_close(module.head.weight.grad.to_local(), expected)
    finally:
        dist.destroy_process_group()

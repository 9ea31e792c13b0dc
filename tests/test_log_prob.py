"""Log-probabilities and entropies of tokens, by whole logits and by a head, with gradients."""

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import assert_close, check_gradient
from torch.distributions import Categorical
from torch.func import grad

from d3pm_fast.functional import Linear, log_prob

K, D, SHAPE = 7, 3, (3, 4)


def parameters(dtype=torch.float64):
    made = torch.randn(*SHAPE, D), torch.randn(K, D), torch.randn(K)
    return [x.to(dtype).requires_grad_() for x in made]


@pytest.mark.parametrize("budget", [1, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(dtype, budget):
    leaves, tokens = parameters(dtype), torch.randint(K, SHAPE, dtype=torch.int32)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    law = Categorical(logits=F.linear(*wide))
    truth = torch.stack((law.log_prob(tokens), law.entropy()))
    value = torch.stack(log_prob(Linear(*leaves, budget), tokens))
    by_logits = torch.stack(log_prob(F.linear(*leaves), tokens))
    assert_close(value, truth, dtype, ulps=64, scale=truth.abs() + 1, baseline=by_logits)
    upstream = torch.randn_like(truth)
    found, expected = (
        torch.autograd.grad(x, y, upstream.to(x.dtype), retain_graph=True)
        for x, y in ((value, leaves), (truth, wide))
    )
    for x, y in zip(found, expected, strict=True):
        precise = dtype == torch.float64
        ulps = 256 if precise else 40 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        if precise or dtype == torch.float32:
            check_gradient(x.flatten(), y.flatten(), dtype, ulps=ulps)
        else:
            size = torch.linalg.vector_norm(y)
            assert torch.linalg.vector_norm(x.double() - y) <= 8 * torch.finfo(dtype).eps * size


def test_a_class_without_probability():
    leaves, tokens = parameters(), torch.randint(1, K, SHAPE)
    with torch.no_grad():
        leaves[2][0] = -torch.inf
    value = log_prob(Linear(*leaves), tokens)
    truth = Categorical(logits=F.linear(*leaves)[..., 1:])
    torch.testing.assert_close(value.log_prob, truth.log_prob(tokens - 1))
    torch.testing.assert_close(value.entropy, truth.entropy())
    of_linear, of_truth = (
        torch.autograd.grad(x.entropy.sum(), leaves[1])[0]
        for x in (value, log_prob(F.linear(*leaves), tokens))
    )
    torch.testing.assert_close(of_linear, of_truth)
    assert bool(of_linear.isfinite().all())


def test_second_derivatives_and_transforms():
    leaves, tokens = parameters(), torch.randint(K, SHAPE)

    def penalty(*leaves):
        value = log_prob(Linear(*leaves), tokens)
        return (value.log_prob.exp() * value.entropy).sum()

    def by_logits(*leaves):
        value = log_prob(F.linear(*leaves), tokens)
        return (value.log_prob.exp() * value.entropy).sum()

    along = tuple(torch.randn_like(x) for x in leaves)
    for transform in (
        lambda f: torch.autograd.functional.vhp(f, tuple(leaves), along)[1],
        lambda f: grad(f, argnums=(0, 1, 2))(*leaves),
    ):
        for found, expected in zip(transform(penalty), transform(by_logits), strict=True):
            check_gradient(found.flatten(), expected.flatten(), torch.float64, ulps=2**12)


@pytest.mark.parametrize("make", [Linear, F.linear])
def test_what_is_refused(make):
    leaves = parameters()
    with pytest.raises(IndexError, match="tokens"):
        log_prob(make(*leaves), torch.full(SHAPE, K))
    with pytest.raises(ValueError, match="must have shape"):
        log_prob(make(*leaves), torch.zeros(3, 5, dtype=torch.long))
    with pytest.raises(TypeError, match="tokens must be an integer"):
        log_prob(make(*leaves), torch.zeros(SHAPE))
    with pytest.raises(TypeError, match="must be a tensor"):
        log_prob(None, torch.zeros(SHAPE, dtype=torch.long))

"""Defects of published code, and tests that fail where one of them comes back.

The others have theirs beside what they guard: D2 in ``test_loss.py``, D3 in
``test_diffusion.py``, D4 and D7 in ``test_dense_families.py``, D6 and D21 (the device is waited
for) in ``test_torch_integration.py``, D12 in ``test_dense.py``, D13 and D19 in
``test_schedules.py``. D20, an importance sampler that never starts, could come back in nothing.
"""

import pytest
import torch
from helpers.chains import make_chain
from helpers.dense_chains import make_dense_chain

from d3pm_fast import functional, schedules, transitions
from d3pm_fast._compiled import cpu

FAMILIES = ["uniform", "absorbing_last", "gaussian", "sparse"]


def make(family, num_classes=6):
    maker = make_chain if family in ("uniform", "absorbing_last") else make_dense_chain
    return maker(family, num_classes).transition


def edge_batch(chain, generator):
    t = torch.tensor([1, 2, chain.num_steps - 1, chain.num_steps])
    x0 = torch.randint(chain.num_classes - 1, (4, 50), generator=generator)
    logits = torch.randn(4, 50, chain.num_classes, generator=generator)
    return logits, x0, functional.q_sample(chain, x0, t, generator=generator), t


def test_d1_nothing_leaks_onto_forbidden_states(impl):
    """1e-6 added to every class of 4096 would move 0.4 % of 200 000 tokens."""
    chain = transitions.absorbing(4096, schedules.jsd(10), mask_id=4095)
    count = 200_000 if impl == "cpu" else 20_000
    x0 = torch.full((1, count), 17)
    x_t = functional.q_sample(chain, x0, torch.tensor([5]), seeds=torch.tensor([1]), impl=impl)
    assert set(x_t.unique().tolist()) == {17, 4095}


@pytest.mark.parametrize("family", FAMILIES)
def test_d5_d15_edge_times_are_finite_with_their_gradients(impl, family):
    """No table wraps around at t = 1, no 0 times infinity at t = T."""
    chain = make(family)
    logits, x0, x_t, t = edge_batch(chain, torch.Generator().manual_seed(0))
    for reverse in ("joint", "posterior_mean"):
        leaf = logits.clone().requires_grad_()
        loss = functional.loss(
            chain, leaf, x0, x_t, t, reverse=reverse, reduction="none", impl=impl
        )
        loss.sum().backward()
        assert loss.isfinite().all()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_d8_the_tails_of_the_logistic_have_no_floor(impl):
    """An epsilon in the logarithm would end them near -13.8."""
    loc, log_scale = torch.tensor([-1.0]), torch.tensor([-5.0])
    log_p = functional.logistic_logits(loc, log_scale, 256, impl=impl).log_softmax(-1)
    slope = log_p.diff()[0, 100:]
    per_class = -2 / 255 * torch.exp(torch.tensor(7.0))  # the paper's code divides the scale by e^2
    assert log_p.min() < -250
    torch.testing.assert_close(slope, per_class.expand_as(slope), rtol=1e-4, atol=0)


@pytest.mark.skipif(cpu is None, reason="plain PyTorch rounds such a divergence away")
@pytest.mark.parametrize("family", FAMILIES)
def test_d9_a_divergence_near_zero_keeps_its_gradient(family):
    """Clipped at zero it would lose its gradient wherever rounding makes it negative."""
    chain = make(family)
    _, x0, x_t, t = edge_batch(chain, torch.Generator().manual_seed(1))
    logits = 14 * torch.nn.functional.one_hot(x0, chain.num_classes).float()
    leaf = logits.requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl="cpu")[1:]
    loss.sum().backward()
    assert (loss >= 0).all()
    some = loss > 1e-15  # where x_s has only one value there is neither a loss nor a gradient
    assert some.any()
    assert (leaf.grad[1:][some].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_d10_draws_from_the_prior_are_classes(family):
    chain = make(family)
    drawn = functional.sample_prior(chain, (4, 500), torch.arange(4))
    assert drawn.min() >= 0
    assert drawn.max() < chain.num_classes


def test_d11_whole_numbers_are_no_logits(impl):
    chain = make("gaussian")
    x0, t = torch.zeros(2, 3).long(), torch.tensor([1, 2])
    with pytest.raises(TypeError, match=r"logits must be float32.*got torch.int64"):
        functional.loss(chain, torch.zeros(2, 3, 6).long(), x0, x0, t, impl=impl)


def test_d14_the_prior_term_is_that_of_the_bound():
    """KL(q(x_T | x_0) || limit), not the reverse."""
    chain = make("gaussian")
    q = chain.q_bar_matrix(chain.num_steps)
    truth = (q * (q / chain.stationary()).log()).sum(1)
    reverse = (chain.stationary() * (chain.stationary() / q).log()).sum(1)
    measured = functional.prior(chain, torch.arange(6)[:, None])
    torch.testing.assert_close(measured, truth, rtol=1e-6, atol=0)
    assert not torch.allclose(measured, reverse, rtol=1e-3, atol=0)


def test_d16_rare_tokens_are_drawn_as_often_as_they_should():
    """A float32 Gumbel race ends at 16.6 and favours the likely ones; here p is 2e-6 for 200."""
    k, count = 256, 1_000_000
    chain = transitions.absorbing(k, schedules.jsd(4), mask_id=k - 1)
    law = torch.full((k,), 2e-6, dtype=torch.float64)
    law[0], law[-1] = 0, 0
    law[0] = 1 - law.sum()
    logits = law.log().clamp(min=-200).float().expand(1, 1, k)
    x_t = torch.full((1, 1), k - 1)
    seen = torch.zeros(k)
    seeds = torch.arange(count)
    for part in seeds.split(100_000):
        n = len(part)
        drawn = functional.p_sample(
            chain, logits.expand(n, 1, k), x_t.expand(n, 1), torch.ones(n).long(), seeds=part
        )
        seen += torch.bincount(drawn.flatten(), minlength=k)
    rare = float(seen[1:-1].sum())
    expected = count * 2e-6 * (k - 2)
    assert abs(rare - expected) < 5 * expected**0.5


@pytest.mark.parametrize("make_chain", [transitions.uniform, transitions.absorbing])
def test_d17_steps_from_all_noise_are_finite(impl, make_chain):
    """``beta_T = 1``: nothing is divided by what is left of the data."""
    k = 6
    chain = make_chain(k, schedules.jsd(5), *([k - 1] * (make_chain is transitions.absorbing)))
    assert chain.q_bar_matrix(5)[0, 0] in (0, 1 / k)
    t, x_t = torch.full((4,), 5), torch.full((4, 50), k - 1)
    leaf = torch.randn(4, 50, k, requires_grad=True)
    loss = functional.loss(chain, leaf, torch.zeros_like(x_t), x_t, t, impl=impl)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    for s in range(5):
        s = torch.full((4,), s)
        drawn = functional.p_sample(chain, leaf.detach(), x_t, t, s, seeds=s, impl=impl)
        assert ((drawn >= 0) & (drawn < k)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_d18_padding_counts_nothing_and_logits_stay(impl, family):
    chain = make(family)
    logits, x0, x_t, t = edge_batch(chain, torch.Generator().manual_seed(3))
    mask = torch.arange(50) < torch.tensor([50, 20, 7, 33])[:, None]
    before = logits.clone()
    args = chain, logits, x0, x_t, t
    each = functional.loss(*args, reduction="none", impl=impl)
    mean = functional.loss(*args, mask=mask, impl=impl)
    torch.testing.assert_close(mean, each[mask].mean(), rtol=1e-5, atol=0)
    assert torch.equal(logits, before)


def test_d22_the_cosine_schedule_multiplies_by_half_pi():
    """Equation 18 is printed with a sum, which would leave less than nothing of the data."""
    steps, offset = 100, 0.008
    u = torch.arange(steps + 1).double() / steps
    left = torch.cos((u + offset) / (1 + offset) * torch.pi / 2)
    kept = transitions.uniform(8, schedules.cosine(steps)).product_table[:, 0]
    torch.testing.assert_close(kept, left / left[0], rtol=1e-10, atol=1e-12)

"""The D3PM module: its sampler, its buffers, its settings."""

import copy

import pytest
import torch
from helpers.chains import FAMILIES, make_chain, one_hot

import d3pm_fast as d3

LAW = torch.tensor([[0.30, 0.00, 0.10], [0.05, 0.20, 0.00], [0.00, 0.05, 0.30]]).double()


def exact_denoiser(chain, law):
    """Return the denoiser that knows the law: log-marginals of two tokens given both."""

    def denoise(x_t, t):
        reach = chain.product(0, int(t[0]))
        joint = law * reach[:, x_t[:, 0]].T[:, :, None] * reach[:, x_t[:, 1]].T[:, None, :]
        joint = joint / joint.sum((1, 2), keepdim=True)
        return torch.stack([joint.sum(2), joint.sum(1)], dim=1).log()

    return denoise


@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal", "mask_and_uniform"])
def test_a_perfect_denoiser_reproduces_the_data_s_law(family, impl):
    """The posterior mean of the true p(x_0 | x_t) is the true reverse step of one token.

    Tokens are drawn independently of each other in a step, so many small steps are needed.
    """
    num_classes = 4 if family == "absorbing_last" else 3
    chain = make_chain(family, num_classes, d3.schedules.jsd(60))
    law = torch.nn.functional.pad(LAW, (0, num_classes - 3, 0, num_classes - 3))
    diffusion = d3.D3PM(chain.transition, "posterior_mean", "posterior", impl)
    denoiser = exact_denoiser(chain, law)
    x = diffusion.sample(denoiser, (4000, 2), generator=torch.Generator().manual_seed(0))
    rates = torch.bincount(x[:, 0] * num_classes + x[:, 1], minlength=num_classes**2) / len(x)
    assert (rates - law.flatten()).abs().sum() / 2 < 0.06


def test_strided_sampling_calls_the_denoiser_at_strided_times():
    diffusion = d3.D3PM(make_chain("uniform", 3, d3.schedules.cosine(10)).transition)
    called, seen = [], []

    def denoiser(x_t, t):
        called.append(int(t[0]))
        return torch.zeros(*x_t.shape, 3)

    x = diffusion.sample(
        denoiser, (2, 4, 5), steps=4, progress=True, callback=lambda x, s: seen.append((s, x))
    )
    assert called == [10, 8, 5, 3]
    assert [s for s, _ in seen] == [10, 8, 5, 3, 0]
    assert all(x.shape == (2, 4, 5) for _, x in seen)
    assert torch.equal(seen[-1][1], x)


def test_one_step_draws_from_the_logits():
    diffusion = d3.D3PM(make_chain("absorbing_last", 3, d3.schedules.jsd(10)).transition)
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf])
    x = diffusion.sample(lambda x_t, t: logits.expand(*x_t.shape, 3), (5, 7), steps=1)
    assert (x == 1).all()


def test_items_do_not_depend_on_the_batch(impl):
    diffusion = d3.D3PM(make_chain("mask_and_uniform", 5).transition, impl=impl)

    def denoiser(x_t, t):
        return one_hot(x_t, 5) + t[:, None, None] / 6

    whole = diffusion.sample(denoiser, (8, 6), generator=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    parts = [diffusion.sample(denoiser, (n, 6), generator=again) for n in (3, 5)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prior_is_the_stationary_distribution(family):
    chain = make_chain(family, 5)
    diffusion = d3.D3PM(chain.transition)
    x = diffusion.sample_prior((1, 40_000), torch.tensor([1]))
    rates = torch.bincount(x.flatten(), minlength=5) / x.numel()
    stationary = chain.transition.stationary()
    assert (rates[stationary == 0] == 0).all()
    assert (rates - stationary).abs().max() < 0.02


def test_a_step_that_draws_a_time_can_draw_the_last_one():
    """D3: t = T is trained."""
    diffusion = d3.D3PM(make_chain("uniform", 3, d3.schedules.cosine(4)).transition)
    for low_discrepancy in (False, True):
        t = diffusion.sample_t(400, low_discrepancy, torch.Generator().manual_seed(0))
        assert set(t.unique().tolist()) == {1, 2, 3, 4}


def test_loss_and_sampler_share_their_settings():
    chain = make_chain("marginal", 5).transition
    logits, x0, t = torch.randn(3, 4, 5), torch.randint(5, (3, 4)), torch.tensor([1, 2, 6])
    for reverse in ("joint", "posterior_mean"):
        for first_step in ("logits", "posterior"):
            diffusion = d3.D3PM(chain, reverse, first_step)
            x_t = diffusion.q_sample(x0, t)
            model = {"reverse": reverse, "first_step": first_step}
            same = d3.functional.loss(chain, logits, x0, x_t, t, ce_weight=0.1, **model)
            assert diffusion.loss(logits, x0, x_t, t, ce_weight=0.1) == same
            log_p = d3.functional.p_posterior(chain, logits, x_t, t, **model)
            assert torch.equal(diffusion.p_posterior(logits, x_t, t), log_p)
            log_q = d3.functional.q_posterior(chain, x0, x_t, t)
            assert torch.equal(diffusion.q_posterior(x0, x_t, t), log_q)


def test_copies_and_casts_keep_every_digit_of_the_tables():
    diffusion = d3.D3PM(make_chain("marginal", 5).transition)
    steps = diffusion.transition.step_table.clone()
    for other in (copy.deepcopy(diffusion).half(), copy.deepcopy(diffusion).to(torch.bfloat16)):
        assert torch.equal(other.transition.step_table[1:], steps[1:])
        assert other.transition.step_table.dtype == torch.float64
    assert list(diffusion.state_dict()) == ["_extra_state"]
    assert diffusion.to("meta").transition.step_table.is_meta
    assert "marginal, num_classes=5, num_steps=6" in repr(diffusion)

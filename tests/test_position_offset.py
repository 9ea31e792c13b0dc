"""Draws for a part of the positions of each item are those of the whole items."""

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import functional
from d3pm_fast.functional import Score, Shaped
from d3pm_fast.reference.philox import uniforms

ALSO_BY = ("triton", "cuda")
K, T, SHAPE, CUT = 7, 6, (3, 40), 17
BETAS = d3.schedules.cosine(T)
LOG_LINEAR = d3.schedules.continuous.log_linear()
CHAINS = {
    "uniform": d3.transitions.uniform(K, BETAS),
    "marginal": d3.transitions.marginal(K, BETAS, torch.arange(1, K + 1) / 28),
    "absorbing": d3.transitions.absorbing(K, BETAS, mask_id=2),
    "gaussian": d3.transitions.discretized_gaussian(K, d3.schedules.linear(T, 0.02, 0.4)),
    "neighbors": d3.transitions.nearest_neighbor(torch.randn(K, 2), 3, torch.linspace(0.1, 3, T)),
    "continuous": d3.transitions.uniform(K, LOG_LINEAR),
}
PARTS = (0, CUT), (CUT, SHAPE[1])


@pytest.fixture(params=CHAINS)
def chain(request):
    params = request.node.callspec.params
    if params.get("impl") == "cuda" and request.param in ("gaussian", "neighbors"):
        pytest.skip("not served")
    return CHAINS[request.param]


@pytest.fixture
def seeds():
    return torch.tensor([5, -3, 1 << 40])


def times(chain):
    t = torch.tensor([1, 3, T])
    return t if chain.has_steps else t.double() / T


def in_parts(draw, *tensors):
    """The draws of two parts of the positions, side by side."""
    parts = [
        draw(*(x[:, begin:end].contiguous() for x in tensors), position_offset=begin)
        for begin, end in PARTS
    ]
    return torch.cat(parts, dim=1)


def test_q_sample(chain, impl, seeds):
    x0, t = torch.randint(2, SHAPE), times(chain)

    def draw(x0, **options):
        return functional.q_sample(chain, x0, t, seeds=seeds, step=4, impl=impl, **options)

    whole = draw(x0)
    assert torch.equal(in_parts(draw, x0), whole)
    assert not torch.equal(draw(x0, position_offset=CUT), whole)


def test_p_sample(chain, impl, seeds):
    x_t, t = torch.randint(K, SHAPE), times(chain)
    s = None if chain.has_steps else t / 2
    logits = torch.randn(*SHAPE, K)

    def draw(logits, x_t, **options):
        return functional.p_sample(chain, logits, x_t, t, s, seeds=seeds, impl=impl, **options)

    assert torch.equal(in_parts(draw, logits, x_t), draw(logits, x_t))


@pytest.mark.parametrize("make", [lambda x: Shaped(x, top_k=3), Score], ids=["shaped", "score"])
def test_other_predictions(make, impl, seeds):
    if impl == "cuda" or (make is Score and impl != "reference"):
        pytest.skip("not served")
    chain = CHAINS["continuous"]
    x_t, t, logits = torch.randint(K, SHAPE), times(chain), torch.randn(*SHAPE, K)

    def draw(logits, x_t, **options):
        options |= {"seeds": seeds, "impl": impl}
        return functional.p_sample(chain, make(logits), x_t, t, t / 2, **options)

    assert torch.equal(in_parts(draw, logits, x_t), draw(logits, x_t))


@pytest.mark.parametrize("offset", [1, 2**32 - 20, 2**39])
def test_numbers_far_along(impl, seeds, offset):
    chain, x0 = CHAINS["uniform"], torch.zeros(SHAPE, dtype=torch.int64)
    options = {"seeds": seeds, "position_offset": offset}
    drawn = functional.q_sample(chain, x0, torch.full((3,), T), **options, impl=impl)
    choice, draw = (u.view(SHAPE) for u in uniforms(seeds, 0, x0.numel(), position_offset=offset))
    keeps, redraws, _ = chain.product_coefficients(torch.tensor(T))
    expected = (draw * K).long().where(choice < redraws, x0)
    assert keeps < 1
    assert torch.equal(drawn, expected)


FAR = 2**32 - 20


def test_steps_far_along(impl, seeds):
    """Across the end of 32 bits: as plain PyTorch, and not as if these began again."""
    chain, x_t, logits = CHAINS["uniform"], torch.randint(K, SHAPE), torch.randn(*SHAPE, K)

    def draw(begin, offset, by=impl):
        parts = logits[:, begin:].contiguous(), x_t[:, begin:].contiguous()
        options = {"seeds": seeds, "position_offset": offset, "impl": by}
        return functional.p_sample(chain, *parts, torch.tensor([2, 4, T]), **options)

    whole = draw(0, FAR)
    assert torch.equal(whole, draw(0, FAR, "reference"))
    assert torch.equal(whole[:, 20:], draw(20, 2**32))
    assert not torch.equal(whole[:, 20:], draw(20, 0))


def test_priors_far_along(chain, seeds):
    def draw(length, offset):
        return functional.sample_prior(chain, (3, length), seeds, position_offset=offset)

    whole = draw(40, FAR)
    assert torch.equal(whole[:, 20:], draw(20, 2**32))
    if chain.family != "absorbing":  # where all are masks
        assert not torch.equal(whole[:, 20:], draw(20, 0))


@pytest.mark.parametrize("num_times", [None, 4])
def test_bounds_of_parts_add_up(chain, seeds, num_times):
    diffusion, rows = d3.D3PM(chain), torch.randn(K, K).double()
    if not chain.has_steps:
        num_times = 4
    x0, options = torch.randint(2, SHAPE), {"num_times": num_times, "seeds": seeds}

    def bound(x0, position_offset=0):
        return diffusion.elbo(lambda x, t: rows[x], x0, position_offset=position_offset, **options)

    whole, parts = bound(x0), [bound(x0[:, begin:end], begin) for begin, end in PARTS]
    assert all(torch.equal(part.taken, whole.taken) for part in parts)
    for of in ("terms", "prior", "num_tokens"):
        torch.testing.assert_close(sum(getattr(part, of) for part in parts), getattr(whole, of))
    wrong = bound(x0[:, :CUT]).terms + bound(x0[:, CUT:]).terms
    assert not torch.allclose(wrong, whole.terms)


def test_sample_prior(chain, seeds):
    whole = functional.sample_prior(chain, SHAPE, seeds, 9)
    parts = [
        functional.sample_prior(chain, (3, end - begin), seeds, 9, position_offset=begin)
        for begin, end in PARTS
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_sample(chain, seeds):
    """Of a denoiser that looks at a token alone."""
    diffusion = d3.D3PM(chain)
    rows = torch.randn(K, K)
    steps = None if chain.has_steps else 4

    def draw(length, offset):
        return diffusion.sample(
            lambda x, t: rows[x], (3, length), steps, seeds=seeds, position_offset=offset
        )

    parts = [draw(end - begin, begin) for begin, end in PARTS]
    assert torch.equal(torch.cat(parts, dim=1), draw(SHAPE[1], 0))


def test_what_is_refused(seeds):
    chain, x0 = CHAINS["uniform"], torch.zeros(SHAPE, dtype=torch.int64)
    t = torch.ones(3, dtype=torch.int64)
    diffusion = d3.D3PM(chain)
    for offset, message in ((-1, "position_offset must be at least 0"), (2**40, "at most 2.40")):
        with pytest.raises(ValueError, match=message):
            diffusion.q_sample(x0, t, seeds=seeds, position_offset=offset)
        with pytest.raises(ValueError, match=message):
            diffusion.p_sample(torch.zeros(*SHAPE, K), x0, t, seeds=seeds, position_offset=offset)
        with pytest.raises(ValueError, match=message):
            diffusion.elbo(lambda x, t: torch.zeros(*x.shape, K), x0, position_offset=offset)
        with pytest.raises(ValueError, match=message):
            diffusion.sample_prior(SHAPE, seeds, position_offset=offset)
        with pytest.raises(ValueError, match=message):
            diffusion.sample(lambda x, t: torch.zeros(*x.shape, K), SHAPE, position_offset=offset)
    with pytest.raises(TypeError, match="position_offset must be an integer"):
        diffusion.q_sample(x0, t, position_offset=0.5)

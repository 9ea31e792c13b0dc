"""All implementations make the same choices of the same random numbers.

A draw of ``p(x_s | x_t)`` chooses a component (the model, pi, the mask or staying), and of the
model a class, the first whose running sum of masses passes a number. Each implementation rounds the
masses in its own way and adds them up in its own order. So where a sum is within rounding of the
number, two implementations may choose neighbouring classes: ``near_a_tie`` tells where. All other
choices are the same, and so are all choices of masses 0 and 1, whose sums are exact in every order.
"""

import pytest
import torch
from helpers.chains import (
    FAMILIES,
    FIRST_STEP,
    REVERSE,
    likely_pairs,
    make_chain,
    true_p_posterior,
)
from helpers.dense_chains import make_dense_chain

from d3pm_fast import functional
from d3pm_fast._environment import INTERPRET
from d3pm_fast.reference.philox import uniforms

DENSE_FAMILIES = ["gaussian", "from_matrices", "sparse_masked", "with_mask"]
DTYPES = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of a running sum, as a share of all
K = 17

others_than_the_cpu = pytest.mark.unserved(
    where=lambda kernels, **_: kernels == "cpu", reason="the others are compared with it"
)


def problem(chain, count=24):
    """Tokens at t = 1, 2, T - 1 and T."""
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), count)
    return x0, x_t, t, torch.arange(len(t))


def both(draw, kernels):
    return [draw(impl=name) for name in ("cpu", kernels)]


def near_a_tie(masses, seeds, rounding):
    """Whether any running sum of a row of masses is within rounding of the row's number."""
    _, draw = uniforms(seeds, 0, len(seeds))
    running = masses.cumsum(-1)
    near = ((running / running[:, -1:] - draw[:, None]).abs() < rounding).any(-1)
    assert near.double().mean() < 0.02
    return near


@others_than_the_cpu
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_of_exact_masses_every_choice_is_the_same(family, dtype, reverse, first_step, cpu, kernels):
    chain = make_chain(family, K)
    _, x_t, t, seeds = problem(chain)
    allowed = torch.rand(len(t), K) < torch.rand(len(t), 1)
    allowed[torch.arange(len(t)), torch.randint(K, (len(t),))] = True
    logits = torch.zeros(len(t), K, dtype=dtype).masked_fill(~allowed, -torch.inf)
    options = {"seeds": seeds, "reverse": reverse, "first_step": first_step}
    for s in (None, 0 * t):

        def draw(impl, s=s):
            return functional.p_sample(chain.transition, logits, x_t, t, s, impl=impl, **options)

        assert torch.equal(*both(draw, kernels))


@others_than_the_cpu
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_of_any_masses_choices_differ_at_ties_alone(family, dtype, reverse, cpu, kernels):
    chain = make_chain(family, K)
    _, x_t, t, seeds = problem(chain)
    logits = (3 * torch.randn(len(t), K)).to(dtype)

    def draw(impl):
        options = {"seeds": seeds, "reverse": reverse, "impl": impl}
        return functional.p_sample(chain.transition, logits, x_t, t, **options)

    masses = logits.double().softmax(-1)
    if reverse == "posterior_mean":
        reach = torch.stack([chain.product(0, int(n))[:, x] for n, x in zip(t, x_t, strict=True)])
        masses = (masses / reach).where(reach > 0, 0)
    near = near_a_tie(masses, seeds, ROUNDING[dtype])
    first, other = both(draw, kernels)
    assert torch.equal(first[~near], other[~near])


@others_than_the_cpu
@pytest.mark.parametrize("family", FAMILIES)
def test_noise_is_the_same(family, cpu, kernels):
    chain = make_chain(family, K)
    x0, _, t, seeds = problem(chain)

    def draw(impl):
        return functional.q_sample(chain.transition, x0, t, seeds=seeds, impl=impl)

    assert torch.equal(*both(draw, kernels))


@pytest.mark.parametrize("s_of", [lambda t: t - 1, lambda t: t // 2], ids=["last", "half"])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_choices_of_dense_chains_differ_at_ties_alone(family, dtype, reverse, s_of, cpu, triton):
    chain = make_dense_chain(family, 5)
    times = chain.edge_times()
    _, x_t, t, seeds = problem(chain, count=20 if dtype == torch.float32 else 3)
    logits = (3 * torch.randn(len(t), 5)).to(dtype)
    options = {"reverse": reverse, "first_step": "posterior"}

    def draw(impl):
        model = chain.transition, logits, x_t, t, s_of(t)
        return functional.p_sample(*model, seeds=seeds, impl=impl, **options)

    parts = zip(times, logits.chunk(len(times)), x_t.chunk(len(times)), strict=True)
    p = [true_p_posterior(chain, rows, x, s_of(n), n, **options) for n, rows, x in parts]
    near = near_a_tie(torch.cat(p), seeds, ROUNDING[dtype])
    first, other = both(draw, triton)
    assert torch.equal(first[~near], other[~near])


@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_noise_of_dense_chains_is_the_same(family, cpu, triton):
    chain = make_dense_chain(family, 5)
    x0, _, t, seeds = problem(chain)

    def draw(impl):  # at t = 0 too
        return functional.q_sample(chain.transition, x0, t - 1, seeds=seeds, impl=impl)

    assert torch.equal(*both(draw, triton))


@pytest.mark.skipif(not INTERPRET, reason="a GPU fuses products and sums, as nvcc makes CUDA do")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_is_the_same_to_the_last_bit_of_the_number(family, triton):
    """Numbers at the bounds of the components, and their neighbours."""
    chain = make_chain(family, K)
    count = 2000
    t = torch.randint(1, chain.num_steps + 1, (count,))
    x_t = torch.randint(K, (count,))
    step = chain.transition.step_record(t, (torch.rand(count) * t).long())
    keep, base, to_mask, bar_keep, bar_base, bar_mask, _ = step.table.unbind(-1)
    pi = torch.full((K,), 1 / K).double() if step.pi is None else step.pi
    is_mask = x_t == step.mask_id
    u = base * pi[x_t] + to_mask * is_mask
    bar_xt = bar_base * pi[x_t] + bar_mask * is_mask
    total = 1 + K * torch.rand(count, dtype=torch.float64)
    mass_xt = total * torch.rand(count, dtype=torch.float64)
    z = u + keep * (bar_keep * mass_xt / total + bar_xt)
    least = u + keep * bar_xt
    bounds = u[:, None] * torch.stack([bar_keep, bar_base, bar_mask], -1).cumsum(-1)
    from helpers import components

    decided = set()
    for bound in bounds.unbind(-1):
        for mass in (z, least):
            choice = (bound / mass).nan_to_num(0.5)
            for ulps in range(-2, 3):
                near = (choice * (1 + ulps * 2.0**-53)).clamp(0, 1 - 2.0**-53)
                numbers = torch.stack([near, mass_xt, total], -1)
                expected = components.by_header(step, K, x_t, numbers)
                assert torch.equal(components.by_triton(step, x_t, numbers), expected)
                decided |= set(map(tuple, expected.tolist()))
    assert len(decided) > 2


@pytest.mark.skipif(not INTERPRET, reason="runs in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rare_class_keeps_its_share_beside_a_sure_one(dtype, triton, monkeypatch):
    """The sum of their masses is that of one alone in float32."""
    from helpers import components

    monkeypatch.setattr("d3pm_fast.kernels.rank_one.p_sample.uniforms", components.almost_one)
    chain = make_chain("uniform", K)
    logits = torch.full((1, K), -torch.inf, dtype=dtype)
    logits[0, 4], logits[0, 5] = 0.0, -20.0  # of one line
    x_t, t, seeds = torch.tensor([6]), torch.tensor([1]), torch.tensor([1])
    model = chain.transition, logits, x_t, t
    drawn = functional.p_sample(*model, first_step="logits", seeds=seeds, impl=triton)
    assert drawn.tolist() == [5]


@others_than_the_cpu
@pytest.mark.parametrize("num_classes", [K, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *DTYPES])
@pytest.mark.parametrize("family", ["uniform", "absorbing_last"])
def test_so_is_that_of_logits_beside_which_all_others_are_nothing(
    family, dtype, num_classes, cpu, kernels
):
    chain = make_chain(family, num_classes)
    _, x_t, t, seeds = problem(chain)
    levels = 10 ** torch.linspace(3, 30, len(t), dtype=torch.float64)
    first = torch.randint(num_classes - 1, (len(t), 1))
    logits = torch.randn(len(t), num_classes).double().scatter_add(1, first, levels[:, None])

    def draw(impl):
        model = chain.transition, logits.to(dtype), x_t, t
        return functional.p_sample(*model, seeds=seeds, impl=impl)

    assert torch.equal(*both(draw, kernels))

"""The bound's density in continuous time against its definition."""

import mpmath
import pytest
import torch
from helpers.compare import assert_close, check_gradient
from helpers.continuous import FAMILIES, K, make_continuous_chain, true_density
from mpmath import mpf

from d3pm_fast import functional, transitions
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
SCHEDULES = [continuous.linear(), continuous.cosine(), continuous.geometric(1e-4, 8.0)]
TIMES = [1e-3, 0.37, 0.8, 0.999]
REVERSE = ["joint", "posterior_mean"]


def every_pair(chain, t):
    """All ``(x_0, x_t)`` that the chain can make at t."""
    return (chain.q_bar_matrix(t) > 0).nonzero().unbind(-1)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_agrees_with_its_definition(impl, family, schedule, reverse):
    chain = make_continuous_chain(family, schedule)
    for t in TIMES if impl in ("reference", "cpu") else TIMES[1:2]:
        x0, x_t = every_pair(chain.transition, t)
        leaf = (2 * torch.randn(len(x0), K, dtype=torch.float64)).requires_grad_()
        truth = true_density(chain, leaf, x0, x_t, t, reverse)
        (true_gradient,) = torch.autograd.grad(truth.sum(), leaf)
        times = torch.full((len(x0),), t, dtype=torch.float64)
        options = {"reverse": reverse, "impl": impl}
        loss = functional.loss(chain.transition, leaf, x0, x_t, times, reduction="none", **options)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert_close(loss, truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=4096, floor=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_schedule_that_keeps_nothing(impl, family):
    """The rate is infinite there: the limit is a cross-entropy for a mask, and 0 else."""
    make, _ = FAMILIES[family]
    x0 = torch.tensor([[0, 1, 3]])
    logits = torch.randn(1, 3, K, dtype=torch.float64)
    logits[..., K - 1] = -torch.inf  # the mask, or a class that the chain does not enter
    x_t = torch.full_like(x0, K - 1) if family == "absorbing" else torch.tensor([[0, 2, 2]])
    loss = functional.loss(
        make(K, continuous.linear()), logits, x0, x_t, torch.ones(1), reduction="none", impl=impl
    )
    entropy = torch.nn.functional.cross_entropy(logits[0], x0[0], reduction="none")[None]
    expected = entropy if family == "absorbing" else torch.zeros_like(entropy)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["uniform", "marginal", "mask_and_uniform"])
def test_losses_of_short_steps_tend_to_it(impl, family):
    """Their error falls like the length of the step."""
    chain = FAMILIES[family][0](K, continuous.linear())
    x0, x_t = every_pair(chain, 0.5)
    logits, t = torch.randn(len(x0), K, dtype=torch.float64), torch.full((len(x0),), 0.5).double()
    limit = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=impl)
    errors = []
    for step in (1e-3, 1e-4):
        options = {"reduction": "none", "impl": impl}
        loss = functional.loss(chain, logits, x0, x_t, t, t - step, **options) / step
        errors.append((loss - limit).abs().max())
    assert 8 < errors[0] / errors[1] < 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [27, 300])
def test_every_dtype(impl, dtype, num_classes):
    chain = transitions.mask_and_uniform(num_classes, continuous.log_linear(), 2, 0.3)
    x0 = torch.randint(num_classes, (6, 2))
    t = torch.tensor([0.01, 0.2, 0.5, 0.7, 0.9, 1.0])
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    logits = (2 * torch.randn(6, 2, num_classes)).to(dtype).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    results = []
    for leaf, name in ((logits, impl), (wide, "reference")):
        loss = functional.loss(chain, leaf, x0, x_t, t.double(), reduction="none", impl=name)
        results += [loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]]
    scale = results[2].abs() + (64 if impl == "reference" else 1)
    assert_close(results[0], results[2], dtype, ulps=64, scale=scale)
    floor = 64.0 if impl == "reference" else 1.0
    check_gradient(results[1], results[3], dtype, ulps=64, floor=floor)


def exact_density(logits, x0, x_t, t):
    """The uniform chain's with ``alpha(t) = 1 - t``, in mpmath's digits."""
    keep, lost = 1 - mpf(t), mpf(t) / K
    s = [mpmath.exp(x) for x in logits]
    total = mpmath.fsum(s)
    f = [keep * x / total + lost for x in s]
    d = [keep * (j == x0) + lost for j in range(K)]
    gains = [d[x_t] / f[x_t] * f[j] / d[j] - 1 for j in range(K)]
    terms = [d[j] / d[x_t] * (g - mpmath.log1p(g)) for j, g in enumerate(gains) if j != x_t]
    return mpmath.fsum(terms) / keep / K


def exact_with_gradient(row, *args):
    """The density and its gradient by differences, in 100 digits, as floats."""
    with mpmath.workdps(100):
        logits, step = [mpf(x) for x in row], mpf(10) ** -30
        sides = [
            [exact_density([*logits[:i], x + h, *logits[i + 1 :]], *args) for h in (step, -step)]
            for i, x in enumerate(logits)
        ]
        gradient = [float((up - down) / (2 * step)) for up, down in sides]
        return float(exact_density(logits, *args)), gradient


@pytest.mark.parametrize("confidence", [5.0, 12.0, 20.0])
def test_float32_keeps_the_digits_of_confident_tokens(cpu, confidence):
    """Where the published forms have none: losses down to 1e-12 nats, x_t = x_0 or not."""
    schedule, t = continuous.linear(), torch.tensor([0.5], dtype=torch.float64)
    chain = transitions.uniform(K, schedule)
    for x_t in (1, 3):
        logits = torch.zeros(1, 1, K)
        logits[..., 1] = confidence
        loss = functional.loss(chain, logits, torch.tensor([[1]]), torch.tensor([[x_t]]), t)
        truth, _ = exact_with_gradient(logits.flatten().tolist(), 1, x_t, 0.5)
        assert abs(float(loss) / truth - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53])
def test_both_ends_of_time_keep_their_digits(kernels, t, dtype):
    """Where ``1 - alpha`` is far below an ulp of 1, and where alpha is."""
    chain, row = transitions.uniform(K, continuous.linear()), [0.25, -1.0, 2.0, 0.0, -0.5]
    leaf = torch.tensor(row, dtype=dtype).expand(1, 2, K).clone().requires_grad_()
    x0, x_t = torch.tensor([[1, 1]]), torch.tensor([[1, 3]])
    times = torch.tensor([t], dtype=torch.float64)
    loss = functional.loss(chain, leaf, x0, x_t, times, reduction="none", impl=kernels)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    exact = [exact_with_gradient(row, 1, z, t) for z in (1, 3)]
    truth, slopes = (torch.tensor([x], dtype=torch.float64) for x in zip(*exact, strict=True))
    assert_close(loss, truth, dtype, ulps=16)
    check_gradient(gradient, slopes, dtype, ulps=64)


def test_a_shift_of_logits_changes_nothing(impl):
    chain = transitions.uniform(K, continuous.linear())
    x0, x_t, t = torch.tensor([[0, 1]]), torch.tensor([[0, 3]]), torch.tensor([0.4])
    logits = torch.randn(1, 2, K, dtype=torch.float64)
    plain, shifted = (
        functional.loss(chain, logits + c, x0, x_t, t, reduction="none", impl=impl)
        for c in (0.0, -1000.0)
    )
    assert_close(shifted, plain, torch.float64, ulps=4096, scale=plain.abs() + 1)


def test_undefined_and_masked_tokens(impl):
    chain = transitions.absorbing(K, continuous.linear(), K - 1)
    x0, x_t, t = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3, 4]]), torch.tensor([0.5])
    logits, mask = torch.randn(1, 3, K), torch.tensor([[True, True, False]])
    options = {"reduction": "none", "impl": impl, "mask": mask}
    loss = functional.loss(chain, logits, x0, x_t, t, **options)
    assert loss[0, 0] == 0
    assert loss[0, 1].isnan()
    assert loss[0, 2] == 0


def test_the_cross_entropy_beside_it(impl):
    chain = transitions.uniform(K, continuous.linear())
    x0, x_t, t = torch.tensor([[0, 1]]), torch.tensor([[0, 3]]), torch.tensor([0.4])
    logits = torch.randn(1, 2, K, dtype=torch.float64)
    term = {"reduction": "sum", "impl": impl}
    both = functional.loss(chain, logits, x0, x_t, t, vb_weight=0.5, ce_weight=2.0, **term)
    bound = functional.loss(chain, logits, x0, x_t, t, **term)
    entropy = torch.nn.functional.cross_entropy(logits[0], x0[0], reduction="sum")
    assert_close(both, 0.5 * bound + 2 * entropy, torch.float64, ulps=64)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_an_empty_batch_has_no_loss(impl, shape):
    chain, tokens = transitions.uniform(K, continuous.linear()), torch.zeros(shape).long()
    leaf = torch.zeros(*shape, K, requires_grad=True)
    args = chain, leaf, tokens, tokens, torch.full(shape[:1], 0.5)
    for reduction, expected in (("none", shape), ("batch", shape[:1]), ("sum", ())):
        loss = functional.loss(*args, reduction=reduction, impl=impl)
        assert loss.shape == expected
        assert (loss == 0).all()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.shape == leaf.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_may_have_its_own_time(impl, family):
    chain = make_continuous_chain(family, continuous.cosine())
    x0, t = torch.randint(K - 1, (3, 4)), 0.9 * torch.rand(3, 4, dtype=torch.float64)
    x_t = functional.q_sample(chain.transition, x0, t, impl="reference")
    leaf = torch.randn(3, 4, K, dtype=torch.float64, requires_grad=True)
    options = {"reduction": "none", "impl": impl}
    loss = functional.loss(chain.transition, leaf, x0, x_t, t, **options)
    tokens = zip(leaf.view(-1, K), x0.flatten(), x_t.flatten(), t.flatten().tolist(), strict=True)
    truth = torch.cat(
        [true_density(chain, row[None], x[None], z[None], u) for row, x, z, u in tokens]
    )
    (gradient,), (true_gradient,) = (
        torch.autograd.grad(value.sum(), leaf) for value in (loss, truth)
    )
    assert_close(loss.flatten(), truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=4096, floor=0.1)


def test_no_token_counts(impl):
    """Nor is it looked at: neither its class nor its logits."""
    chain = transitions.absorbing(K, continuous.linear(), K - 1)
    tokens, mask = torch.full((2, 3), 99), torch.zeros(2, 3, dtype=torch.bool)
    leaf = torch.full((2, 3, K), torch.nan, requires_grad=True)
    args = chain, leaf, tokens, tokens, torch.tensor([0.3, 0.7])
    for reduction in ("none", "batch", "sum"):
        loss = functional.loss(*args, mask=mask, reduction=reduction, impl=impl)
        assert (loss == 0).all()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert (gradient == 0).all()


def test_every_token_is_the_mask_or_none_is(impl):
    """The cross-entropy of all tokens with its weight; or exactly nothing."""
    chain, t = transitions.absorbing(K, continuous.linear(), K - 1), torch.tensor([0.3, 0.7])
    x0, leaf = torch.randint(K - 1, (2, 3)), torch.randn(2, 3, K, dtype=torch.float64)
    leaf[..., K - 1] = -torch.inf
    leaf.requires_grad_()
    options = {"reduction": "sum", "impl": impl}
    loss = functional.loss(chain, leaf, x0, torch.full_like(x0, K - 1), t, **options)
    entropy = torch.nn.functional.cross_entropy(leaf.movedim(-1, 1), x0, reduction="none")
    expected = (entropy.sum(1) / t.double()).sum()
    assert_close(loss, expected, torch.float64, ulps=64)
    found, truth = (torch.autograd.grad(value, leaf)[0] for value in (loss, expected))
    check_gradient(found, truth, torch.float64, ulps=64)
    none = functional.loss(chain, leaf, x0, x0, t, **options)
    assert none == 0
    assert (torch.autograd.grad(none, leaf)[0] == 0).all()


@pytest.mark.parametrize("edge_corrected", [False, True])
@pytest.mark.parametrize("make", [transitions.uniform, transitions.absorbing])
def test_parameters_of_a_logistic(impl, make, edge_corrected):
    """As of the logits that they stand for, by their own autograd."""
    options = {"mask_id": 3, "data_has_mask": True} if make is transitions.absorbing else {}
    chain, t = make(17, continuous.cosine(), **options), torch.tensor([1e-3, 0.4, 0.99])
    x0 = torch.randint(17, (3, 4))
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    pair = [x.requires_grad_() for x in torch.randn(2, 3, 4, dtype=torch.float64)]
    dense = functional.logistic_logits(*pair, 17, edge_corrected=edge_corrected, impl="reference")
    predictions = functional.Logistic(*pair, edge_corrected), dense
    names = impl, "reference"
    losses = [
        functional.loss(chain, prediction, x0, x_t, t, reduction="none", impl=name)
        for prediction, name in zip(predictions, names, strict=True)
    ]
    assert_close(*losses, torch.float64, ulps=4096, scale=losses[1].abs() + 1)
    found, truth = (torch.stack(torch.autograd.grad(x.sum(), pair)) for x in losses)
    check_gradient(found.flatten(1), truth.flatten(1), torch.float64, ulps=4096)

"""Logits with the classes in dimension 1, as U-Nets give them and ``F.cross_entropy`` has them."""

import pytest
import torch
from helpers.compare import assert_close, check_gradient, same_bits

import d3pm_fast as d3
from benchmarks.memory import peak_bytes
from d3pm_fast import functional, samplers, schedules, transitions
from d3pm_fast.functional import Logistic, Score, Shaped

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K, T = 7, 5
BETAS = torch.linspace(0.1, 0.5, T, dtype=torch.float64)
POINTS = torch.arange(K, dtype=torch.float64)[:, None] ** 1.1  # on a line: all are linked
RANK_ONE = {
    "uniform": transitions.uniform(K, BETAS),
    "absorbing": transitions.absorbing(K, BETAS, 2),
    "masked_uniform": transitions.masked_uniform(K, BETAS, 0.5 * BETAS, K - 1),
    "continuous": transitions.mask_and_uniform(K, schedules.continuous.cosine(), 2, 0.3),
}
DENSE = {
    "discretized_gaussian": transitions.discretized_gaussian(K, BETAS),
    "sparse": transitions.nearest_neighbor(POINTS, 2, BETAS.cumsum(0), memory_budget=1),
}
CHAINS = RANK_ONE | DENSE
SHAPES = [(3,), (3, 4), (3, 2, 4), (2, 2, 1, 3)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda logits: logits.movedim(-1, 1).contiguous(),
    "channels_last": lambda logits: logits.contiguous().movedim(-1, 1),
}


def problem(chain, shape=(3, 2, 4), dtype=torch.float64):
    """Logits with the classes last, x_0, x_t, t and s."""
    x0 = torch.randint(K, shape)
    x0 = torch.where(x0 == chain.mask_id, (x0 + 1) % K, x0)
    if chain.has_steps:
        t, s = torch.randint(1, T + 1, shape[:1]), None
    else:
        t = 0.1 + 0.8 * torch.rand(shape[:1], dtype=torch.float64)
        s = 0.5 * t
    x_t = functional.q_sample(chain, x0, t)
    return (2 * torch.randn(*shape, K)).to(dtype), x0, x_t, t, s


def skip_unserved(impl, chain):
    if impl == "cuda" and chain not in RANK_ONE.values():
        pytest.skip("no kernel")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHAINS)
def test_a_loss_and_its_gradient(impl, name, shape, layout, dtype):
    chain = CHAINS[name]
    skip_unserved(impl, chain)
    logits, x0, x_t, t, _ = problem(chain, shape, dtype)
    last = logits.double().requires_grad_()
    options = {"ce_weight": 0.3, "reduction": "none"}
    truth = functional.loss(chain, last, x0, x_t, t, impl="reference", **options)
    (true_gradient,) = torch.autograd.grad(truth.sum(), last)
    leaf = LAYOUTS[layout](logits).requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, class_dim=1, impl=impl, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.shape == leaf.shape == (shape[0], K, *shape[1:])
    ulps = 4096 if dtype == torch.float64 else 64
    assert_close(loss, truth, dtype, ulps=ulps, scale=truth.abs() + 0.1)
    check_gradient(gradient.movedim(1, -1), true_gradient, dtype, ulps=ulps, floor=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHAINS)
def test_posteriors_have_the_layout_of_the_logits(impl, name, shape, layout):
    chain = CHAINS[name]
    skip_unserved(impl, chain)
    logits, x0, x_t, t, s = problem(chain, shape)
    found = functional.q_posterior(
        chain, x0, x_t, t, s, dtype=torch.float64, class_dim=1, impl=impl
    )
    truth = functional.q_posterior(chain, x0, x_t, t, s, dtype=torch.float64, impl="reference")
    assert_close(found.movedim(1, -1), truth, torch.float64, ulps=4096, scale=1 + truth.abs())
    last = logits.double().requires_grad_()
    truth = functional.p_posterior(chain, last, x_t, t, s, impl="reference")
    upstream = torch.randn(truth.shape, dtype=torch.float64).where(truth > -torch.inf, 0)
    (true_gradient,) = torch.autograd.grad(truth, last, upstream)
    leaf = LAYOUTS[layout](logits.double()).requires_grad_()
    log_p = functional.p_posterior(chain, leaf, x_t, t, s, class_dim=1, impl=impl)
    assert log_p.shape == leaf.shape
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream.movedim(-1, 1))
    assert_close(log_p.movedim(1, -1), truth, torch.float64, ulps=4096, scale=1 + truth.abs())
    check_gradient(gradient.movedim(1, -1), true_gradient, torch.float64, ulps=4096, floor=0.1)


@pytest.mark.exhaustive(where=lambda impl, name: impl == "triton" and name in DENSE)
@pytest.mark.parametrize("name", CHAINS)
def test_a_draw_is_that_of_classes_last(impl, name):
    chain = CHAINS[name]
    skip_unserved(impl, chain)
    logits, _, x_t, t, s = problem(chain)
    options = {"seeds": torch.arange(len(x_t)), "impl": impl}
    other = torch.randn_like(logits)
    for make in (lambda a, b: a, lambda a, b: Shaped(a, b, guidance=1.5, top_k=4)):
        expected = functional.p_sample(chain, make(logits, other), x_t, t, s, **options)
        first = make(logits.movedim(-1, 1), other.movedim(-1, 1).contiguous())
        assert torch.equal(
            functional.p_sample(chain, first, x_t, t, s, class_dim=1, **options), expected
        )


def test_logits_without_the_mask(impl):
    chain = CHAINS["masked_uniform"]
    logits, x0, x_t, t, _ = problem(chain)
    part = logits[..., :-1]
    found = functional.loss(chain, part.movedim(-1, 1), x0, x_t, t, class_dim=1, impl=impl)
    assert same_bits(found, functional.loss(chain, part, x0, x_t, t, impl=impl))


@pytest.mark.exhaustive(where=lambda impl, name: impl == "triton" and name in DENSE)
@pytest.mark.parametrize("name", ["uniform", "discretized_gaussian"])
def test_parameters_of_a_logistic_have_no_axis_of_classes(impl, name):
    chain = CHAINS[name]
    skip_unserved(impl, chain)
    _, x0, x_t, t, _ = problem(chain)
    given = Logistic(*torch.randn(2, *x0.shape, dtype=torch.float64))
    found, expected = (
        functional.loss(chain, given, x0, x_t, t, class_dim=dim, impl=impl) for dim in (1, -1)
    )
    assert same_bits(found, expected)
    found, expected = (
        functional.p_posterior(chain, given, x_t, t, class_dim=dim, impl=impl) for dim in (1, -1)
    )
    assert same_bits(found, expected.movedim(-1, 1))


def test_a_score(impl):
    chain = CHAINS["continuous"]
    scores, x0, x_t, t, s = problem(chain)
    expected = functional.loss(chain, Score(scores), x0, x_t, t, impl=impl)
    first = Score(scores.movedim(-1, 1).contiguous())
    assert same_bits(functional.loss(chain, first, x0, x_t, t, class_dim=1, impl=impl), expected)
    expected = functional.p_posterior(chain, Score(scores), x_t, t, s)
    found = functional.p_posterior(chain, first, x_t, t, s, class_dim=1)
    assert same_bits(found.movedim(1, -1), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_second_derivative(cpu, layout):
    chain = CHAINS["uniform"]
    logits, x0, x_t, t, _ = problem(chain, (2, 3))

    def loss(leaf):
        return functional.loss(chain, leaf, x0, x_t, t, class_dim=1, impl=cpu)

    torch.autograd.gradgradcheck(loss, LAYOUTS[layout](logits).requires_grad_())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compiled_step(cpu, layout):
    diffusion = d3.D3PM(CHAINS["uniform"], impl=cpu, class_dim=1)
    logits, x0, x_t, t, _ = problem(diffusion.transition, dtype=torch.float32)
    leaf = LAYOUTS[layout](logits).requires_grad_()

    def step(logits):
        loss = diffusion.loss(logits, x0, x_t, t)
        return loss, diffusion.p_posterior(logits, x_t, t)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    upstream = torch.randn_like(leaf)
    found, expected = (
        (*results, *torch.autograd.grad(results, leaf, (torch.ones(()), upstream)))
        for results in (compiled(leaf), step(leaf))
    )
    for result, eager in zip(found, expected, strict=True):
        assert same_bits(result, eager)


@pytest.mark.parametrize("shape", [(8, 512), (4, 32, 32)])
@pytest.mark.parametrize("name", ["uniform", "discretized_gaussian"])
def test_no_copy_but_of_classes_that_are_apart_in_a_dense_chain(cpu, name, shape):
    """Bytes beside the logits: their gradient, and a copy; never a second copy of the gradient."""
    classes = 64
    chain = getattr(transitions, name)(classes, BETAS)
    x0, x_t = torch.randint(classes, (2, *shape))
    t = torch.randint(1, T + 1, shape[:1])
    logits = torch.randn(*shape, classes)
    size = logits.numel() * logits.element_size()

    def copies(given, class_dim):
        leaf = given.requires_grad_()

        def gradient():
            loss = functional.loss(chain, leaf, x0, x_t, t, class_dim=class_dim, impl=cpu)
            return torch.autograd.grad(loss, leaf)

        return peak_bytes(gradient) / size

    last = copies(logits.clone(), -1)  # a dense chain sorts tokens by their times
    if name == "uniform":
        assert last == pytest.approx(1, abs=0.05)
    assert copies(LAYOUTS["channels_last"](logits.clone()), 1) == pytest.approx(last, abs=0.01)
    apart = last + (name != "uniform")
    assert copies(LAYOUTS["contiguous"](logits), 1) == pytest.approx(apart, abs=0.01)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 37), (3, 4, 16), (2, 5, 5)])
@pytest.mark.parametrize("classes", [5, 64, 300])
def test_vectors_of_neighbours_and_tokens_that_have_none(cpu, classes, shape, dtype, reduction):
    """Items longer than a vector, tokens without a loss, K - 1 logits, and gradients at once."""
    chain = transitions.absorbing(classes, BETAS, classes - 1)
    x0, t = torch.randint(classes - 1, shape), torch.tensor([1, T // 2, T])[: shape[0]]
    x_t = functional.q_sample(chain, x0, t)
    weights, mask = torch.rand(shape), torch.rand(shape) < 0.8
    logits = (2 * torch.randn(*shape, classes - 1)).to(dtype)
    upstream = 2.0 ** torch.randint(-1, 2, shape if reduction == "none" else ())
    options = {"mask": mask, "weights": weights, "ce_weight": 0.3, "reduction": reduction}

    def found(logits, class_dim, impl):
        leaf = logits.requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, class_dim=class_dim, impl=impl, **options)
        (gradient,) = torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))
        return loss.detach(), gradient.movedim(class_dim, -1)

    truth, true_gradient = found(logits.double(), -1, "reference")
    loss, gradient = found(LAYOUTS["contiguous"](logits), 1, cpu)
    ulps = 4096 if dtype == torch.float64 else 64
    assert_close(loss, truth, dtype, ulps=ulps, scale=truth.abs() + 0.1)
    check_gradient(gradient, true_gradient, dtype, ulps=ulps, floor=0.1)


def network(x_t, t):
    """Logits with the classes last."""
    weight = torch.arange(K * K, dtype=torch.float64).view(K, K).sin()
    return torch.nn.functional.one_hot(x_t, K).double() @ weight


def class_first(x_t, t):
    return network(x_t, t).movedim(-1, 1).contiguous()


@pytest.mark.parametrize("served_by", ["reference", "auto"])
def test_the_module_has_one_layout(served_by):
    """What a network returns in a loss, a bound, posteriors and every sampler."""
    _, x0, x_t, t, _ = problem(CHAINS["absorbing"])

    def results(denoiser, class_dim):
        diffusion = d3.D3PM(CHAINS["absorbing"], impl=served_by, class_dim=class_dim)
        logits, seeds = denoiser(x_t, t), {"seeds": torch.arange(3)}
        draws = denoiser, x_t.shape
        return [
            diffusion.loss(logits, x0, x_t, t),
            diffusion.loss(logits, x0, x_t, t, ce_weight=torch.tensor(0.1)),
            *diffusion.loss_terms(logits, x0, x_t, t, ce_weight=0.1),
            diffusion.elbo(denoiser, x0, **seeds).terms,
            diffusion.p_posterior(logits, x_t, t).movedim(class_dim, -1),
            diffusion.q_posterior(x0, x_t, t).movedim(class_dim, -1),
            diffusion.p_sample(logits, x_t, t, **seeds),
            diffusion.sample(*draws, **seeds),
            diffusion.sample(*draws, **seeds, last="argmax"),
            diffusion.sample(*draws, **seeds, time_independent=True),
            samplers.first_hitting(diffusion, *draws, **seeds),
            samplers.confidence(diffusion, *draws, **seeds),
        ]

    for found, expected in zip(results(class_first, 1), results(network, -1), strict=True):
        assert same_bits(found, expected)


def test_it_is_shown_where_it_is_not_the_default():
    assert "class_dim=1" in repr(d3.D3PM(CHAINS["uniform"], class_dim=1))
    assert "class_dim" not in repr(d3.D3PM(CHAINS["uniform"]))


def test_a_wrong_layout_is_named_in_the_layout_of_the_caller():
    chain = CHAINS["uniform"]
    logits, x0, x_t, t, _ = problem(chain)
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 7\), got \(3, 7, 2, 4\); .*class_dim=1$"):
        functional.loss(chain, logits.movedim(-1, 1), x0, x_t, t)
    with pytest.raises(ValueError, match=r"\(3, 7, 2, 4\), got \(3, 2, 4, 7\); .*class_dim=-1$"):
        functional.p_posterior(chain, logits, x_t, t, class_dim=1)
    with pytest.raises(ValueError, match=r"shape \(3, 7, 2, 4\), got \(3, 8, 2, 4\)$"):
        functional.p_sample(chain, torch.zeros(3, 8, 2, 4), x_t, t, class_dim=1)
    with pytest.raises(ValueError, match=r"shape \(3, 7, 2, 4\), got \(3,\)$"):
        functional.p_sample(chain, torch.zeros(3), x_t, t, class_dim=1)
    for call in (
        lambda: d3.D3PM(chain, class_dim=2),
        lambda: functional.loss(chain, logits, x0, x_t, t, class_dim=2),
        lambda: functional.q_posterior(chain, x0, x_t, t, class_dim=2),
    ):
        with pytest.raises(ValueError, match="class_dim must be one of -1, 1, got 2"):
            call()

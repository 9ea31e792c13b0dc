"""The operations inside PyTorch: compilation, registration, autocast, layouts, repeated use."""

import pytest
import torch
from helpers.chains import make_chain
from helpers.compare import assert_gradient_close, same_bits
from helpers.dense_chains import make_dense_chain

import d3pm_fast as d3
from d3pm_fast import _environment, functional, ops

K, B, P = 17, 3, 5
CHAIN = make_chain("mask_and_uniform", K).transition
DIFFUSION = d3.D3PM(CHAIN)


@pytest.fixture
def tokens():
    x0 = torch.randint(K, (B, P))
    t = torch.tensor([1, 3, 6])
    return x0, DIFFUSION.q_sample(x0, t), t


def gradient(logits, compute):
    leaf = logits.detach().clone().requires_grad_()
    value = compute(leaf)
    value.sum().backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
def test_the_loss_compiles_into_one_graph(reduction, dtype, masked, tokens, cpu):
    mask = torch.rand(B, P) < 0.7 if masked else None
    logits = torch.randn(B, P, K).to(dtype)

    def compute(x):
        options = {"ce_weight": 0.1, "mask": mask, "reduction": reduction, "impl": cpu}
        return 0.7 * functional.loss(CHAIN, 2 * x, *tokens, **options)

    torch._dynamo.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    eager_value, eager_grad = gradient(logits, compute)
    value, grad = gradient(logits, compiled)
    assert torch.equal(value, eager_value)
    assert_gradient_close(grad, eager_grad.double(), dtype, ulps=4)


@pytest.mark.parametrize("cut", [lambda x: x, lambda x: (x[..., 0],) * 2], ids=["logits", "pair"])
def test_one_tensor_may_be_given_twice_to_what_is_compiled(cut, tokens, cpu):
    x_t, t = tokens[1:]

    def loss(x):
        return functional.loss(CHAIN, cut(x), x_t, x_t, t, impl=cpu)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits = torch.randn(B, P, K)
    (value, grad), (expected, eager_grad) = (gradient(logits, f) for f in (compiled, loss))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, eager_grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_training_step_compiles_with_the_default_backend(tokens, cpu):
    layer = torch.nn.Linear(4, K)
    inputs = torch.randn(B, P, 4)

    def compute(x):
        return functional.loss(CHAIN, layer(x), *tokens, impl=cpu)

    torch._dynamo.reset()
    loss = torch.compile(compute, fullgraph=True)(inputs)
    loss.backward()
    compiled = layer.weight.grad.clone()
    layer.zero_grad()
    expected = compute(inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(compiled, layer.weight.grad)


def test_posteriors_and_draws_compile_into_one_graph(tokens, cpu):
    x0, x_t, t = tokens
    logits = torch.randn(B, P, K)

    def log_p(x):
        return functional.p_posterior(CHAIN, x, x_t, t, impl=cpu)

    weights = torch.rand(B, P, K)
    torch._dynamo.reset()
    compiled = torch.compile(log_p, fullgraph=True, backend="aot_eager")
    value, grad = gradient(logits, lambda x: compiled(x) * weights)
    eager_value, eager_grad = gradient(logits, lambda x: log_p(x) * weights)
    torch.testing.assert_close(value, eager_value)
    torch.testing.assert_close(grad, eager_grad)

    seeds = torch.arange(B)

    def draw(x):
        x_s = functional.p_sample(CHAIN, x, x_t, t, seeds=seeds, impl=cpu)
        y = functional.q_sample(CHAIN, x0, t, seeds=seeds, impl=cpu)
        return x_s, y, functional.q_posterior(CHAIN, x0, x_t, t, impl=cpu)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(logits), draw(logits), strict=True):
        assert torch.equal(one, other)


def whole_step(layer, x0, weight, impl):
    """Draw times and noise, predict, and return the loss, as the documentation has it."""
    t = DIFFUSION.sample_t(len(x0), low_discrepancy=True)
    x_t = DIFFUSION.q_sample(x0, t)
    logits = layer(torch.nn.functional.one_hot(x_t, K).float())
    return functional.loss(CHAIN, logits, x0, x_t, t, ce_weight=weight, impl=impl)


@pytest.mark.parametrize(("dynamic", "as_tensor"), [(None, False), (True, False), (None, True)])
def test_a_compiled_step_takes_any_batch_and_an_annealed_weight(dynamic, as_tensor, cpu):
    layer = torch.nn.Linear(K, K)
    torch._dynamo.reset()
    options = {"fullgraph": True, "backend": "aot_eager", "dynamic": dynamic}
    compiled = torch.compile(whole_step, **options)
    for batch, weight in [(4, 1.0), (6, 0.5), (3, 0.25)]:
        x0 = torch.randint(K, (batch, P))
        results = []
        for step in (whole_step, compiled):
            torch.manual_seed(batch)
            layer.zero_grad()
            loss = step(layer, x0, torch.tensor(weight) if as_tensor else weight, cpu)
            loss.backward()
            results.append((loss.detach(), layer.weight.grad.clone()))
        (expected, gradient_of), (loss, made) = results
        torch.testing.assert_close(loss, expected)
        assert_gradient_close(made, gradient_of.double(), torch.float32, ulps=16)


CONTINUOUS = {
    "uniform": d3.transitions.uniform(K, d3.schedules.continuous.linear()),
    "absorbing": d3.transitions.absorbing(K, d3.schedules.continuous.log_linear(), K - 1),
    "gidd": d3.transitions.gidd(K, K - 1, 0.2),
    "masked_uniform": d3.transitions.masked_uniform(
        K, d3.schedules.continuous.cosine(), d3.schedules.continuous.linear(), K - 1
    ),
}


@pytest.mark.parametrize("family", CONTINUOUS)
def test_a_step_in_continuous_time_compiles_for_any_batch(family, cpu):
    diffusion = d3.D3PM(CONTINUOUS[family], impl=cpu)

    def step(logits, x0, weights):
        t = diffusion.sample_t(len(x0), low_discrepancy=True)
        x_t = diffusion.q_sample(x0, t)
        terms = diffusion.loss_terms(logits, x0, x_t, t, weights=weights)
        drawn = diffusion.p_sample(logits.detach(), x_t, t, t / 2, seeds=torch.arange(len(x0)))
        return terms.loss, terms.vb, terms.ce, drawn

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (3, 4, 5):
        x0, weights = torch.randint(K - 1, (batch, P)), torch.rand(batch)
        leaf = torch.randn(batch, P, K, requires_grad=True)
        results = []
        for run in (step, compiled):
            torch.manual_seed(batch)
            loss, *others = run(leaf, x0, weights)
            results.append((loss, *others, *torch.autograd.grad(loss, leaf)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_skipped_steps_and_shapes_of_draws_compile_for_any_batch(cpu):
    def draw(logits, x_t, t, temperature):
        s, seeds = t // 2, torch.arange(len(t))
        shaped = functional.Shaped(logits, temperature=temperature, top_k=5)
        log_p = functional.p_posterior(CHAIN, logits, x_t, t, s, impl=cpu)
        loss = functional.loss(CHAIN, logits, x_t, x_t, t, s, reduction="batch", impl=cpu)
        return functional.p_sample(CHAIN, shaped, x_t, t, s, seeds=seeds, impl=cpu), log_p, loss

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for batch, temperature in [(3, 1.0), (4, 0.9), (5, 0.7)]:
        x_t, t = torch.randint(K, (batch, P)), torch.arange(batch) % 6 + 1
        logits = torch.randn(batch, P, K)
        made = compiled(logits, x_t, t, temperature)
        for one, other in zip(made, draw(logits, x_t, t, temperature), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_weight_may_be_a_tensor_and_is_differentiated(reduction, tokens, impl):
    logits = torch.randn(B, P, K, dtype=torch.float64)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)

    def compute(x, vb, ce):
        options = {"vb_weight": vb, "ce_weight": ce, "reduction": reduction, "impl": impl}
        return functional.loss(CHAIN, x, *tokens, **options)

    value, grad = gradient(logits, lambda x: compute(x, *weights))
    expected, expected_grad = gradient(logits, lambda x: compute(x, 0.7, 0.3))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    terms = [compute(logits, *only).sum() for only in ((1.0, 0.0), (0.0, 1.0))]
    torch.testing.assert_close(weights.grad, torch.stack(terms))
    assert terms[0] != terms[1]


def op_arguments(family):
    chain = make_chain(family, K).transition
    x0 = torch.randint(K, (B, P))
    t = torch.tensor([1, 3, 6])
    x_t = functional.q_sample(chain, x0, t)
    logits, seeds = torch.randn(B, P, K), torch.arange(B)
    step = (t, chain.step_table, chain.pi, chain.pi_cdf, chain.mask_id, K, -1)
    mask = torch.rand(B, P) < 0.7
    loss = (logits, x0, mask, x_t, *step, False, True, 1.0, 0.1, None, False, False)
    head = torch.randn(K, 3), torch.randn(K), K, torch.float32, -1, 99, -1, "rows", True, True
    linear = torch.randn(B, P, 3), *head, *loss[1:]
    return {
        "linear_loss": (*linear, "none"),
        "linear_loss_and_grad": (*linear, "mean", False),
        "loss": (*loss, "none"),
        "loss_and_grad": (*loss, "mean", False),
        "q_posterior": (x0, x_t, *step, torch.float32),
        "p_posterior": (logits, x_t, *step, False, True),
        "p_posterior_grad": (logits, x_t, *step, False, True, torch.randn(B, P, K)),
        "q_sample": (x0, t, chain.product_table, chain.pi_cdf, chain.mask_id, K, seeds, 0, 2),
        "p_sample": (logits, x_t, *step, False, True, seeds, 0, 2),
        "shaped_p_sample": (
            logits,
            x_t,
            *step,
            False,
            True,
            seeds,
            0,
            2,
            -logits,
            2.0,
            0.5,
            4,
            0.9,
            0.01,
            -1,
        ),
    }


@pytest.mark.exhaustive(where=lambda kernels, op, **_: kernels == "triton" and "linear" in op)
@pytest.mark.parametrize("op", list(op_arguments("uniform")))
@pytest.mark.parametrize("family", ["uniform", "marginal", "absorbing_last"])
def test_opcheck_finds_nothing(family, op, kernels):
    if not getattr(ops, op).is_served(kernels, CHAIN.structure):
        pytest.skip("this implementation has no such operation")
    name = op if kernels == "cpu" else f"{kernels}_{op}"
    torch.library.opcheck(getattr(torch.ops.d3pm_fast, name).default, op_arguments(family)[op])


@pytest.mark.parametrize("family", CONTINUOUS)
@pytest.mark.parametrize("op", ["loss", "loss_and_grad"])
@pytest.mark.usefixtures("cpu")
def test_opcheck_finds_nothing_in_continuous_time(family, op):
    chain, t = CONTINUOUS[family], torch.rand(B, dtype=torch.float64)
    x0, mask, factors = torch.randint(K - 1, (B, P)), torch.rand(B, P) < 0.7, torch.rand(B, P)
    x_t = functional.q_sample(chain, x0, t)
    step, is_density = chain.loss_record(t, None)
    step = chain.of_tokens(step, x_t=x_t)
    logits = torch.randn(B, P, K)
    of = (logits, x0, mask, x_t, *step, False, False, 1.0, 0.1, factors, is_density, True)
    how = ("none",) if op == "loss" else ("mean", False)
    torch.library.opcheck(getattr(torch.ops.d3pm_fast, op).default, (*of, *how))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_logits_are_served_as_they_are(dtype, continuous, tokens, impl):
    layer = torch.nn.Linear(4, K)
    chain = CONTINUOUS["uniform"] if continuous else CHAIN
    x0, x_t, t = tokens
    with torch.autocast("cpu", dtype):
        logits = layer(torch.randn(B, P, 4))
        loss = functional.loss(chain, logits, x0, x_t, t / 8 if continuous else t, impl=impl)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.abs().sum() > 0


def test_the_value_does_not_depend_on_gradients_being_wanted(tokens, impl):
    logits = torch.randn(B, P, K, requires_grad=True)
    options = {"ce_weight": 0.1, "reduction": "none", "impl": impl}
    wanted = functional.loss(CHAIN, logits, *tokens, **options)
    assert wanted.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value = functional.loss(CHAIN, logits, *tokens, **options)
        assert not value.requires_grad
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_pass_gives_the_same_gradient(reduction, tokens, impl):
    logits = torch.randn(B, P, K, requires_grad=True)
    loss = functional.loss(CHAIN, logits, *tokens, reduction=reduction, impl=impl)
    upstream = torch.rand(loss.shape)
    first, second = (
        torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0] for _ in range(2)
    )
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)


def test_logits_used_twice_gather_both_gradients(tokens, impl):
    logits = torch.randn(B, P, K)

    def once(x):
        return functional.loss(CHAIN, x, *tokens, impl=impl)

    def twice(x):
        return 0.37 * once(x) + 2 * once(x)

    _, single = gradient(logits, once)
    _, double = gradient(logits, twice)
    assert_gradient_close(double, 2.37 * single.double(), torch.float32, ulps=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_logits_are_never_modified(dtype, tokens, impl):
    logits = torch.randn(B, P, K).to(dtype)
    kept = logits.clone()
    gradient(logits, lambda x: functional.loss(CHAIN, x, *tokens, impl=impl))
    leaf = logits.requires_grad_()
    loss = functional.loss(CHAIN, leaf, *tokens, impl=impl)
    (0.3 * loss).backward()
    functional.p_posterior(CHAIN, leaf, *tokens[1:], impl=impl).sum().backward()
    functional.p_sample(CHAIN, leaf, *tokens[1:], impl=impl)
    assert same_bits(leaf.detach(), kept)


def test_a_gradient_scaler_does_not_underflow_in_float16(impl):
    """The mean's 1/N must meet the scaler's factor before the gradient is rounded."""
    count, scale = 4096, 65536.0
    x0 = torch.randint(K, (1, count))
    t = torch.tensor([3])
    x_t = DIFFUSION.q_sample(x0, t)
    logits = torch.randn(1, count, K).half()
    _, grad = gradient(
        logits, lambda x: scale * functional.loss(CHAIN, x, x0, x_t, t, ce_weight=1.0, impl=impl)
    )
    _, truth = gradient(
        logits.double(),
        lambda x: scale * functional.loss(CHAIN, x, x0, x_t, t, ce_weight=1.0, impl="reference"),
    )
    assert_gradient_close(grad, truth, torch.float16, ulps=16, floor=scale / count * 1e-3)


@pytest.mark.parametrize("layout", ["channels first", "expanded", "strided", "narrowed"])
def test_any_layout_gives_the_same(layout, impl):
    x0, t = torch.randint(K, (B, 4, 6)), torch.tensor([1, 3, 6])
    x_t = DIFFUSION.q_sample(x0, t)
    logits = {
        "channels first": torch.randn(B, K, 4, 6).permute(0, 2, 3, 1),
        "expanded": torch.randn(B, 1, 6, K).expand(B, 4, 6, K),
        "strided": torch.randn(B, 4, 12, K)[:, :, ::2],
        "narrowed": torch.randn(B, 4, 6, 2 * K)[..., 3 : K + 3],
    }[layout]
    tokens = (x0.transpose(1, 2).contiguous().transpose(1, 2), x_t, t.repeat_interleave(2)[::2])
    value, grad = gradient(logits, lambda x: functional.loss(CHAIN, x, *tokens, impl=impl))
    plain = logits.contiguous()
    expected, expected_grad = gradient(
        plain, lambda x: functional.loss(CHAIN, x, x0, x_t, t, impl=impl)
    )
    assert torch.equal(value, expected)
    assert torch.equal(grad, expected_grad)
    leaf = logits.requires_grad_()
    log_p = functional.p_posterior(CHAIN, leaf, x_t, t, impl=impl)
    assert log_p.shape == (B, 4, 6, K)
    log_p.sum().backward()


def test_an_expanded_leaf_gets_the_sum_of_its_gradients(impl):
    x0, t = torch.randint(K, (B, P)), torch.tensor([1, 3, 6])
    x_t = DIFFUSION.q_sample(x0, t)
    row = torch.randn(K)

    def compute(x):
        return functional.loss(CHAIN, x.expand(B, P, K), x0, x_t, t, reduction="sum", impl=impl)

    _, grad = gradient(row, compute)
    _, rows = gradient(
        row.expand(B, P, K),
        lambda x: functional.loss(CHAIN, x, x0, x_t, t, reduction="sum", impl=impl),
    )
    torch.testing.assert_close(grad, rows.sum((0, 1)))


@pytest.mark.unserved(
    where=lambda family, kernels, **_: family != "mask_and_uniform" and kernels == "cuda",
    reason="CUDA C++ has no chains of matrices",
)
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("family", ["mask_and_uniform", "gaussian", "sparse"])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_batches_pass_through(shape, family, skips, kernels):
    for impl in ("reference", kernels):
        pass_nothing_through(shape, family, skips, impl)


def pass_nothing_through(shape, family, skips, impl):
    make = make_chain if family == "mask_and_uniform" else make_dense_chain
    chain = make(family, K).transition
    logits = torch.randn(*shape, K, requires_grad=True)
    x, t = torch.zeros(shape, dtype=torch.int64), torch.full(shape[:1], 3)
    steps = (t, t - 2) if skips else (t,)
    assert functional.q_sample(chain, x, t, impl=impl).shape == shape
    assert functional.p_sample(chain, logits, x, *steps, impl=impl).shape == shape
    assert functional.q_posterior(chain, x, x, *steps, impl=impl).shape == (*shape, K)
    log_p = functional.p_posterior(chain, logits, x, *steps, impl=impl)
    assert log_p.shape == (*shape, K)
    log_p.sum().backward()
    for reduction, expected in [("none", shape), ("batch", shape[:1]), ("sum", ())]:
        loss = functional.loss(chain, logits, x, x, *steps, reduction=reduction, impl=impl)
        assert loss.shape == expected
        loss.sum().backward()
    assert functional.loss(chain, logits, x, x, *steps, impl=impl).isnan()
    assert logits.grad.shape == logits.shape


def test_there_is_no_position_axis_to_need(impl):
    logits, x = torch.randn(4, K), torch.randint(K, (4,))
    t = torch.tensor([1, 2, 3, 4])
    x_t = functional.q_sample(CHAIN, x, t)
    loss = functional.loss(CHAIN, logits, x, x_t, t, reduction="none", impl=impl)
    batch = functional.loss(CHAIN, logits, x, x_t, t, reduction="batch", impl=impl)
    assert loss.shape == (4,)
    assert torch.equal(loss, batch)


@pytest.mark.parametrize("impl_name", ["reference", "cpu"])
def test_the_environment_serves_a_whole_call(impl_name, tokens, monkeypatch, cpu):
    monkeypatch.setattr(_environment, "IMPL", impl_name)
    logits = torch.randn(B, P, K)
    loss = functional.loss(CHAIN, logits, *tokens)
    assert torch.equal(loss, functional.loss(CHAIN, logits, *tokens, impl=impl_name))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_peak_memory_is_one_gradient_and_a_few_bytes_a_row(dtype, reduction, cpu):
    count, num_classes = 4096, 1024
    chain = make_chain("uniform", num_classes).transition
    x0, t = torch.randint(num_classes, (8, count // 8)), torch.tensor([1, 2, 3, 4, 5, 6, 1, 2])
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.zeros(8, count // 8, num_classes, dtype=dtype, requires_grad=True)

    def run():
        logits.grad = None
        loss = functional.loss(chain, logits, x0, x_t, t, reduction=reduction, impl=cpu)
        loss.backward(torch.full_like(loss, 0.7))

    run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    gradient_size = logits.numel() * logits.itemsize
    peak = running = 0
    for size in sizes[1:] if sizes and sizes[0] < 0 else sizes:
        running += size
        peak = max(peak, running)
    chunks = 1 << 21  # of 16 bits, widened while they are scaled
    assert gradient_size <= peak <= gradient_size + 64 * count + chunks


@pytest.mark.exhaustive
def test_offsets_beyond_2_to_the_31_elements(cpu):
    """Untouched pages of zeros cost nothing; only the masked-in rows are read."""
    num_classes = 4096
    count = 2**31 // num_classes + 4
    chain = make_chain("uniform", num_classes).transition
    logits = torch.zeros(1, count, num_classes, dtype=torch.bfloat16)
    mask = torch.zeros(1, count, dtype=torch.bool)
    rows = [0, count - 3, count - 1]
    small = torch.randn(1, len(rows), num_classes).bfloat16()
    logits[0, rows] = small[0]
    mask[0, rows] = True
    x0 = torch.randint(num_classes, (1, count))
    x_t, t = functional.q_sample(chain, x0, torch.tensor([3])), torch.tensor([3])
    value = functional.loss(chain, logits, x0, x_t, t, mask=mask, reduction="none", impl=cpu)
    part = functional.loss(chain, small, x0[:, rows], x_t[:, rows], t, reduction="none", impl=cpu)
    assert torch.equal(value[0, rows], part[0])


@pytest.mark.slow
def test_gradients_and_draws_beyond_2_to_the_31_elements(cpu):
    num_classes = 4096
    count = 2**31 // num_classes + 4
    chain = make_chain("absorbing_last", num_classes).transition
    logits = torch.empty(1, count, num_classes, dtype=torch.bfloat16)  # never touched but for:
    rows = [0, count - 3, count - 1]
    small = torch.randn(1, len(rows), num_classes).bfloat16()
    logits[0, rows] = small[0]
    mask = torch.zeros(1, count, dtype=torch.bool)
    mask[0, rows] = True
    x0, t = torch.zeros(1, count, dtype=torch.int64), torch.tensor([3])
    x_t = x0.masked_fill(mask, num_classes - 1)
    drawn = functional.p_sample(chain, logits, x_t, t, seeds=torch.tensor([1]), impl=cpu)
    assert bool((drawn[~mask] == 0).all())

    leaf, small = logits.requires_grad_(), small.requires_grad_()
    options = {"reduction": "sum", "impl": cpu}
    functional.loss(chain, leaf, x0, x_t, t, mask=mask, **options).backward()
    functional.loss(chain, small, x0[:, rows], x_t[:, rows], t, **options).backward()
    assert torch.equal(leaf.grad[0, rows], small.grad[0])
    assert not bool(leaf.grad[0, [1, count - 2]].any())

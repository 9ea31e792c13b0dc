"""Cumulative products: against the loop, their gradient, and those that transitions keep."""

import pytest
import torch
from helpers import simulated
from helpers.compare import assert_close, check_gradient, same_bits

import d3pm_fast as d3
from d3pm_fast import _compiled, _environment, reference
from d3pm_fast.chains.products import Products
from d3pm_fast.ops.products import scan_of

SIZES = [(1, 3), (2, 4), (3, 5), (4, 2), (10, 7), (17, 16), (50, 27), (9, 96), (9, 97), (5, 130)]


def stochastic(num_steps, num_classes, dtype=torch.float64):
    matrices = torch.rand(num_steps, num_classes, num_classes, dtype=torch.float64) ** 4
    return (matrices / matrices.sum(-1, keepdim=True)).to(dtype)


@pytest.mark.parametrize(("num_steps", "num_classes"), SIZES)
def test_products_are_those_of_the_loop(num_steps, num_classes):
    matrices = stochastic(num_steps, num_classes)
    expected = reference.cumulative_products(matrices)
    torch.testing.assert_close(d3.cumulative_products(matrices), expected, rtol=1e-13, atol=0)
    turned = matrices.mT.contiguous().mT
    torch.testing.assert_close(d3.cumulative_products(turned), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("num_steps", "num_classes"), SIZES)
def test_the_gradient_is_that_of_the_loop(num_steps, num_classes):
    matrices = stochastic(num_steps, num_classes)
    weights = torch.randn_like(matrices)
    gradients = []
    for function in (d3.cumulative_products, reference.cumulative_products):
        leaf = matrices.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((function(leaf) * weights).sum(), leaf)
        gradients.append(gradient.flatten(1))
    check_gradient(*gradients, torch.float64, ulps=1 << 10)


def with_gradient(impl, matrices, weights, function=d3.cumulative_products):
    """The products by an implementation, where it runs, and the gradient of their weighted sum."""
    on_gpu = impl in ("triton", "cuda") and torch.cuda.is_available()
    leaf = matrices.to("cuda" if on_gpu else "cpu").requires_grad_()
    products = function(leaf, impl=impl)
    (gradient,) = torch.autograd.grad((products * weights.to(leaf.device)).sum(), leaf)
    return products.detach().cpu(), gradient.cpu()


def check_against_the_loop(impl, num_steps, num_classes, dtype):
    matrices = stochastic(num_steps, num_classes, dtype)
    weights = torch.randn_like(matrices)
    products, gradient = with_gradient(impl, matrices, weights)
    assert products.dtype == gradient.dtype == dtype
    truth = with_gradient("reference", matrices.double(), weights.double())
    assert_close(products, truth[0], dtype, ulps=1 if dtype == torch.float32 else 256)
    check_gradient(gradient.flatten(1), truth[1].flatten(1), dtype, ulps=512)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 3, 27, 33, 64])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
def test_every_implementation_gives_those_of_the_loop(kernels, num_steps, num_classes, dtype):
    check_against_the_loop(kernels, num_steps, num_classes, dtype)


def test_one_class_and_no_steps(kernels):
    one = torch.full((3, 1, 1), 0.5, dtype=torch.float64)
    products, gradient = with_gradient(kernels, one, torch.ones_like(one))
    assert products.flatten().tolist() == [0.5, 0.25, 0.125]
    assert gradient.flatten().tolist() == [1.75, 0.75, 0.25]
    assert with_gradient(kernels, one[:0], one[:0])[0].shape == (0, 1, 1)


def test_many_classes_are_left_to_torch(kernels):
    check_against_the_loop(kernels, 3, 65, torch.float64)


def test_the_reference_is_rounded_once_too():
    check_against_the_loop("reference", 20, 27, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU orders its threads itself")
@pytest.mark.parametrize("num_classes", [3, 33, 64])
def test_the_order_of_threads_does_not_matter(monkeypatch, num_classes):
    module = simulated.module()
    monkeypatch.setattr(_compiled, "cuda", module)
    matrices = stochastic(6, num_classes)
    weights = torch.randn_like(matrices)
    found = []
    for order in range(4):
        with simulated.scheduled(module.__file__, order):
            found.append(with_gradient("cuda", matrices, weights))
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


def test_opcheck_finds_nothing(kernels):
    if kernels == "cpu":
        pytest.skip("torch's products are no operation of ours")
    scan = getattr(torch.ops.d3pm_fast, f"{kernels}_products_scan").default
    matrices = stochastic(3, 5, torch.float32)
    if torch.cuda.is_available():
        matrices = matrices.cuda()
    for upstream in (None, torch.randn_like(matrices)):
        torch.library.opcheck(scan, (matrices, upstream))


def test_the_environment_asks_for_the_reference(monkeypatch):
    monkeypatch.setattr(_environment, "IMPL", "reference")
    matrices = stochastic(50, 27)
    assert torch.equal(d3.cumulative_products(matrices), reference.cumulative_products(matrices))


def test_gradcheck_agrees():
    matrices = stochastic(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(d3.cumulative_products, matrices)


def test_d4_float32_products_are_rounded_once():
    matrices = stochastic(300, 64, torch.float32)
    products = d3.cumulative_products(matrices)
    truth = reference.cumulative_products(matrices.double())
    assert products.dtype == torch.float32
    assert torch.equal(products, truth.float()) or bool(
        ((products.double() - truth).abs() <= 1.2e-7 * truth).all()
    )


def test_rows_sum_to_1_after_a_thousand_steps():
    products = d3.cumulative_products(stochastic(1000, 27))
    assert float((products.sum(-1) - 1).abs().max()) < 1e-12


def test_no_steps():
    assert d3.cumulative_products(torch.zeros(0, 3, 3)).shape == (0, 3, 3)


def test_one_graph_of_the_compiler(kernels):
    torch._dynamo.reset()
    matrices = stochastic(6, 4)
    compiled = torch.compile(d3.cumulative_products, fullgraph=True, backend="aot_eager")
    found = with_gradient(kernels, matrices, torch.ones_like(matrices), compiled)
    expected = with_gradient(kernels, matrices, torch.ones_like(matrices))
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth)


def test_bad_matrices_are_named():
    with pytest.raises(TypeError, match="matrices must be float32 or float64"):
        d3.cumulative_products(torch.zeros(2, 3, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"matrices must have shape \(T, K, K\), got \(3, 4\)"):
        d3.cumulative_products(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="matrices must be a tensor"):
        d3.cumulative_products([[1.0]])


@pytest.fixture(params=["triton", "cuda"])
def on_gpu(request):
    """Products and the gradient of their sum by one implementation, and its scan."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    try:
        d3.implementation(request.param, "cuda")
    except RuntimeError as error:
        pytest.skip(str(error))

    def both_ways(matrices):
        leaf = matrices.detach().requires_grad_()
        products = d3.cumulative_products(leaf, impl=request.param)
        (gradient,) = torch.autograd.grad(products, leaf, torch.ones_like(products))
        return products.detach(), gradient

    return both_ways, scan_of(request.param, num_classes=64)


def test_nothing_waits_for_the_device(on_gpu):
    both_ways, _ = on_gpu
    matrices = stochastic(20, 64).cuda()
    both_ways(matrices)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both_ways(matrices)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_another_stream_gives_the_same(on_gpu):
    both_ways, _ = on_gpu
    matrices = stochastic(20, 64).cuda()
    expected = both_ways(matrices)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = both_ways(matrices)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected))


def test_a_graph_replays_on_new_matrices(on_gpu):
    both_ways, _ = on_gpu
    matrices = stochastic(20, 64).cuda()
    both_ways(matrices)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_ways(matrices)
    matrices.copy_(stochastic(20, 64))
    graph.replay()
    assert all(map(torch.equal, captured, both_ways(matrices)))


@pytest.mark.slow
def test_more_than_2_to_the_31_entries_are_all_reached(on_gpu):
    _, scan = on_gpu
    matrices = torch.rand((1 << 19) + 2, 64, 64, device="cuda").softmax(-1)
    assert matrices.numel() > 1 << 31
    products = scan(matrices, None)
    step = products[-2].double() @ matrices[-1].double()
    torch.testing.assert_close(products[-1].double(), step, rtol=1e-6, atol=0)
    del products
    adjoint = scan(matrices, matrices)
    step = matrices[-2].double() + adjoint[-1] @ matrices[-1].double().T
    assert torch.equal(adjoint[-1], matrices[-1].double())
    torch.testing.assert_close(adjoint[-2], step, rtol=1e-12, atol=0)


K, T = 6, 40
MATRICES = stochastic(T, K)
SIZE = 8 * K * K


def table(budget):
    calls = []

    def step(t):
        calls.append(t)
        return MATRICES[t - 1]

    return Products(step, K, T, budget), calls


@pytest.mark.parametrize("matrices", [14, 20, 60, 82, 200])
def test_every_budget_gives_the_same_products(matrices):
    products, _ = table(matrices * SIZE)
    expected = reference.cumulative_products(MATRICES)
    for t in [*torch.randperm(T).tolist(), T - 1, 0]:
        torch.testing.assert_close(products.up_to(t + 1), expected[t], rtol=1e-13, atol=0)
    assert torch.equal(products.up_to(0), torch.eye(K).double())


@pytest.mark.parametrize("matrices", [14, 200])
def test_the_product_between_two_times_is_that_of_the_loop(matrices):
    products, _ = table(matrices * SIZE)
    for s in range(T):
        expected = reference.cumulative_products(MATRICES[s:])
        for t in range(s + 1, T + 1):
            torch.testing.assert_close(
                products.between(s, t), expected[t - s - 1], rtol=1e-13, atol=0
            )


def test_a_stride_asks_for_every_step_once():
    products, calls = table(400 * SIZE)
    for s in range(8, T - 7, 8):
        products.between(s, s + 8)
    assert sorted(calls) == list(range(9, T + 1))
    products.between(8, 40)
    assert len(calls) == T - 8


def test_the_budget_is_kept_and_one_too_small_is_named():
    products, _ = table(16 * SIZE)
    for t in range(T + 1):
        products.up_to(t)
    for s in range(0, T, 3):
        products.between(s, T)
    held = sum(matrix.nbytes for matrix in products._kept) + products.cache.used
    assert held <= 16 * SIZE
    with pytest.raises(ValueError, match=f"memory_budget must be at least {13 * SIZE} bytes"):
        table(10 * SIZE)

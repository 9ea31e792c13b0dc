"""PyTorch's default device and dtype, whatever they are, change neither tables nor results."""

import contextlib
import inspect

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions

K, T, MASK = 6, 4, 2
POINTS = [[0.0], [0.1], [0.3], [0.6], [1.0], [1.5]]
MATRIX = [[0.5 if i == j else 0.1 for j in range(K)] for i in range(K)]
RATE = [[-1.0 if i == j else 0.2 for j in range(K)] for i in range(K)]


def betas_of_every_schedule():
    bars = [0.9, 0.5, 0.2, 0.0]
    uniform = lambda beta: transitions.uniform(K, [beta]).q_matrix(1)  # noqa: E731
    return {
        "linear": schedules.linear(T),
        "quadratic": schedules.quadratic(T),
        "sigmoid": schedules.sigmoid(T),
        "cosine": schedules.cosine(T),
        "cosine_multinomial": schedules.cosine_multinomial(T),
        "cosine_squared": schedules.cosine_squared(T),
        "jsd": schedules.jsd(T),
        "from_betas": schedules.from_betas(bars),
        "from_alpha_bars": schedules.from_alpha_bars(bars),
        "mutual_information": schedules.mutual_information(uniform, T),
        "mutual_information_times": schedules.mutual_information_times(RATE, T),
    }


FAMILIES = {
    "uniform": lambda betas: transitions.uniform(K, betas),
    "absorbing": lambda betas: transitions.absorbing(K, betas, MASK),
    "marginal": lambda betas: transitions.marginal(K, betas, [0.5, 0.2, 0.1, 0.1, 0.1, 0.0]),
    "mask_and_uniform": lambda betas: transitions.mask_and_uniform(K, betas, MASK),
    "mask_and_uniform, by step": lambda betas: transitions.mask_and_uniform(
        K, betas, MASK, [0.1, 0.2, 0.3, 0.4]
    ),
    "masked_uniform": lambda betas: transitions.masked_uniform(K, betas, betas / 2, MASK),
    "gidd": lambda betas: transitions.gidd(K, MASK, 0.2, num_steps=len(betas)),
    "from_marginals": lambda betas: transitions.from_marginals(
        K, [0.9, 0.6, 0.3, 0.0], [0.06, 0.2, 0.2, 0.1], [0.04, 0.2, 0.5, 0.9], MASK
    ),
    "discretized_gaussian": lambda betas: transitions.discretized_gaussian(K, betas),
    "band": lambda betas: transitions.band(K, betas, 2),
    "nearest_neighbor": lambda betas: transitions.nearest_neighbor(POINTS, 2, [0.1, 0.2, 0.4, 0.9]),
    "nearest_neighbor, sparse": lambda betas: transitions.nearest_neighbor(
        POINTS[:-1], 2, [0.1, 0.2, 0.4, 0.9], mask_rate=0.2, memory_budget=1
    ),
    "nearest_neighbor, sinkhorn": lambda betas: transitions.nearest_neighbor(
        POINTS, 5, betas, method="sinkhorn"
    ),
    "nearest_neighbor, sparse sinkhorn": lambda betas: transitions.nearest_neighbor(
        POINTS, 5, betas, method="sinkhorn", memory_budget=1
    ),
    "substitution": lambda betas: transitions.substitution(MATRIX, betas),
    "from_matrices": lambda betas: transitions.from_matrices([MATRIX] * T),
    "from_matrices, of exponentials": lambda betas: transitions.from_matrices(
        [transitions.rate_exponential(RATE, t).tolist() for t in range(T)]
    ),
    "from_rate": lambda betas: transitions.from_rate(
        transitions.nearest_neighbor_rate(POINTS, 2), [0.1, 0.2, 0.4, 0.9]
    ),
    "mixture": lambda betas: transitions.mixture(
        [transitions.uniform(K, betas), transitions.band(K, betas, 1)], [0.3, 0.7]
    ),
    "with_mask": lambda betas: transitions.with_mask(
        transitions.band(K - 1, betas, 1), betas, data_has_mask=True
    ),
}

logits, loc = torch.randn(3, 2, K), torch.randn(3, 2)
x0, x_t = torch.tensor([[1, 3], [5, 4], [0, 1]]), torch.tensor([[MASK] * 2] * 3)
t, seeds = torch.tensor([1, 2, 4]), torch.arange(3)
mask = torch.tensor([[True, False]] * 3)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


each_default = pytest.mark.parametrize(
    "default",
    [
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
    ],
    ids=["meta", "float64", "bfloat16"],
)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].device.type == "cpu", name
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name].nan_to_num(7.0), value.nan_to_num(7.0)), name


def tables(chain):
    made = {"stationary": chain.stationary(), "prior": chain.prior()}
    for name in chain._TABLES:
        if getattr(chain, name) is not None:
            made[name] = getattr(chain, name)
    for time in range(1, T + 1):
        made[f"Q_{time}"] = chain.q_matrix(time)
        made[f"Qbar_{time}"] = chain.q_bar_matrix(time)
        made[f"log Q_{time}"] = chain.log_q_matrix(time)
    return made


def results(chain, impl):
    diffusion = d3.D3PM(chain, impl=impl)
    leaf = logits.detach().requires_grad_()
    loss = diffusion.loss(leaf, x0, x_t, t, mask=mask, reduction="sum")
    loss.backward()
    pair = functional.Logistic(loc, loc)
    ends = torch.tensor([0, 0, 1], device="cpu")
    return {
        "loss": loss.detach(),
        "gradient": leaf.grad,
        "logistic loss": diffusion.loss(pair, x0, x_t, t, reduction="none"),
        "q": diffusion.q_posterior(x0, x_t, t, dtype=torch.float32),
        "p": diffusion.p_posterior(logits, x_t, t, ends),
        "x_t": functional.q_sample(chain, x0, t, seeds=seeds, impl=impl),
        "x_s": diffusion.p_sample(logits, x_t, t, seeds=seeds),
        "x_0": diffusion.sample(lambda x, t: logits, (3, 2), seeds=seeds),
        "bound": diffusion.elbo(lambda x, t: logits[: len(x)], x0, seeds=seeds, batch_size=3).nats,
        "times": diffusion.sample_t(4, generator=torch.Generator("cpu").manual_seed(0)),
        "spread": diffusion.sample_t(4, True, torch.Generator("cpu").manual_seed(0)),
    }


def test_every_family_and_schedule_is_here():
    public = {n for n in transitions.__all__ if inspect.isfunction(getattr(transitions, n))}
    helpers = {"nearest_neighbors", "nearest_neighbor_rate", "rate_exponential"}
    assert {name.split(",")[0] for name in FAMILIES} == public - helpers
    assert betas_of_every_schedule().keys() == set(schedules.__all__)


@each_default
def test_schedules_are_the_same(default):
    expected = betas_of_every_schedule()
    with default():
        found = betas_of_every_schedule()
    assert_same(found, expected)


@each_default
@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_the_same(family, default):
    expected = tables(FAMILIES[family](schedules.linear(T, 0.1, 0.9)))
    with default():
        found = tables(FAMILIES[family](schedules.linear(T, 0.1, 0.9)))
    assert_same(found, expected)


@each_default
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_the_same(family, default, impl):
    expected = results(FAMILIES[family](schedules.linear(T, 0.1, 0.9)), impl)
    with default():
        found = results(FAMILIES[family](schedules.linear(T, 0.1, 0.9)), impl)
    assert_same(found, expected)


def products_of_many_classes(v):
    """Products with a matrix that is banded, with a full one, and with one of low rank."""
    chain = transitions.discretized_gaussian(128, schedules.linear(50))
    products = {}
    for s in (1, 24, 49):
        form = chain.step(s, s + 1, torch.float32).form
        products[type(form).__name__] = torch.empty_like(v, dtype=form.dtype)
        form.apply(v.to(form.dtype), products[type(form).__name__])
    return products


@each_default
def test_cheaper_forms_of_many_classes_are_the_same(default):
    v = torch.randn(3, 128)
    v -= v.mean(1, keepdim=True)
    expected = products_of_many_classes(v)
    assert list(expected) == ["Band", "Dense", "LowRank"]
    with default():
        found = products_of_many_classes(v)
    assert_same(found, expected)


def test_a_model_built_on_the_meta_device_has_its_tables():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion = d3.D3PM(d3.transitions.uniform(K, d3.schedules.cosine(T)))
            self.head = torch.nn.Linear(2, 3)

    with torch.device("meta"):
        model = Model()
    steps = transitions.uniform(K, d3.schedules.cosine(T)).step_table
    assert model.head.weight.is_meta
    assert torch.equal(model.to_empty(device="cpu").diffusion.transition.step_table[1:], steps[1:])
    model.to("meta")
    for way_back in (lambda: model.to_empty(device="cpu"), lambda: model.diffusion.cpu()):
        with pytest.raises(RuntimeError, match="no numbers left: build it anew"):
            way_back()


def test_numbers_from_the_meta_device_are_refused():
    with pytest.raises(ValueError, match="betas must hold numbers, got a tensor on the meta"):
        transitions.uniform(K, torch.linspace(0, 1, T, device="meta"))

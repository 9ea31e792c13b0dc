"""What docs/numerics.md promises of float32 on rank-one chains."""

import contextlib
import functools

import pytest
import torch
from helpers import simulated
from helpers.chains import FAMILIES, gradient_terms, likely_pairs, make_chain, true_loss
from helpers.compare import storage_error, unit
from helpers.exact import exact_loss

from d3pm_fast import functional

PROMISED = 64 * unit(torch.float32)  # of a loss above LEAST, and of a gradient's terms
LEAST = 1e-30
OPTIONS = {"first_step": "posterior"}
PROMISED_OF_16_BITS = 1e-5  # of a loss; of a gradient a quarter of a unit


def random_logits(x0, num_classes, generator):
    """Logits from flat to sure, and from wrong to right."""
    scale, lift = torch.rand(2, len(x0), 1, generator=generator)
    logits = (6 * scale - 2).exp() * torch.randn(len(x0), num_classes, generator=generator)
    return logits.scatter_add(1, x0[:, None], 36 * lift - 8)


@functools.cache
def tokens_and_truth(family):
    """Tokens of chains with betas from 1e-4 to 1, their logits, and 60 digits of truth."""
    generator = torch.Generator().manual_seed(FAMILIES.index(family))
    found = []
    for num_classes, count in ((2, 6), (3, 6), (27, 2)):
        betas = 10 ** (-4 * torch.rand(5, generator=generator, dtype=torch.float64))
        chain = make_chain(family, num_classes, betas)
        x0, x_t, t = likely_pairs(chain, [1, 2, 3, 4, 5], count, seed=num_classes)
        args = chain, random_logits(x0, num_classes, generator), x0, x_t, t
        found.append((args, exact_loss(*args, **OPTIONS)))
    return found


def float32_results(chain, logits, x0, x_t, t, impl, options=OPTIONS):
    leaf = logits.clone().requires_grad_()
    args = chain.transition, leaf, x0, x_t, t
    loss = functional.loss(*args, reduction="none", impl=impl, **options)
    loss.sum().backward()
    return loss.detach().double(), leaf.grad.double()


def relative_errors(loss, truth):
    return ((loss - truth).abs() / truth)[truth > LEAST]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_and_its_gradient_keep_the_digits_that_are_promised(kernels, family):
    for args, (truth, true_gradient, terms) in tokens_and_truth(family):
        loss, gradient = float32_results(*args, kernels)
        assert float(relative_errors(loss, truth).max()) < PROMISED
        wrong = (gradient - true_gradient).norm(dim=1)
        scale = true_gradient.norm(dim=1).maximum(terms) + LEAST
        assert float((wrong / scale).max()) < PROMISED


def test_so_do_losses_of_every_size(cpu):
    """Also where a ratio of p to q is near a power of two's square root, and its log splits."""
    chain, t, count = make_chain("uniform", 3, torch.linspace(1e-4, 0.02, 1000)), 563, 20_000
    x0 = torch.randint(3, (count,))
    logits, times = random_logits(x0, 3, torch.Generator().manual_seed(0)), torch.full((count,), t)
    truth = true_loss(chain, logits, x0, x0, t, **OPTIONS)
    loss, _ = float32_results(chain, logits, x0, x0, times, cpu)
    plain, _ = float32_results(chain, logits, x0, x0, times, "reference")
    for above in (1e-6, 1e-5, 1e-4):
        here = (truth > above) & (truth < 10 * above)
        assert float(relative_errors(loss[here], truth[here]).max()) < PROMISED
        assert float(relative_errors(plain[here], truth[here]).max()) > PROMISED


@pytest.mark.parametrize("num_classes", [40, 100, 300])
def test_so_do_rows_of_many_classes(kernels, num_classes):
    """Sums over classes also where p is close to q, and their terms cancel."""
    chain = make_chain("uniform", num_classes, torch.linspace(1e-4, 0.02, 1000))
    x0, x_t, t = likely_pairs(chain, [1, 100, 500, 1000], 12)
    logits = random_logits(x0, num_classes, torch.Generator().manual_seed(0))
    logits[::2] /= 10  # the others close to each other
    logits.scatter_add_(1, x0[:, None], torch.arange(float(len(x0)))[:, None] % 12)
    truth, _ = float32_results(chain, logits.double(), x0, x_t, t, "cpu")
    loss, _ = float32_results(chain, logits, x0, x_t, t, kernels)
    assert float(relative_errors(loss, truth).max()) < PROMISED


@pytest.mark.parametrize("family", ["uniform", "marginal", "mask_and_uniform"])
@pytest.mark.parametrize(("beta", "lift"), [(0.9, 0.0), (0.9, 14.0), (0.1, 14.0)])
def test_so_does_a_gradient_late_in_a_chain_and_of_sure_tokens(kernels, family, beta, lift):
    """Where the gradient is far below the probabilities that it is the difference of."""
    chain = make_chain(family, 5, torch.full((6,), beta))
    x0, x_t, t = likely_pairs(chain, [2, 6], 6)
    logits = 0.5 * torch.randn(len(x0), 5, generator=torch.Generator().manual_seed(0))
    args = chain, logits.scatter_add(1, x0[:, None], torch.full((len(x0), 1), lift)), x0, x_t, t
    _, truth, _ = exact_loss(*args, **OPTIONS)

    def error(impl):
        wrong = (float32_results(*args, impl)[1] - truth).norm(dim=1)
        return float((wrong / truth.norm(dim=1)).max())

    assert error(kernels) < PROMISED < error("reference")


OF_EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
OF_EVERY_FORM = pytest.mark.parametrize(
    "family", ["uniform", "absorbing_last", "mask_and_uniform", "marginal"]
)


@OF_EVERY_DTYPE
@OF_EVERY_FORM
@pytest.mark.parametrize("num_classes", [20, 27, 100, 256, 1100])
def test_a_loss_keeps_the_digits_of_its_logits(compiled, family, num_classes, dtype):
    """Those of CUDA where the hardware's functions are as far off as they may be."""
    acts = compiled == "cuda" and not torch.cuda.is_available()
    with simulated.erring() if acts else contextlib.nullcontext():
        check_digits_of_logits(compiled, family, num_classes, dtype)


@pytest.mark.parametrize("num_classes", [27, 256])
def test_so_does_a_loss_of_logits_out_of_all_proportion(compiled, num_classes):
    """Floats above 2^30 are further apart than logarithms of probabilities that count."""
    chain = make_chain("uniform", num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 8)
    logits = 1e3 * torch.randn(len(t), num_classes)
    logits[:, 3] += 10 ** torch.linspace(6, 30, len(t))
    truth, _ = float32_results(chain, logits.double(), x0, x_t, t, "cpu")
    loss, _ = float32_results(chain, logits, x0, x_t, t, compiled)
    assert float(relative_errors(loss, truth).max()) < PROMISED


def check_digits_of_logits(impl, family, num_classes, dtype):
    """Where the sum of phi is by products, and where these cancel."""
    chain = make_chain(family, num_classes, torch.linspace(1e-4, 0.9, 12, dtype=torch.float64))
    times = [1, 2, 4, 8, 12]
    count = 48 if num_classes < 256 else 12 if num_classes < 10_000 else 2
    x0, x_t, t = likely_pairs(chain, times, count)
    logits = random_logits(x0, num_classes, torch.Generator().manual_seed(num_classes)).to(dtype)
    truth, true_gradient = float32_results(chain, logits.double(), x0, x_t, t, "cpu")
    loss, gradient = float32_results(chain, logits, x0, x_t, t, impl)
    of_16_bits = dtype != torch.float32
    promised = PROMISED_OF_16_BITS if of_16_bits else PROMISED
    assert float(relative_errors(loss, truth).max()) < promised
    parts = zip(*(values.split(count) for values in (logits.double(), x0, x_t)), strict=True)
    terms = [
        gradient_terms(chain, *part, time, **OPTIONS)
        for part, time in zip(parts, times, strict=True)
    ]
    scale = true_gradient.norm(dim=1).maximum(torch.cat(terms)) + LEAST
    promised = torch.finfo(dtype).eps / 4 if of_16_bits else PROMISED
    allowed = (promised + storage_error(dtype)) * scale
    if dtype == torch.float16:
        allowed += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * num_classes**0.5
    assert bool(((gradient - true_gradient).norm(dim=1) < allowed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["uniform", "mask_and_uniform", "absorbing_last", "marginal"])
@pytest.mark.parametrize("num_classes", [27, 100])
def test_a_token_has_the_same_bits_whatever_is_beside_it(compiled, num_classes, family, dtype):
    """Also where one beside it cancels, is out of range, or has no bound."""
    generator = torch.Generator().manual_seed(0)
    betas = torch.logspace(-9, -0.05, 12, dtype=torch.float64)
    chain = make_chain(family, num_classes, betas)
    x0, x_t, t = likely_pairs(chain, [1, 2, 4, 8, 12], 100)
    tokens = random_logits(x0, num_classes, generator).to(dtype), x0, x_t, t
    order = torch.randperm(len(t), generator=generator)
    whole, mixed = (
        float32_results(chain, *(values[rows] for values in tokens), compiled, {"ce_weight": 0.1})
        for rows in (slice(None), order)
    )
    assert all(
        torch.equal(values[order], again) for values, again in zip(whole, mixed, strict=True)
    )

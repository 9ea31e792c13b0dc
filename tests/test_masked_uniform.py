"""Uniform noise among visible classes beside a mask that stays: against explicit matrices."""

import copy

import pytest
import torch
from helpers.chains import true_loss, true_p_posterior, true_q_posterior
from helpers.compare import assert_close, check_gradient
from helpers.laws import assert_follows

import d3pm_fast as d3
from d3pm_fast import functional, ops, transitions
from d3pm_fast.records import Loss, Model, Shard, Weights
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K, MASK, T = 5, 2, 6
# A step without noise, one without masks, and a last one that masks all.
BETAS = torch.tensor([0.1, 0.0, 0.3, 0.2, 0.5, 0.6], dtype=torch.float64)
MASK_BETAS = torch.tensor([0.05, 0.2, 0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
SCHEDULES = continuous.cosine(), continuous.linear()
SINGLE = [(t - 1, t) for t in range(1, T + 1)]
SKIPPED = [(0, 2), (1, 4), (0, 5), (2, 6), (0, 6)]
STEPS = {"steps": SINGLE + SKIPPED, "continuous": [(0.0, 0.3), (0.3, 0.35), (0.4, 0.9), (0.6, 1.0)]}
REVERSE = ["joint", "posterior_mean"]
FIRST_STEP = ["posterior", "logits"]


class Explicit:
    """The chain by its definition: a step of its parts, written out."""

    def __init__(self, times, num_classes=K, mask_id=MASK):
        self.num_classes, self.mask_id, self.has_steps = num_classes, mask_id, times == "steps"
        parts = (BETAS, MASK_BETAS) if self.has_steps else SCHEDULES
        self.transition = transitions.masked_uniform(num_classes, *parts, mask_id)

    def moved(self, beta, mask_beta):
        k, visible = self.num_classes, torch.arange(self.num_classes) != self.mask_id
        matrix = torch.zeros(k, k, dtype=torch.float64)
        for i in range(k):
            if i == self.mask_id:
                matrix[i, i] = 1
                continue
            matrix[i, visible] = (1 - mask_beta) * beta / (k - 1)
            matrix[i, i] += (1 - mask_beta) * (1 - beta)
            matrix[i, self.mask_id] = mask_beta
        return matrix

    def product(self, s, t):
        if not self.has_steps:
            kept = (self.alpha(part, t) / self.alpha(part, s) for part in (0, 1))
            return self.moved(*(1 - float(part) for part in kept))
        result = torch.eye(self.num_classes).double()
        for step in range(s, t):
            result = result @ self.moved(BETAS[step], MASK_BETAS[step])
        return result

    @staticmethod
    def alpha(part, t):
        return SCHEDULES[part].alpha(torch.tensor(t, dtype=torch.float64)) if t > 0 else 1.0

    def rates(self, t):
        """Of the other classes into each: the uniform part's, and the mask's."""
        time = torch.tensor(t, dtype=torch.float64)
        into, masks = (float(schedule.rate(time)) for schedule in SCHEDULES)
        visible = torch.arange(self.num_classes) != self.mask_id
        rates = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64)
        rates[visible] = into / (self.num_classes - 1)
        rates[visible, self.mask_id] = masks
        return rates

    def forward(self, rows, s, t):
        return rows @ self.product(s, t)

    def columns(self, x_t, s, t):
        return self.product(s, t)[:, x_t].T

    def pairs(self, t, most=20):
        """``(x_0, x_t)`` that the chain can make at t, of which some are masked, and logits."""
        possible = self.product(0, t) > 0
        possible[self.mask_id] = False
        x0, x_t = possible.nonzero().unbind(-1)
        chosen = torch.randperm(len(x0))[:most]
        x0, x_t = x0[chosen], x_t[chosen]
        x_t[0] = self.mask_id
        logits = 2 * torch.randn(len(x0), self.num_classes, dtype=torch.float64)
        logits[:, self.mask_id] = -torch.inf
        return x0, x_t, logits

    def batch(self, steps):
        """The pairs of some steps, one after another; times of each, and which are whose."""
        parts = [self.pairs(t) for _, t in steps]
        sizes = torch.tensor([len(x0) for x0, *_ in parts])
        x0, x_t, logits = (torch.cat(each) for each in zip(*parts, strict=True))
        dtype = self.transition.time_dtype
        s, t = torch.tensor(steps, dtype=dtype).repeat_interleave(sizes, dim=0).T.contiguous()
        return x0, x_t, logits, s, t, sizes.tolist()


def truth(of, steps, sizes, *tokens):
    """A function of tokens and of a step, for the tokens of each step."""
    split = zip(steps, *(each.split(sizes) for each in tokens), strict=True)
    return torch.cat([of(*parts, *step) for step, *parts in split])


@pytest.fixture(params=["steps", "continuous"])
def times(request):
    return request.param


@pytest.mark.parametrize("mask_id", [0, 2, K - 1])
def test_matrices_are_those_of_the_definition(times, mask_id):
    chain = Explicit(times, mask_id=mask_id)
    scale, every = torch.ones(1), torch.cartesian_prod(torch.arange(K), torch.arange(K))
    for s, t in STEPS[times]:
        found = chain.transition.q_matrix(t, s)
        assert_close(found, chain.product(s, t), torch.float64, ulps=8, scale=scale)
        time = torch.full((K * K,), t, dtype=chain.transition.time_dtype)
        reach = chain.transition.log_reach(*every.T, time).exp().view(K, K)
        for found in (chain.transition.q_bar_matrix(t), reach):
            assert_close(found, chain.product(0, t), torch.float64, ulps=8, scale=scale)
    assert torch.equal(chain.transition.q_bar_matrix(0), torch.eye(K).double())
    if times == "steps":
        found = chain.transition.q_matrix(3)
        assert_close(found, chain.product(2, 3), torch.float64, ulps=8, scale=scale)


def test_steps_agree_with_a_mask_that_is_added_to_the_uniform_chain(impl):
    """A dense chain, with its own kernels."""
    chain = Explicit("steps", mask_id=K - 1)
    dense = transitions.with_mask(transitions.uniform(K - 1, BETAS), MASK_BETAS)
    x0, x_t, logits, _, t, _ = chain.batch(SINGLE)
    loss, expected = (
        functional.loss(*arguments, x0, x_t, t, reduction="none", impl=name)
        for arguments, name in (((chain.transition, logits), impl), ((dense, logits), "reference"))
    )
    assert_close(loss, expected, torch.float64, ulps=256, scale=expected + 1)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize(("num_classes", "mask_id"), [(K, 2), (K, 0), (40, 39)])
def test_losses_agree_with_explicit_matrices(
    impl, times, num_classes, mask_id, reverse, first_step
):
    chain = Explicit(times, num_classes, mask_id)
    model = {"reverse": reverse, "first_step": first_step}
    x0, x_t, logits, s, t, sizes = chain.batch(STEPS[times])
    junk, leaf = logits.clone(), logits.requires_grad_()
    junk[:, mask_id] = 60.0
    junk.requires_grad_()

    def expected(logits, x0, x_t, s, t):
        return true_loss(chain, logits, x0, x_t, t, **model, ce_weight=0.1, s=s)

    expected = truth(expected, STEPS[times], sizes, leaf, x0, x_t)
    (true_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    options = {**model, "ce_weight": 0.1, "reduction": "none", "impl": impl}
    loss = functional.loss(chain.transition, junk, x0, x_t, t, s, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), junk)
    assert_close(loss, expected, torch.float64, ulps=512, scale=expected.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=512, floor=0.1)
    if times == "steps":
        single = sum(sizes[: len(SINGLE)])
        parts = (each[:single] for each in (logits, x0, x_t, t))
        loss = functional.loss(chain.transition, *parts, **options)
        assert_close(loss, expected[:single], torch.float64, ulps=512, scale=loss.abs() + 1)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
def test_posteriors_agree_with_explicit_matrices(impl, times, reverse, first_step):
    chain = Explicit(times)
    model = {"reverse": reverse, "first_step": first_step}
    x0, x_t, logits, s, t, sizes = chain.batch(STEPS[times])
    leaf = logits.requires_grad_()

    def expected(logits, x_t, s, t):
        return true_p_posterior(chain, logits, x_t, s, t, **model)

    expected = truth(expected, STEPS[times], sizes, leaf, x_t)
    log_p = functional.p_posterior(chain.transition, leaf, x_t, t, s, **model, impl=impl)
    assert_close(log_p.exp(), expected, torch.float64, ulps=256, scale=torch.ones(1))
    weights = torch.rand_like(log_p).where(expected > 0, 0)
    logs = expected.where(expected > 0, 1).log()
    (true_gradient,) = torch.autograd.grad((weights * logs).sum(), leaf)
    (gradient,) = torch.autograd.grad(log_p, leaf, weights)
    check_gradient(gradient, true_gradient, torch.float64, ulps=512, floor=1.0)

    def expected_q(x0, x_t, s, t):
        return true_q_posterior(chain, x0, x_t, s, t)

    expected = truth(expected_q, STEPS[times], sizes, x0, x_t)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, s, dtype=torch.float64, impl=impl)
    assert_close(log_q.exp(), expected, torch.float64, ulps=64, scale=torch.ones(1))
    assert torch.equal(log_q == -torch.inf, expected == 0)


def true_density(chain, logits, x0, x_t, t, reverse):
    """``sum_{j != x_t} R[j, x_t] (m_j - d_j - d_j log(m_j / d_j))``."""
    matrix, n = chain.product(0, t), torch.arange(len(x0))
    predicted = torch.softmax(logits, dim=-1)
    if reverse == "posterior_mean":
        reach = matrix[:, x_t].T
        predicted = torch.where(reach > 0, predicted / reach.where(reach > 0, 1), 0)
        predicted = predicted / predicted.sum(-1, keepdim=True)
    f, d = predicted @ matrix, matrix[x0]
    f, d = f / f[n, x_t, None], d / d[n, x_t, None]
    rates = chain.rates(t)[:, x_t].T
    terms = f - d + torch.xlogy(d, d) - torch.xlogy(d, f.where(d > 0, 1))
    terms = torch.where(rates > 0, rates * terms, 0)
    return terms.scatter(-1, x_t[:, None], 0).sum(-1)


@pytest.mark.parametrize("num_classes", [K, 40])
@pytest.mark.parametrize("reverse", REVERSE)
def test_the_density_agrees_with_its_definition(impl, num_classes, reverse):
    chain, moments = Explicit("continuous", num_classes), [0.01, 0.37, 0.8, 0.98]
    x0, x_t, logits, _, t, sizes = chain.batch([(0.0, time) for time in moments])
    leaf = logits.requires_grad_()

    def expected(logits, x0, x_t, t):
        return true_density(chain, logits, x0, x_t, t, reverse)

    expected = truth(expected, [(time,) for time in moments], sizes, leaf, x0, x_t)
    (true_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    loss = functional.loss(
        chain.transition, leaf, x0, x_t, t, reverse=reverse, reduction="none", impl=impl
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert_close(loss, expected, torch.float64, ulps=1 << 14, scale=expected.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=1 << 14, floor=0.1)


def test_losses_of_short_steps_tend_to_the_density(impl):
    """Their error falls like the length of the step."""
    chain = Explicit("continuous")
    x0, x_t, logits = chain.pairs(0.6)
    options = {"reduction": "none", "impl": impl}
    t, errors = torch.full((len(x0),), 0.6, dtype=torch.float64), []
    limit = functional.loss(chain.transition, logits, x0, x_t, t, **options)
    for step in (1e-3, 1e-4):
        loss = functional.loss(chain.transition, logits, x0, x_t, t, t - step, **options) / step
        errors.append((loss - limit).abs().max())
    assert 8 < errors[0] / errors[1] < 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_classes_in_every_dtype(kernels, dtype):
    """A codebook of VQ-Diffusion's size; one time for all tokens of an item."""
    k = 2888
    chain = transitions.masked_uniform(
        k, d3.schedules.linear(100, 1e-6, 1e-6), d3.schedules.jsd(100), k - 1
    )
    x0, t = torch.randint(k - 1, (3, 2)), torch.tensor([1, 50, 100])
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    x_t[1, 0], x_t[1, 1] = k - 1, (x0[1, 1] + 1) % (k - 1)
    logits = (2 * torch.randn(3, 2, k)).to(dtype)
    found, expected = (
        functional.loss(chain, rows, x0, x_t, t, reduction="none", impl=impl)
        for rows, impl in ((logits, kernels), (logits.double(), "reference"))
    )
    assert_close(found, expected, dtype, ulps=64, scale=expected + 1)


def test_a_chain_of_many_classes_is_small():
    chain = transitions.masked_uniform(
        2888, d3.schedules.linear(100), d3.schedules.jsd(100), mask_id=2887
    )
    parts = [chain, chain.visible, chain.masking]
    tables = [getattr(part, name) for part in parts for name in part._TABLES]
    assert sum(table.nbytes for table in tables if table is not None) < 200_000


def test_rare_classes_ask_for_float64():
    """Also where it is both chains together that make them rare."""
    half, nearly_all = [0.5, 0.5], [1 - 1e-10, 1 - 1e-10]
    assert transitions.masked_uniform(K, half, nearly_all, MASK).needs_float64
    assert transitions.masked_uniform(K, half, [1e-20, 0.5], MASK).needs_float64
    assert transitions.masked_uniform(K, [1e-20, 0.5], half, MASK).needs_float64
    assert not transitions.masked_uniform(K, half, half, MASK).needs_float64
    assert not Explicit("continuous").transition.needs_float64


def test_draws_follow_the_marginals(impl, times):
    """A mask stays the mask, and at time 0 are the data."""
    draws, chain = 2000 if impl in ("reference", "cpu") else 200, Explicit(times)
    x0 = torch.tensor([0, MASK, 4])
    t = torch.tensor([0, 3, 5] if times == "steps" else [0.0, 0.45, 0.9]).to(
        chain.transition.time_dtype
    )
    for time in t:
        x_t = functional.q_sample(
            chain.transition,
            x0.expand(draws, 3),
            time.expand(draws),
            seeds=torch.arange(draws),
            impl=impl,
        )
        assert_follows(x_t, chain.product(0, time.item())[x0])


def test_reverse_steps_follow_their_law(impl, times):
    draws, chain = 2000 if impl in ("reference", "cpu") else 200, Explicit(times)
    x_t = torch.tensor([0, MASK, 3])
    logits = torch.tensor([0.5, 0.0, -torch.inf, 1.0, -1.0], dtype=torch.float64).expand(3, K)
    for s, t in [(2, 3), (1, 5)] if times == "steps" else [(0.3, 0.6)]:
        ends = (torch.full((draws,), time, dtype=chain.transition.time_dtype) for time in (t, s))
        x_s = functional.p_sample(
            chain.transition,
            logits.expand(draws, 3, K),
            x_t.expand(draws, 3),
            *ends,
            seeds=torch.arange(draws),
            impl=impl,
        )
        assert_follows(x_s, true_p_posterior(chain, logits, x_t, s, t))


def test_a_mask_was_one_only_if_it_came_from_a_visible_token_or_stayed(impl):
    """Of data that were the mask, which no loss takes, the posterior is known, too."""
    chain = Explicit("steps").transition
    x0, x_t, t = torch.full((2,), MASK), torch.tensor([MASK, 0]), torch.tensor([4, 4])
    log_q = functional.q_posterior(chain, x0, x_t, t, dtype=torch.float64, impl=impl)
    assert torch.equal(log_q[0].exp(), torch.eye(K).double()[MASK])
    assert bool(log_q[1].isnan().all())


@pytest.mark.exhaustive(where=lambda by, times: by == "triton" and times == "steps")
@pytest.mark.parametrize("by", ["cpu", "triton"])
def test_strokes_of_shards_are_the_loss(request, by, times):
    by = request.getfixturevalue(by)
    chain = Explicit(times, 6, 5)
    x0, x_t, logits, s, t, _ = chain.batch(STEPS[times][2:4])
    expected = functional.loss(
        chain.transition, logits, x0, x_t, t, s, reduction="none", impl="reference"
    )
    step = chain.transition.of_tokens(chain.transition.step_record(t, s), x_t=x_t)
    of = Loss(logits, x0, None, x_t, step, Model(False, False), Weights(1.0, 0.0))
    shards = [
        (of._replace(logits=part.contiguous()), Shard(first))
        for part, first in zip(logits.tensor_split([4], dim=-1), (0, 4), strict=True)
    ]
    statistics, solve, sums, gradient = (
        getattr(ops, f"loss_{name}").kernel(by, chain.transition.structure)
        for name in ("statistics", "solve", "sums", "gradient")
    )
    merged = ops.merged([statistics(*shard) for shard in shards])
    line = solve(*shards[0], merged)
    total = sum(sums(*shard, merged, line) for shard in shards)
    for shard in shards:
        loss, _ = gradient(*shard, merged, total)
        assert_close(loss, expected, torch.float64, ulps=256, scale=expected + 1)


LAW = torch.tensor([0.5, 0.3, 0.0, 0.2, 0.0], dtype=torch.float64)


def denoiser(x_t, t):
    """What is known of data of independent tokens without looking at them."""
    return LAW.log().expand(*x_t.shape, K)


def test_samples_have_the_law_of_the_data(times):
    diffusion = d3.D3PM(Explicit(times).transition)
    steps = None if times == "steps" else 20
    x = diffusion.sample(denoiser, (4, 500), steps=steps, seeds=torch.arange(4))
    assert_follows(x.reshape(-1, 1), LAW[None])


def test_the_bound_of_such_a_denoiser_is_tight(times):
    """Its reverse steps are exact, so that the bound is ``-log p(x_0)`` in the mean."""
    diffusion = d3.D3PM(Explicit(times).transition)
    x0 = torch.tensor([0, 1, 3]).repeat_interleave(3000).view(3, 3000)
    options = {} if times == "steps" else {"num_times": 64, "t_min": 1e-2}
    bound = diffusion.elbo(denoiser, x0, seeds=torch.arange(3), **options)
    expected = -LAW[[0, 1, 3]].log()
    assert bool((bound.prior == 0).all())
    torch.testing.assert_close(bound.nats / 3000, expected, rtol=0.06, atol=0)


def test_what_is_left_at_the_end():
    """Its stationary law has the masks of x_T, and where that keeps some, the prior says so."""
    betas, mask_betas = BETAS[:3], MASK_BETAS[:3]
    chain = transitions.masked_uniform(K, betas, mask_betas, MASK)
    end = chain.q_bar_matrix(3)
    law = torch.full((K,), float(1 - end[0, MASK]) / (K - 1), dtype=torch.float64)
    law[MASK] = end[0, MASK]
    assert_close(chain.stationary(), law, torch.float64)
    expected = (torch.xlogy(end, end) - end * law.log()).sum(1)
    assert_close(chain.prior(), expected, torch.float64, ulps=64)


@pytest.mark.parametrize("bad", [-1, 0, T + 1, T + 2, 2 * T + 3])
def test_times_that_do_not_exist_are_refused(impl, bad):
    chain = Explicit("steps").transition
    x, t = torch.tensor([0, MASK]), torch.tensor([1, bad])
    message = rf"t must lie in \[1, {T + 1}\), got {bad}"
    with pytest.raises(IndexError, match=message):
        functional.loss(chain, torch.randn(2, K), torch.tensor([0, 1]), x, t, impl=impl)
    with pytest.raises(IndexError, match=message):
        functional.p_sample(chain, torch.randn(2, K), x, t, impl=impl)


@pytest.mark.parametrize("bad", [-1, 0, T + 1, T + 2, 2 * T + 3])
def test_where_no_time_can_be_read_they_give_nan(bad):
    """As on a GPU, whether the token is masked or not."""
    chain = Explicit("steps").transition
    x0, x_t = torch.tensor([0, 1, MASK]), torch.tensor([0, MASK, MASK])
    record = chain.step_record(torch.full((3,), bad))
    table, rows = record.table, chain.of_tokens(record, x0, x_t).rows
    assert bool(((rows < 0) | (rows >= len(table)) | table[rows, 0].isnan())[:2].all())


def test_only_some_tokens_count(impl, times):
    chain = Explicit(times)
    x0, x_t, logits, s, t, _ = chain.batch(STEPS[times])
    mask = torch.rand(len(x0)) < 0.5
    whole = functional.loss(chain.transition, logits, x0, x_t, t, s, reduction="none", impl=impl)
    x0, x_t = x0.where(mask, -9), x_t.where(mask, MASK)
    part = functional.loss(
        chain.transition, logits, x0, x_t, t, s, mask=mask, reduction="none", impl=impl
    )
    assert_close(part, whole.where(mask, 0), torch.float64)


def test_data_that_are_the_mask_are_refused(cpu):
    chain = Explicit("steps").transition
    x, t = torch.tensor([MASK]), torch.tensor([2])
    with pytest.raises(ValueError, match="x0 must not hold the mask"):
        functional.loss(chain, torch.randn(1, K), x, x, t)


def test_compiled_steps(cpu, times):
    chain = Explicit(times)
    x0, x_t, logits, s, t, _ = chain.batch(STEPS[times][:2])

    def results(logits, t):
        loss = functional.loss(chain.transition, logits, x0, x_t, t, s)
        return loss, functional.p_posterior(chain.transition, logits, x_t, t, s)

    torch._dynamo.reset()
    compiled = torch.compile(results, fullgraph=True, backend="aot_eager")(logits, t)
    for found, expected in zip(compiled, results(logits, t), strict=True):
        assert_close(found, expected, torch.float64)


def test_chains_can_be_copied_moved_saved_and_told_apart(tmp_path):
    chains = [Explicit(times).transition for times in STEPS]
    chains += [
        transitions.masked_uniform(K, BETAS, BETAS, MASK),
        transitions.masked_uniform(K, MASK_BETAS, BETAS, MASK),
        transitions.masked_uniform(K, BETAS, MASK_BETAS, 1),
        transitions.masked_uniform(K, *SCHEDULES[::-1], MASK),
    ]
    assert len({round(chain.fingerprint, 6) for chain in chains}) == len(chains)
    for chain in chains:
        diffusion = d3.D3PM(chain)
        torch.save(diffusion, tmp_path / "diffusion")
        loaded = torch.load(tmp_path / "diffusion", weights_only=True)
        for other in (loaded.transition, copy.deepcopy(chain)):
            assert other.fingerprint == chain.fingerprint
            assert torch.equal(other.q_bar_matrix(1), chain.q_bar_matrix(1))
        assert d3.D3PM(chain).half().transition.q_bar_matrix(1).dtype == torch.float64
        moved = diffusion.to("meta").transition
        held = [value for part in moved.modules() for value in vars(part).values()]
        assert all(value.is_meta for value in held if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, BETAS, MASK_BETAS, 0), ValueError, "num_classes must be at least 3"),
        ((K, BETAS, MASK_BETAS, K), IndexError, r"mask_id must lie in \[0, 5\), got 5"),
        ((K, BETAS, MASK_BETAS[1:], 0), ValueError, "mask_betas must have one entry a step, 6"),
        ((K, BETAS + 1, MASK_BETAS, 0), ValueError, r"betas must lie in \[0, 1\]"),
        ((K, BETAS, -MASK_BETAS, 0), ValueError, r"betas must lie in \[0, 1\]"),
        ((K, BETAS, SCHEDULES[1], 0), TypeError, "must both be numbers, or both be schedules"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        transitions.masked_uniform(*arguments)


@pytest.mark.parametrize(("t", "s"), [(0, None), (T + 1, None), (3, 4), (3, -1)])
def test_matrices_of_other_times_are_refused(t, s):
    with pytest.raises(IndexError):
        Explicit("steps").transition.q_matrix(t, s)
    with pytest.raises(IndexError):
        Explicit("continuous").transition.q_matrix(-0.5 if s is None else t / 10, s)

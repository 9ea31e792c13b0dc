"""Where there is no law: logits without a softmax, or none of whose classes leads to x_t.

Expected laws are made of explicit matrices in float64.
"""

import itertools
import math

import pytest
import torch
from helpers.chains import make_chain
from helpers.dense_chains import make_dense_chain

import d3pm_fast as d3
from d3pm_fast import _environment, functional, reference, transitions
from d3pm_fast._no_law import NoLaw
from d3pm_fast.predictions import chunks
from d3pm_fast.records import Loss, Model, Random, Weights
from d3pm_fast.reference.draws import NONE

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K = 3
INF, NAN = math.inf, math.nan
# Of a CPU's arithmetic, of torch.nan, of a GPU's arithmetic.
NANS = torch.tensor([-0x400000, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
ROWS = [list(row) for row in itertools.product([0.3, -INF], repeat=K)]
ROWS += [[0.1, NAN, -1.0], [0.2, -INF, NAN], [0.0, 0.0, INF], [-INF, INF, -INF]]
BETAS = [0.2, 0.4, 1.0]
MOVES = torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]).double()
CYCLE = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).double()
NEVER_2 = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]).double()
CHAINS = {
    "uniform": lambda: transitions.uniform(K, [0.2, 0.3, 0.5]),
    "absorbing": lambda: transitions.absorbing(K, BETAS, 2, data_has_mask=True),
    "marginal": lambda: transitions.marginal(K, BETAS, [0, 0.4, 0.6]),
    "moves": lambda: transitions.from_matrices(torch.stack([MOVES, MOVES, NEVER_2])),
    "cycle": lambda: transitions.from_matrices(torch.stack([CYCLE, MOVES, CYCLE])),
}
DENSE = ["moves", "cycle"]
rank_one_for_cuda = pytest.mark.unserved(
    where=lambda impl, name, **_: impl == "cuda" and name in DENSE,
    reason="CUDA C++ serves rank-one chains",
)
STEPS = [(1, 0), (2, 1), (3, 2), (3, 0)]


class Case:
    """Every row with every x_t of some steps, and the law of x_s, None where there is none."""

    def __init__(self, name, reverse, first_step, dtype=torch.float64, few=False):
        self.chain, self.few = CHAINS[name](), few
        self.options = {"reverse": reverse, "first_step": first_step}
        tokens = list(itertools.product(STEPS, range(K), ROWS))
        tokens = tokens[::7] if few else tokens  # each x_t, step and row comes
        (steps, x_t, rows) = zip(*tokens, strict=True)
        self.t, self.s = torch.tensor(steps).unbind(1)
        self.x_t, self.logits = torch.tensor(x_t), torch.tensor(rows, dtype=dtype)
        self.laws = [self.law(*token) for token in tokens]
        self.undefined = torch.tensor([law is None for law in self.laws])
        self.arguments = self.x_t, self.t, self.s

    def matrix(self, s, t):
        result = torch.eye(K).double()
        for step in range(s + 1, t + 1):
            result = result @ self.chain.q_matrix(step)
        return result

    def law(self, step, x_t, row):
        t, s = step
        softmax = torch.tensor(row).double().softmax(0)
        has_softmax = not bool(softmax.isnan().any())
        if s == 0 and self.options["first_step"] == "logits":
            return softmax if has_softmax else None
        column = self.matrix(s, t)[:, x_t]
        if (column > 0).sum() == 1:
            return (column > 0).double()
        if not has_softmax:
            return None
        if self.options["reverse"] == "posterior_mean":
            reach = self.matrix(0, t)[:, x_t]
            softmax = torch.where(reach > 0, softmax / reach, 0)
        weights = column * (softmax @ self.matrix(0, s))
        return weights / weights.sum() if weights.sum() > 0 else None

    def q(self, x0):
        """NaN for a pair that the chain cannot make; one-hot in a step to s = 0."""
        laws = []
        for x_t, t, s in zip(*(values.tolist() for values in self.arguments), strict=True):
            weights = self.matrix(s, t)[:, x_t] * self.matrix(0, s)[x0]
            laws.append(weights / weights.sum())
        return torch.stack(laws)

    def p(self):
        nothing = torch.full((K,), NAN).double()
        return torch.stack([nothing if law is None else law for law in self.laws])


def cases(impl, name, reverse, first_step="posterior", dtype=torch.float64):
    return Case(name, reverse, first_step, dtype, few=impl == "triton" and name in DENSE)


MODELS = [("joint", "posterior"), ("posterior_mean", "posterior"), ("joint", "logits")]


@rank_one_for_cuda
@pytest.mark.parametrize(("reverse", "first_step"), MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CHAINS))
def test_the_posterior_is_that_law_or_nan_for_every_class(name, dtype, reverse, first_step, impl):
    case = cases(impl, name, reverse, first_step, dtype)
    log_p = functional.p_posterior(
        case.chain, case.logits, *case.arguments, **case.options, impl=impl
    )
    expected = case.p()
    assert torch.equal(log_p.isnan(), expected.isnan())
    torch.testing.assert_close(log_p.exp().double(), expected, rtol=1e-5, atol=0, equal_nan=True)


@rank_one_for_cuda
@pytest.mark.parametrize(("reverse", "first_step"), MODELS)
@pytest.mark.parametrize("name", list(CHAINS))
def test_the_divergence_is_nan_where_there_is_no_law(name, reverse, first_step, impl):
    case = cases(impl, name, reverse, first_step)
    for x0 in [1] if case.few else range(K):
        q = case.q(x0)
        terms = torch.where(q > 0, q * (q.log() - case.p().log()), 0)
        expected = terms.sum(-1).where(~q.isnan().any(-1) & ~case.undefined, NAN)
        leaf = case.logits.clone().requires_grad_()
        loss = functional.loss(
            case.chain, leaf, torch.full_like(case.x_t, x0), *case.arguments,
            **case.options, reduction="none", impl=impl,
        )  # fmt: skip
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=1e-12, equal_nan=True)
        if impl != "reference":
            loss.sum().backward()
            assert bool(leaf.grad[expected.isnan()].isnan().any(-1).all())


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_cannot_lead_to_x_t_has_to_be_a_number(dtype, bad, impl):
    """The posterior mean leaves it out, but there is no softmax."""
    if impl == "cuda":
        pytest.skip("CUDA C++ serves rank-one chains")
    chain = transitions.from_matrices(torch.stack([MOVES, MOVES]))
    logits = torch.tensor([[0.2, 0.1, bad]], dtype=dtype)
    x0, x_t, t = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    options = {"reverse": "posterior_mean", "impl": impl}
    assert functional.p_posterior(chain, logits, x_t, t, **options).isnan().all()
    assert functional.loss(chain, logits, x0, x_t, t, **options).isnan()


def test_a_cross_entropy_alone_needs_no_law(impl):
    """Class 0 of a chain that only climbs cannot come back from 2: its posterior is not asked."""
    chain = transitions.from_matrices(torch.stack([MOVES, MOVES])) if impl != "cuda" else None
    if chain is None:
        pytest.skip("CUDA C++ serves rank-one chains")
    logits = torch.tensor([[-INF, -INF, 0.3]]).double()
    x0, x_t, t = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    options = {"vb_weight": 0.0, "ce_weight": 1.0, "reduction": "none", "impl": impl}
    assert functional.loss(chain, logits, x0, x_t, t, **options).item() == INF
    options |= {"vb_weight": 1.0}
    assert functional.loss(chain, logits, x0, x_t, t, **options).isnan().item()


def draw_alone(case, n, impl, seeds):
    only = slice(n, n + 1)
    tokens = (values[only] for values in (case.logits, *case.arguments))
    options = case.options | {"seeds": seeds[only], "impl": impl}
    try:
        return functional.p_sample(case.chain, *tokens, **options).item()
    except NoLaw:
        return NONE


@rank_one_for_cuda
@pytest.mark.parametrize(("reverse", "first_step"), MODELS)
@pytest.mark.parametrize("name", list(CHAINS))
def test_a_draw_is_of_that_law_or_of_none(name, reverse, first_step, impl):
    """A token that stays whatever its logits are may have any; x_t that nothing leads to stays."""
    case = cases(impl, name, reverse, first_step, torch.float32)
    seeds = torch.arange(len(case.x_t))
    options = case.options | {"seeds": seeds, "impl": impl}
    if impl in ("reference", "cpu"):
        drawn = torch.tensor([draw_alone(case, n, impl, seeds) for n in range(len(seeds))])
        first = int((drawn == NONE).nonzero()[0])
        with pytest.raises(ValueError, match=rf"logits must .* at index \({first},\)"):
            functional.p_sample(case.chain, case.logits, *case.arguments, **options)
    else:
        drawn = functional.p_sample(case.chain, case.logits, *case.arguments, **options)
        if name not in DENSE:
            alone = [draw_alone(case, n, "reference", seeds) for n in range(len(seeds))]
            assert drawn.tolist() == alone
    for n, law in enumerate(case.laws):
        x_t, s, t = int(case.x_t[n]), int(case.s[n]), int(case.t[n])
        if law is not None:
            assert law[drawn[n]] > 0
        elif not bool((case.matrix(s, t)[:, x_t] > 0).any()) and not (
            s == 0 and first_step == "logits"
        ):
            assert drawn[n] == x_t
        elif name in DENSE or (s == 0 and first_step == "logits"):
            assert drawn[n] == NONE
        else:
            assert int(drawn[n]) in (x_t, NONE)
    assert (drawn == NONE).sum() > 2


def test_as_many_rows_of_nan_are_drawn_from_as_the_bound_says(cpu):
    """A masked token is unmasked at most so often: the numbers of the others settle them."""
    chain = transitions.absorbing(K, [0.5, 0.3], 2, data_has_mask=True)
    x_t, t, count = torch.tensor([2]), torch.tensor([2]), 2000
    drawn = 0
    for seed in range(count):
        logits = torch.full((1, K), NAN)
        try:
            functional.p_sample(chain, logits, x_t, t, seeds=torch.tensor([seed]), impl=cpu)
        except ValueError:
            drawn += 1
    bound = (0.5 - 0.35) / (1 - 0.35)
    assert abs(drawn - count * bound) < 5 * math.sqrt(count * bound * (1 - bound))


def test_unmasked_tokens_stay_whatever_their_logits(impl):
    chain = transitions.absorbing(K, [0.5, 0.3], 2, data_has_mask=True)
    x_t, t = torch.tensor([[0, 1, 0, 1]]), torch.tensor([2])
    logits = torch.tensor([[[NAN] * K, [INF] * K, [-INF] * K, [0.0, -INF, 0.0]]])
    drawn = functional.p_sample(chain, logits, x_t, t, impl=impl)
    assert torch.equal(drawn, x_t)


SHAPINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 2},
    {"top_p": 0.7},
    {"temperature": 2.0, "top_k": 3, "top_p": 0.9},
]


@pytest.mark.unserved(
    where=lambda impl, name, num_classes, **_: (
        name == "gaussian" and (impl == "cuda" or (impl == "triton" and num_classes > 5))
    ),
    reason="not served, or too slow in the interpreter",
)
@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("num_classes", [5, 40])
@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_no_shaping_makes_a_law_of_none(name, num_classes, shaping, impl):
    chain = make_dense_chain(name, num_classes) if name == "gaussian" else None
    chain = (chain or make_chain(name, num_classes)).transition
    row = torch.linspace(-1, 1, num_classes)
    rows = torch.stack([row] * 7)
    rows[:3, 1] = NANS
    rows[3, 1] = INF
    rows[4] = -INF
    unconditional = torch.zeros_like(rows)
    rows[5, ::2] = -INF  # and the unconditional ones forbid the rest
    unconditional[5, 1::2] = -INF
    x_t, t = torch.full((7,), num_classes - 1), torch.full((7,), chain.num_steps)
    seeds = torch.arange(7)
    for guided in (False, True):
        options = shaping | ({"unconditional": unconditional, "guidance": 3.0} if guided else {})
        given = functional.Shaped(rows, **options)
        good = [5, 6] if not guided else [6]
        if impl in ("reference", "cpu"):
            for n in range(7):
                parts = (part[n : n + 1] for part in (x_t, t))
                other = unconditional[n : n + 1] if guided else None
                alone = given._replace(logits=rows[n : n + 1], unconditional=other)
                call = lambda: functional.p_sample(  # noqa: E731
                    chain, alone, *parts, first_step="logits", s=0 * t[:1],  # noqa: B023
                    seeds=seeds[:1], impl=impl,
                )  # fmt: skip
                if n in good:
                    assert 0 <= call().item() < num_classes
                    continue
                found = ["NaN", "NaN", "NaN", "inf|NaN", "nothing but -inf", "nothing but -inf"][n]
                with pytest.raises(ValueError, match=f"logits must have a softmax, got ({found})"):
                    call()
        else:
            drawn = functional.p_sample(
                chain, given, x_t, t, 0 * t, first_step="logits", seeds=seeds, impl=impl
            )
            assert (drawn >= 0).nonzero().flatten().tolist() == good


@pytest.mark.parametrize("parameter", ["loc", "log_scale"])
def test_a_nan_of_a_logistic_is_found_where_it_is(parameter, impl, monkeypatch):
    """Logits are made for a few items at a time; the index is that of the whole batch."""
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 64)
    chain = transitions.uniform(5, BETAS)
    parameters = {"loc": torch.zeros(4, 3), "log_scale": torch.zeros(4, 3)}
    parameters[parameter][2, 1] = NAN
    given = functional.Logistic(**parameters)
    x_t, t = torch.zeros(4, 3).long(), torch.ones(4).long()
    options = {"first_step": "logits", "seeds": torch.arange(4), "impl": impl}
    if impl in ("reference", "cpu"):
        with pytest.raises(ValueError, match=r"softmax, got NaN at index \(2, 1\)"):
            functional.p_sample(chain, given, x_t, t, **options)
    else:
        drawn = functional.p_sample(chain, given, x_t, t, **options)
        assert (drawn == NONE).nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("num_classes", [5, 40])
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal"])
def test_a_nan_of_any_bits_is_a_nan_of_the_loss(family, num_classes, impl):
    chain = make_chain(family, num_classes).transition
    logits = torch.zeros(3, num_classes)
    logits[:, 1] = NANS
    arguments = torch.full((3,), num_classes - 1), torch.full((3,), 4)
    leaf = logits.clone().requires_grad_()
    x0 = torch.full((3,), 2)
    loss = functional.loss(chain, leaf, x0, *arguments, reduction="none", impl=impl)
    assert bool(loss.isnan().all())
    loss.sum().backward()
    assert bool(leaf.grad.isnan().any(dim=-1).all())
    assert bool(functional.p_posterior(chain, logits, *arguments, impl=impl).isnan().all())
    if impl not in ("reference", "cpu"):
        zero = torch.zeros(3).long()
        drawn = functional.p_sample(
            chain, logits, *arguments, zero, first_step="logits", seeds=zero, impl=impl
        )
        assert bool((drawn == NONE).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_underflows_is_not_forbidden(dtype, impl):
    """Class 0, which has all but 1e-520 of the probability, does not lead to x_t in one step."""
    if impl == "cuda":
        pytest.skip("CUDA C++ serves rank-one chains")
    chain = transitions.from_matrices(torch.stack([MOVES, MOVES]))
    logits = torch.tensor([[1200.0, -INF, 0.0]], dtype=dtype)
    x_t, t = torch.tensor([2]), torch.tensor([1])
    options = {"first_step": "posterior", "impl": impl}
    log_p = functional.p_posterior(chain, logits, x_t, t, **options)
    assert log_p.tolist() == [[-INF, -INF, 0.0]]
    assert functional.p_sample(chain, logits, x_t, t, **options).item() == 2


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([0.0, NAN, INF], r"have a softmax, got NaN at index \(1, 2\)"),
        ([0.0, -INF, INF], r"have a softmax, got inf at index \(1, 2\)"),
        ([-INF, -INF, -INF], r"have a softmax, got nothing but -inf at index \(1, 2\)"),
        (
            [-INF, -INF, 0.0],
            r"allow a class that leads to x_t = 1, got -inf for all that do, at index \(1, 2\)",
        ),
    ],
)
def test_the_message_says_what_was_found_and_where(row, found, monkeypatch):
    chain = transitions.from_matrices(torch.stack([MOVES, MOVES]))
    logits = torch.zeros(2, 4, K)
    logits[1, 2] = torch.tensor(row)
    x_t, t = torch.ones(2, 4).long(), torch.tensor([2, 2])
    for impl in ("reference", "auto"):
        with pytest.raises(ValueError, match=f"logits must {found}"):
            functional.p_sample(chain, logits, x_t, t, impl=impl)


def test_the_full_checks_raise_everywhere(impl, monkeypatch):
    monkeypatch.setattr(_environment, "CHECK", True)
    logits = torch.zeros(2, K)
    logits[1] = -INF
    x_t, t = torch.zeros(2).long(), torch.ones(2).long()
    with pytest.raises(ValueError, match=r"nothing but -inf at index \(1,\)"):
        functional.p_sample(CHAINS["uniform"](), logits, x_t, t, first_step="logits", impl=impl)


SAMPLERS = {
    "sample": lambda diffusion, *args: diffusion.sample(*args),
    "argmax": lambda diffusion, *args: diffusion.sample(*args, last="argmax"),
    "first hitting": d3.samplers.first_hitting,
    "confidence": d3.samplers.confidence,
}


@pytest.mark.parametrize("bad", [NAN, -INF])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_no_sampler_goes_on_from_a_draw_of_nothing(sampler, bad):
    """The last call's logits are no law, or those of class 0's position only."""

    def denoiser(x_t, t):
        logits = torch.zeros(*x_t.shape, K)
        logits[..., -1] = -INF
        logits[:, 1] = torch.where((t == 1).view(-1, 1), bad, logits[:, 1])
        return logits

    diffusion = d3.D3PM(transitions.absorbing(K, [0.4, 0.5, 1.0], 2, data_has_mask=True))
    with pytest.raises(
        ValueError, match=r"softmax, got (NaN|nothing but -inf) at index \(\d+, 1\)"
    ):
        SAMPLERS[sampler](diffusion, denoiser, (64, 2))  # of which some are masked for so long


@pytest.mark.skipif(not _environment.INTERPRET, reason="the tensors are a CPU's")
@pytest.mark.parametrize("sampler", ["sample", "confidence"])
def test_on_a_gpu_a_draw_of_nothing_stays_one_to_the_end(sampler, monkeypatch):
    pytest.importorskip("triton")
    from conftest import serve

    def denoiser(x_t, t):
        return torch.tensor([[0.0, 0.0, -INF], [NAN] * K]).expand(1, 2, K)

    diffusion = d3.D3PM(transitions.absorbing(K, [0.5, 1.0], 2, data_has_mask=True), impl="triton")
    with serve("triton", monkeypatch):
        first, second = SAMPLERS[sampler](diffusion, denoiser, (1, 2))[0].tolist()
    assert first in (0, 1)
    assert second == NONE


@pytest.mark.parametrize("last", ["sample", "argmax"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("is_dense", [False, True])
def test_known_tokens_may_be_ones_that_nothing_leads_to(is_dense, steps, last):
    """All is masked at T, but what is known."""
    chain = transitions.absorbing(K, [0.5, 1.0], 2, data_has_mask=True)
    if is_dense:
        chain = transitions.from_matrices(torch.stack([chain.q_matrix(1), chain.q_matrix(2)]))
    mask = torch.tensor([[True, False, True]])
    tokens = torch.tensor([[0, 0, 1]])

    def denoiser(x_t, t):
        assert x_t[mask].tolist() == [0, 1]
        return torch.tensor([0.0, -INF, -INF]).expand(1, 3, K)

    for impl in ("auto", "reference"):
        diffusion = d3.D3PM(chain, first_step="posterior", impl=impl)
        x = (
            diffusion.sample(denoiser, (1, 3), steps=steps, last=last, known=(tokens, mask))
            if not is_dense
            else masked_sample(diffusion, denoiser, steps, last, (tokens, mask))
        )
        assert x.tolist() == [[0, 0, 1]]


def masked_sample(diffusion, denoiser, steps, last, known):
    """What ``sample`` does from x_T on; the chain of matrices has no stationary law to begin at."""
    x, seeds = d3.sampling.hold(torch.full((1, 3), 2), known), torch.zeros(1).long()
    times = d3.timesteps.path(2, steps)
    for t, s in itertools.pairwise(times):
        x = d3.sampling.step(diffusion, denoiser, x, t, s, Random(seeds, t), last, known)
    return x


@pytest.mark.parametrize("name", ["absorbing", "uniform", "moves"])
def test_what_comes_of_no_class_is_no_class(name, impl):
    """On a GPU -1 goes on, and so does a time that is none, without a word."""
    if impl in ("reference", "cpu") or (impl == "cuda" and name in DENSE):
        pytest.skip("raises there, or is not served")
    chain, logits = CHAINS[name](), torch.zeros(4, K)
    tokens, t = torch.tensor([NONE, 0, 2, 1]), torch.tensor([2, 4, 2, 0])
    other = torch.tensor([1, 1, NONE, 1])
    seeds, options = torch.arange(4), {"impl": impl}
    nothing = torch.tensor([True, True, True, True])
    assert torch.equal(functional.loss(
        chain, logits, other, tokens, t, reduction="none", **options).isnan(), nothing)  # fmt: skip
    q = functional.q_posterior(chain, other, tokens, t, **options)
    assert torch.equal(q.isnan().all(-1), nothing)
    nothing[2] = False
    p = functional.p_posterior(chain, logits, tokens, t, **options)
    assert torch.equal(p.isnan().all(-1), nothing)
    x_s = functional.p_sample(chain, logits, tokens, t, seeds=seeds, **options)
    assert torch.equal(x_s == NONE, nothing)
    x_t = functional.q_sample(chain, tokens, t, seeds=seeds, **options)
    assert torch.equal(x_t == NONE, torch.tensor([True, True, False, False]))


@pytest.mark.parametrize("name", ["absorbing", "moves"])
def test_the_reference_looks_up_nothing_outside(name):
    """As on a GPU, where no index is checked before."""
    chain, logits = CHAINS[name](), torch.zeros(2, K)
    bad, good, t = torch.tensor([NONE, K]), torch.ones(2).long(), torch.ones(2).long()
    step, model, weights = chain.step_record(t), Model(False, False), Weights(1.0, 0.0)
    assert reference.p_posterior(logits, bad, step, model).isnan().all()
    assert reference.q_posterior(bad, good, step, torch.float64).isnan().all()
    of = Loss(logits, good, None, bad, step, model, weights)
    assert reference.loss(of, "none").isnan().all()
    random = Random(torch.arange(2), 0)
    assert (reference.q_sample(bad, chain.marginal_record(t), random) == NONE).all()
    assert (reference.q_sample(good, chain.marginal_record(t + 3), random) == NONE).all()


@rank_one_for_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("name", ["absorbing", "marginal", "moves"])
def test_the_mean_of_no_token_is_nan_and_its_gradient_0(name, shape, dtype, impl):
    """As that of ``F.cross_entropy``; (2, 3) are tokens that do not count."""
    chain = CHAINS[name]()
    x, t = torch.zeros(shape).long(), torch.ones(shape[:1]).long()
    for mask in [torch.zeros(shape).bool()] + [None] * (x.numel() == 0):
        leaf = torch.full((*shape, K), NAN, dtype=dtype).requires_grad_()
        options = {"mask": mask, "first_step": "posterior", "impl": impl}
        assert functional.loss(chain, leaf.detach(), x, x, t, **options).isnan()
        for reduction in ("mean", "sum", "none", "batch"):
            leaf.grad = None
            value = functional.loss(chain, leaf, x, x, t, reduction=reduction, **options)
            assert bool(value.isnan().all() if reduction == "mean" else (value == 0).all())
            value.sum().backward()
            assert leaf.grad.shape == leaf.shape
            assert bool((leaf.grad == 0).all())


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_the_mean_of_no_logistic_is_nan_and_its_gradient_0(shape, impl):
    chain = CHAINS["uniform"]()
    x, t = torch.zeros(shape).long(), torch.ones(shape[:1]).long()
    for mask in [torch.zeros(shape).bool()] + [None] * (x.numel() == 0):
        loc = torch.full(shape, NAN).requires_grad_()
        given, options = (loc, torch.zeros(shape)), {"mask": mask, "impl": impl}
        assert functional.loss(chain, given, x, x, t, **options).isnan()
        functional.loss(chain, given, x, x, t, **options).backward()
        assert loc.grad.shape == shape
        assert bool((loc.grad == 0).all())

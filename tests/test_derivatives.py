"""Derivatives of gradients, forward mode, functorch's transforms, and tensors changed meanwhile."""

import pytest
import torch
from helpers.chains import (
    FAMILIES,
    REVERSE,
    likely_pairs,
    make_chain,
    true_loss,
    true_p_posterior,
)
from helpers.compare import check_gradient
from helpers.dense_chains import FAMILIES as DENSE_FAMILIES
from helpers.dense_chains import make_dense_chain
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vmap

import d3pm_fast as d3
from d3pm_fast import functional

K = 4
# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
ALL_FAMILIES = FAMILIES + DENSE_FAMILIES
OPERATIONS = ["loss", "p_posterior"]


def chain_of(family):
    return make_dense_chain(family, K) if family in DENSE_FAMILIES else make_chain(family, K)


class Case:
    """An operation on pairs of every edge time, of logits, and its independent truth."""

    def __init__(self, operation, family, reverse, impl, num_classes=K):
        self.operation, self.reverse, self.impl = operation, reverse, impl
        self.chain = chain_of(family)
        self.tokens = likely_pairs(self.chain, self.chain.edge_times(), 1)
        self.logits = torch.randn(len(self.tokens[0]), num_classes, dtype=torch.float64)
        self.upstream = torch.rand_like(self.logits)

    def value(self, logits):
        """A number a token."""
        return self.of(logits, *self.tokens, self.upstream)

    def of(self, logits, x0, x_t, t, upstream):
        options = {"reverse": self.reverse, "first_step": "posterior", "impl": self.impl}
        transition = self.chain.transition
        if self.operation == "p_posterior":
            p = functional.p_posterior(transition, logits, x_t, t, **options).exp()
            return (p * upstream.to(p.dtype)).sum(-1)
        return functional.loss(
            transition, logits, x0, x_t, t, ce_weight=0.3, reduction="none", **options
        )

    def truth(self, logits):
        """The same from explicit matrices."""
        x0, x_t, t = self.tokens
        parts = []
        for n in range(len(t)):
            one, time = slice(n, n + 1), int(t[n])
            options = {"reverse": self.reverse, "first_step": "posterior"}
            if self.operation == "p_posterior":
                step = x_t[one], time - 1, time
                p = true_p_posterior(self.chain, logits[one], *step, **options)
                parts.append((p * self.upstream[one]).sum(-1))
            else:
                pair = x0[one], x_t[one], time
                parts.append(true_loss(self.chain, logits[one], *pair, ce_weight=0.3, **options))
        return torch.cat(parts)


def penalized(value, logits):
    """The gradient of a value and a penalty of its own gradient."""
    leaf = logits.clone().requires_grad_()
    out = value(leaf).sum()
    (slope,) = torch.autograd.grad(out, leaf, create_graph=True)
    return torch.autograd.grad(out + 10 * slope.square().sum(), leaf)[0]


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_penalty_of_the_gradient_counts(operation, family, reverse):
    case = Case(operation, family, reverse, "cpu")
    truth = penalized(case.truth, case.logits)
    check_gradient(
        penalized(case.value, case.logits), truth, torch.float64, ulps=1 << 12, floor=1e-3
    )


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("forbids", ["the chain", "the logits", "a logit of -2000"])
def test_a_penalty_counts_where_a_class_is_forbidden(forbids, reverse, impl):
    mask = K - 1
    options = {"mask_id": mask, "data_has_mask": forbids != "the chain"}
    chain = d3.transitions.absorbing(K, d3.schedules.cosine(6), **options)
    x0, x_t = torch.tensor([0, 1, 2, 2]), torch.full((4,), mask)
    t = torch.tensor([1, 2, 5, 6])
    logits = torch.randn(4, K).double()
    level = -2000.0 if forbids == "a logit of -2000" else -torch.inf
    if forbids != "the chain":
        logits[:, mask] = level

    def value(x, impl=impl):
        return functional.loss(chain, x, x0, x_t, t, ce_weight=0.3, reverse=reverse, impl=impl)

    def closed_form(x):
        ratio = torch.stack([_weight(chain, int(time)) for time in t])
        return ((ratio + 0.3) * -x[:, :mask].log_softmax(-1).gather(1, x0[:, None])[:, 0]).mean()

    truth = penalized(closed_form, logits)
    check_gradient(penalized(value, logits), truth, torch.float64, ulps=1 << 12)


def _weight(chain, t):
    """``(abar_s - abar_t) / (1 - abar_t)``, what the cross-entropy of a mask weighs at t."""
    before, after = (chain.q_bar_matrix(time)[0, 0] for time in (t - 1, t))
    return (before - after) / (1 - after)


@pytest.mark.parametrize("reduction", ["none", "batch", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_penalty_counts_with_every_reduction(reduction, dtype, impl):
    chain = make_chain("uniform", K)
    x0, x_t, t = (x.view(2, 2) for x in likely_pairs(chain, chain.edge_times(), 1))
    mask = torch.tensor([[True, True], [False, True]])
    logits = torch.randn(2, 2, K).to(dtype)

    def value(x, impl=impl):
        options = {"mask": mask, "reduction": reduction, "impl": impl}
        return functional.loss(chain.transition, x, x0, x_t, t, ce_weight=0.3, **options)

    truth = penalized(lambda x: value(x, "reference"), logits.double())
    ulps = max(32, 6 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
    check_gradient(penalized(value, logits)[mask], truth[mask], dtype, ulps=ulps)


@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "gaussian"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_mode_is_the_gradient_along_a_tangent(operation, family, impl):
    case = Case(operation, family, "joint", impl)
    tangent = torch.randn_like(case.logits)
    _, truth = jvp(case.truth, (case.logits,), (tangent,))
    _, along = jvp(case.value, (case.logits,), (tangent,))
    torch.testing.assert_close(along, truth)
    assert truth.abs().max() > 1e-3
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(case.logits, tangent)
        along = forward_ad.unpack_dual(case.value(dual)).tangent
    torch.testing.assert_close(along, truth)


@pytest.mark.parametrize("family", ["mask_and_uniform", "band"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_functional_transforms_agree_with_explicit_matrices(operation, family, impl):
    case = Case(operation, family, "joint", impl)

    def total(value):
        return lambda x: value(x).sum()

    for transform in (grad, jacrev, hessian):
        expected = transform(total(case.truth))(case.logits)
        made = transform(total(case.value))(case.logits)
        torch.testing.assert_close(made, expected)
    torch.testing.assert_close(jacrev(case.value)(case.logits), jacrev(case.truth)(case.logits))


@pytest.mark.parametrize("family", ["mask_and_uniform", "gaussian"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_each_sample_are_those_of_samples_alone(operation, family, impl):
    case = Case(operation, family, "joint", impl)

    def of_one(logits, x0, x_t, t, upstream):
        one = (x.unsqueeze(0) for x in (logits, x0, x_t, t, upstream))
        return case.of(*one).sum()

    samples = case.logits, *case.tokens, case.upstream
    together = vmap(grad(of_one))(*samples)
    leaf = case.logits.clone().requires_grad_()
    case.truth(leaf).sum().backward()
    check_gradient(together, leaf.grad, torch.float64, ulps=1 << 12, floor=1e-3)
    shared = vmap(grad(of_one), in_dims=(1, None, None, None, None))
    x0, x_t, t = (x[0] for x in case.tokens)
    by_column = shared(case.logits.T, x0, x_t, t, case.upstream[0])
    alone = [grad(of_one)(row, x0, x_t, t, case.upstream[0]) for row in case.logits]
    torch.testing.assert_close(by_column, torch.stack(alone))


def test_a_skipped_step_and_a_mask_are_mapped_over(impl):
    chain = make_chain("mask_and_uniform", K)
    x0, x_t, t = likely_pairs(chain, [2, 4, 5, 6], 2)
    s = torch.tensor([0, 1, 2, 3, 0, 1, 2, 5])
    logits, mask = torch.randn(8, K, dtype=torch.float64), torch.arange(8) != 3

    def total(logits, mask, *tokens):
        return functional.loss(
            chain.transition, logits, *tokens, mask=mask, reduction="mean", impl=impl
        )

    pairs = [x.view(4, 2, *x.shape[1:]) for x in (logits, mask, x0, x_t, t, s)]
    together = vmap(grad(total))(*pairs)
    alone = [grad(total)(*(x[n] for x in pairs)) for n in range(4)]
    torch.testing.assert_close(together, torch.stack(alone))
    assert bool((together[1, 1] == 0).all())
    assert together[1, 0].abs().max() > 1e-3


@pytest.mark.parametrize("edge_corrected", [False, True])
def test_logistic_pairs_have_derivatives_of_every_order(edge_corrected, impl):
    chain = make_chain("uniform", K)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 1)
    pair = torch.randn(2, len(t), dtype=torch.float64)

    def loss(loc, log_scale, impl=impl):
        prediction = functional.Logistic(loc, log_scale, edge_corrected)
        options = {"reduction": "none", "impl": impl}
        return functional.loss(chain.transition, prediction, x0, x_t, t, **options)

    def log_p(loc, log_scale, impl=impl):
        prediction = functional.Logistic(loc, log_scale, edge_corrected)
        return functional.p_posterior(chain.transition, prediction, x_t, t, impl=impl)

    def logits(loc, log_scale, impl=impl):
        options = {"edge_corrected": edge_corrected, "impl": impl}
        return functional.logistic_logits(loc, log_scale, K, **options)

    leaves = tuple(x.clone().requires_grad_() for x in pair)
    for compute in (loss, log_p, logits):
        assert torch.autograd.gradgradcheck(compute, leaves)
        tangents = tuple(torch.randn_like(pair))
        _, along = jvp(compute, tuple(pair), tangents)
        _, truth = jvp(lambda *x, of=compute: of(*x, impl="reference"), tuple(pair), tangents)
        torch.testing.assert_close(along, truth)
        assert truth.abs().max() > 1e-3


@pytest.mark.parametrize("chosen", ["reference", "auto"])
def test_cumulative_products_have_derivatives_of_every_order(chosen):
    matrices = torch.rand(3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda q: d3.cumulative_products(q, chosen), matrices)
    tangent = torch.randn_like(matrices)
    first, step = matrices.detach(), 1e-6
    _, along = jvp(lambda q: d3.cumulative_products(q, chosen), (first,), (tangent,))
    ends = (d3.cumulative_products(first + sign * step * tangent, chosen) for sign in (1, -1))
    torch.testing.assert_close(along, (next(ends) - next(ends)) / (2 * step), rtol=1e-6, atol=1e-8)


def test_shaped_logits_refuse_a_tangent():
    chain = make_chain("uniform", K).transition
    x_t, t = torch.tensor([1]), torch.tensor([3])

    def log_p(x):
        return functional.p_posterior(chain, functional.Shaped(x, temperature=0.5), x_t, t)

    with pytest.raises(ValueError, match="no gradient"):
        jvp(log_p, (torch.randn(1, K),), (torch.ones(1, K),))


ITEMS = ["x0", "x_t", "t", "s", "mask"]


def changed_call(operation, prediction, impl):
    """A call whose integers may be changed, and these."""
    x0, x_t, t = likely_pairs(make_chain("uniform", K), [4, 6], 2)
    items = {"x0": x0, "x_t": x_t, "t": t, "s": t - 2, "mask": torch.arange(4) != 0}
    chain = make_chain("uniform", K).transition
    leaf = torch.randn((4, K) if prediction == "logits" else (4,), requires_grad=True)
    predicted = leaf if prediction == "logits" else functional.Logistic(leaf, torch.zeros(4))
    if operation == "loss":
        options = {"mask": items["mask"], "reduction": "none", "impl": impl}
        value = functional.loss(chain, predicted, x0, x_t, t, items["s"], **options)
    else:
        del items["x0"], items["mask"]
        value = functional.p_posterior(chain, predicted, x_t, t, items["s"], impl=impl)
    return value, leaf, items


def change(tensor):
    tensor.logical_not_() if tensor.dtype == torch.bool else tensor.sub_(1).clamp_(min=0)


@pytest.mark.parametrize("prediction", ["logits", "logistic"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("item", ITEMS)
def test_integers_changed_before_backward_do_not_change_the_gradient(
    item, operation, prediction, kernels
):
    """It is that of the call, or PyTorch says that they were changed; the loss has it made."""
    torch.manual_seed(1)
    value, leaf, items = changed_call(operation, prediction, kernels)
    if item not in items:
        return
    value.sum().backward(retain_graph=True)
    right = leaf.grad.clone()
    torch.manual_seed(1)
    value, leaf, items = changed_call(operation, prediction, kernels)
    change(items[item])
    total = value.sum()
    if operation == "loss" and (item, prediction) != ("mask", "logistic"):
        total.backward(retain_graph=True)
        assert torch.equal(leaf.grad, right)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_mask_without_a_token_gives_a_gradient_of_zero(dtype, reduction, impl):
    chain = make_chain("uniform", K).transition
    x, t, mask = torch.zeros(2, 3).long(), torch.tensor([3, 4]), torch.zeros(2, 3).bool()
    leaf = torch.zeros(2, 3, K, dtype=dtype, requires_grad=True)
    functional.loss(
        chain, leaf, x, x, t, mask=mask, reduction=reduction, impl=impl
    ).sum().backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_samples_without_a_token_give_a_gradient_of_zero(dtype, reduction, impl):
    chain = make_chain("uniform", K).transition
    x, t = torch.zeros(2, 1, 3).long(), torch.tensor([[3], [4]])
    mask = torch.tensor([[[False, False, False]], [[True, False, True]]])

    def of_one(logits, x, t, mask):
        options = {"mask": mask, "reduction": reduction, "impl": impl}
        return functional.loss(chain, logits, x, x, t, **options).sum()

    together = vmap(grad(of_one))(torch.randn(2, 1, 3, K).to(dtype), x, t, mask)
    assert torch.equal(together[0], torch.zeros_like(together[0]))
    assert bool((together[1, 0, 0] != 0).any())
    assert bool(together.isfinite().all())

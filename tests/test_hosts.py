"""Pages for users of other code: the very lines of a page against that code's own mathematics."""

import math

import pytest
import torch
from helpers import pages
from helpers.compare import agree, assert_close
from torch.nn import functional as F

import d3pm_fast as d3

ULPS = 4500  # of float64: a relative error of 1e-12


@pytest.fixture
def page(request, impl):
    """The names of a page, whose chains are served by one implementation."""
    names, _ = pages.run(pages.DOCS / "hosts" / f"{request.param}.md")
    for value in names.values():
        if isinstance(value, d3.D3PM):
            value.impl = impl
    return names


def of(name):
    return pytest.mark.parametrize("page", [name], indirect=True, ids=[name])


class Network:
    """Its output is a leaf; it keeps what it was given."""

    def __init__(self, *shape):
        self.logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def __call__(self, x_t, t, *condition):
        self.x_t, self.t = x_t, t
        return self.logits


def entropy(logits, x0):
    return F.cross_entropy(logits.movedim(-1, 1), x0, reduction="none")


def visible_entropy(logits, x0, mask_id):
    """The cross-entropy of a softmax without the mask."""
    is_mask = torch.arange(logits.shape[-1]) == mask_id
    return entropy(logits.masked_fill(is_mask, -torch.inf), x0)


@of("mdlm")
def test_mdlm(page):
    """``sigma' / (e^sigma - 1)`` times the cross-entropy of masked tokens."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    loss = page["training_loss"](network, x0)
    noise = network.t.clone().requires_grad_()
    sigma = -torch.log1p(-0.999 * noise)
    (slope,) = torch.autograd.grad(sigma.sum(), noise)
    weight = (slope / torch.expm1(sigma.detach()))[:, None]
    each = weight * visible_entropy(network.logits, x0, 27)
    agree(loss, each.where(network.x_t == 27, 0).mean(), network.logits)


@of("mdlm")
def test_mdlm_in_steps(page):
    """T times the KL of a step: the chance to be unmasked in it times the cross-entropy."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    loss = page["training_loss_in_steps"](network, x0)
    before, now = (1 - 0.999 * t.double() / 1000 for t in (network.t - 1, network.t))
    weight = (1000 * (before - now) / (1 - now))[:, None]
    each = weight * visible_entropy(network.logits, x0, 27)
    agree(loss, each.where(network.x_t == 27, 0).mean(), network.logits)


@of("mdlm")
def test_block_diffusion(page):
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    loss = page["block_loss"](network, x0)
    assert (network.t.view(4, 2, 4).diff(dim=2) == 0).all()
    each = visible_entropy(network.logits, x0, 27) / network.t
    agree(loss, each.where(network.x_t == 27, 0).mean(), network.logits)


@of("udlm")
def test_duo(page):
    """DUO's form of UDLM's bound, with the sums that do not depend on the network done."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    loss = page["training_loss"](network, x0)
    alpha = (1 - 0.999 * network.t)[:, None]
    theta = 27 * alpha[..., None] * network.logits.softmax(-1) + 1 - alpha[..., None]
    at_z = theta.gather(-1, network.x_t[..., None]).squeeze(-1)
    at_x = theta.gather(-1, x0[..., None]).squeeze(-1)
    logs = (at_z[..., None].log() - theta.log()).sum(-1)
    low, high = 1 - alpha, 27 * alpha + 1 - alpha
    ratio = low / high
    kept = 27 / at_z - 27 / high + ratio * logs + 26 * ratio * ratio.log()
    moved = 27 / at_z - 27 / low + logs + 27 * alpha / low * (at_z / at_x).log()
    each = torch.where(network.x_t == x0, kept, moved - ratio.log() / ratio)
    agree(loss, (0.999 / (27 * alpha) * each).mean(), network.logits)


@of("udlm")
def test_the_posterior_of_udlm(page):
    """Of a clean token, with the prediction's probabilities in its place."""
    x_t, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    t, s = torch.full((4,), 0.6, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    found = page["diffusion"].p_posterior(network.logits, x_t, t, s).exp()
    before, now = 1 - 0.999 * 0.4, 1 - 0.999 * 0.6
    kept, z = now / before, F.one_hot(x_t, 27).double()
    prediction = network.logits.softmax(-1)
    joint = (kept * z + (1 - kept) / 27) * (before * prediction + (1 - before) / 27)
    assert_close(found, joint / joint.sum(-1, keepdim=True), torch.float64, ulps=ULPS)


def noise_of(alpha):
    """Of log-linear noise: sigma, and its slope in t."""
    sigma = -alpha.log()
    return sigma, 0.999 / alpha


@of("sedd")
def test_the_loss_of_sedd_by_masks(page):
    """With its constant: ``sum e^y - y[x_0] r + r (log r - 1)``, ``r = 1 / (e^sigma - 1)``."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    loss = page["training_loss"](network, x0, page["absorb"])
    sigma, slope = noise_of(torch.exp(-network.t)[:, None])
    ratio, y = 1 / torch.expm1(sigma), network.logits
    scores, right = y[..., :27].exp().sum(-1), y.gather(-1, x0[..., None]).squeeze(-1)
    entropy = scores - ratio * right + ratio * (ratio.log() - 1)
    each = slope * entropy.where(network.x_t == 27, 0)
    agree(loss, each.sum(1).mean(), network.logits)


@of("sedd")
def test_the_loss_of_sedd_by_uniform_noise(page):
    """The mean of scores, less those of x_t, minus what they are to be times their logarithms."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    loss = page["training_loss"](network, x0, page["uniform"])
    sigma, slope = noise_of(torch.exp(-network.t)[:, None, None])
    reached = torch.exp(-sigma) * F.one_hot(x0, 27) - torch.expm1(-sigma) / 27
    ratio = reached / reached.gather(-1, network.x_t[..., None])
    y = network.logits
    terms = y.exp() - ratio * y + ratio * (ratio.log() - 1)
    others = terms.sum(-1) - terms.gather(-1, network.x_t[..., None]).squeeze(-1)
    agree(loss, (slope.squeeze(-1) * others / 27).sum(1).mean(), network.logits)


@of("sedd")
@pytest.mark.parametrize("chain", ["absorb", "uniform"])
def test_the_steps_of_sedd(page, chain):
    """``(exp(-dsigma Q) score)_j exp(dsigma Q)[x_t, j]``, by matrices, and ``1 + dsigma rate``."""
    diffusion, size = page[chain], 28 if chain == "absorb" else 27
    diffusion.impl = "auto"
    rates = torch.ones(size, size, dtype=torch.float64) / size
    if chain == "absorb":
        rates = torch.zeros_like(rates).index_fill(1, torch.tensor(27), 1.0)
    rates = rates - torch.eye(size, dtype=torch.float64)  # of x_s in rows
    x_t = torch.arange(size)
    t, s = (torch.full((size,), u, dtype=torch.float64) for u in (0.6, 0.58))
    y = 0.1 * torch.randn(size, size, dtype=torch.float64)
    y = y + torch.log(1 / torch.expm1(torch.tensor(0.9))) if chain == "absorb" else y
    scores = y.scatter(-1, x_t[:, None], 0).exp()
    now, before = noise_of(1 - 0.999 * t), noise_of(1 - 0.999 * s)
    length = (now[0] - before[0])[0]
    column = torch.matrix_exp(length * rates)[:, x_t].T
    weights = (scores @ torch.matrix_exp(-length * rates)).clamp(min=0) * column
    moves = 0.02 * now[1][0] * rates[:, x_t].T * scores
    moves = moves.scatter(-1, x_t[:, None], 0)
    euler = moves.scatter(-1, x_t[:, None], (1 - moves.sum(-1, keepdim=True)).clamp(min=0))
    for step, expected in (("analytic", weights), ("euler", euler)):
        found = diffusion.p_posterior(page["Score"](y, step), x_t, t, s).exp()
        expected = expected / expected.sum(-1, keepdim=True)
        assert_close(found, expected, torch.float64, ulps=ULPS, scale=torch.ones(()))
        assert (expected > 0.001).sum() > size


@of("sedd")
def test_the_last_step_of_sedd_leaves_no_mask(page):
    assert page["x"].max() < 27


def keep_or_move(betas, moved, t):
    """Return ``Q_t`` and ``Qbar_{t-1}``, ``(B, K, K)``, where every change draws from one law."""
    kept = torch.cat((torch.ones(1).double(), (1 - betas).cumprod(0)))
    eye = torch.eye(len(moved), dtype=torch.float64)

    def of(share):
        return share.view(-1, 1, 1) * eye + (1 - share).view(-1, 1, 1) * moved

    return of(1 - betas[t - 1]), of(kept[t - 1])


def posterior(law_of_x0, x_t, step, product):
    """``q(x_{t-1} | x_t, x_0)`` for a law of x_0, ``(B, N, K)``: one-hot, or predicted."""
    back = step.mT[torch.arange(len(x_t))[:, None], x_t]
    joint = back * (law_of_x0 @ product)
    return joint / joint.sum(-1, keepdim=True)


def bound(logits, x0, x_t, step, product):
    """``KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))``, ``(B, N)``."""
    clean = F.one_hot(x0, logits.shape[-1]).double()
    laws = (posterior(law, x_t, step, product) for law in (clean, logits.softmax(-1)))
    return divergence(*laws)


def cosine(num_steps):
    wave = ((torch.arange(num_steps + 1).double() / num_steps + 0.008) / 1.008 * math.pi / 2).cos()
    return 1 - wave[1:] / wave[:-1]


def divergence(q, p):
    """``KL(q || p)`` over the support of q."""
    return (torch.special.xlogy(q, q) - q * p.where(q > 0, 1).log()).sum(-1)


def posteriors_of(diffusion, logits, x0, x_t, t):
    """Return the posteriors of data and of logits, ``(B, N, K)``, from either layout."""
    dim = diffusion.class_dim
    log_q = diffusion.q_posterior(x0, x_t, t, dtype=torch.float64)
    log_p = diffusion.p_posterior(logits.movedim(-1, dim), x_t, t)
    return log_q.movedim(dim, -1), log_p.movedim(dim, -1)


@pytest.mark.parametrize("page", ["cloneofsimo", "google", "multinomial"], indirect=True)
def test_posteriors_of_uniform_chains(page):
    """Of the data and of a prediction, at times where no clipping of betas is felt."""
    chain, k = page["diffusion"], page["K"]
    x0, x_t = torch.randint(k, (2, 3, 5))
    logits, t = torch.randn(3, 5, k, dtype=torch.float64), torch.tensor([200, 400, 900])
    tables = keep_or_move(cosine(1000), torch.full((k, k), 1 / k, dtype=torch.float64), t)
    clean = F.one_hot(x0, k).double()
    found = posteriors_of(chain, logits, x0, x_t, t)
    for law, ours in zip((clean, logits.softmax(-1)), found, strict=True):
        assert_close(ours.exp(), posterior(law, x_t, *tables), torch.float64, ulps=ULPS)


@pytest.mark.parametrize("end", [4, 1000])
@of("cloneofsimo")
def test_cloneofsimo(page, end):
    """Times below ``end``, so that t = 1 is met too."""
    page["T"] = end
    x0, network = torch.randint(16, (6, 1, 2, 3)), Network(6, 1, 2, 3, 16)
    loss, terms = page["forward"](network, x0)
    uniform = torch.full((16, 16), 1 / 16, dtype=torch.float64)
    logits, x, x_t = network.logits.flatten(1, -2), x0.flatten(1), network.x_t.flatten(1)
    tables = keep_or_move(cosine(1000).clamp(max=0.999), uniform, network.t)
    first = entropy(logits, x)
    vb = torch.where((network.t == 1)[:, None], first, bound(logits, x, x_t, *tables)).mean()
    agree(loss, 0.001 * vb + first.mean(), network.logits)
    assert_close(terms["vb_loss"], vb, torch.float64, ulps=ULPS)
    assert_close(terms["ce_loss"], first.mean(), torch.float64, ulps=ULPS)


@of("llada")
def test_llada(page):
    """The cross-entropy of a masked token, divided by the chance that it was masked."""
    x0, network = torch.randint(30, (4, 8)), Network(4, 8, 32)
    loss = page["training_loss"](network, x0)
    each = visible_entropy(network.logits, x0, 30) / network.t[:, None]
    is_mask = network.x_t == 30
    assert network.t.min() >= 1e-3
    agree(loss, each[is_mask].sum() / x0.numel(), network.logits)


@of("llada")
def test_finetuning_of_llada_and_dllm(page):
    x0, network = torch.randint(30, (4, 8)), Network(4, 8, 32)
    is_answer = torch.arange(8) >= torch.tensor([2, 5, 3, 4])[:, None]
    loss = page["finetuning_loss"](network, x0, is_answer)
    assert torch.equal(network.x_t[~is_answer], x0[~is_answer])
    each = visible_entropy(network.logits, x0, 30) / network.t[:, None]
    each = each.where(network.x_t == 30, 0)
    agree(loss, (each.sum(1) / is_answer.sum(1)).sum() / 4, network.logits)

    loss = page["dllm_loss"](network, x0, x0.where(is_answer, -100))
    each = visible_entropy(network.logits, x0, 30) / network.t[:, None]
    each = each.where(network.x_t == 30, 0)
    agree(loss, each.sum() / is_answer.sum(), network.logits)


@of("md4")
def test_md4(page):
    """``alpha' / (1 - alpha)`` times the log-probabilities of masked tokens, for each item."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    loss = page["training_loss"](network, x0)
    slope = -(1 - 2e-4)
    alpha = 1e-4 - slope * (1 - network.t)
    right = network.logits.log_softmax(-1).gather(-1, x0[..., None]).squeeze(-1)
    items = slope / (1 - alpha) * right.where(network.x_t == 27, 0).sum(1)
    agree(loss, items.mean(), network.logits)


@of("md4")
def test_genmd4(page):
    """``w_x0 CE + sum_j w_j s_j - w_x0`` of masked tokens; the weights are learned."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    exponents = page["exponents"]
    exponents.data.uniform_(0.5, 2)
    loss = page["gen_training_loss"](network, x0)
    t, is_mask = network.t[:, None], network.x_t == 27
    assert torch.equal(network.x_t[~is_mask], x0[~is_mask])
    assert is_mask.any(1).any()
    assert not is_mask.all()
    scale = exponents.detach().clone().requires_grad_()
    noise = (t[..., None].log() * scale).exp()  # 1 - alpha_j
    weights = scale * noise / (t[..., None] * noise)
    right = weights[:, 0].gather(1, x0)
    mean = (network.logits.exp() * weights).sum(-1) / network.logits.exp().sum(-1)
    each = right * entropy(network.logits, x0) + mean - right
    expected = each[is_mask].sum() / 4
    agree(loss, expected, network.logits)
    (found,), (truth,) = (
        torch.autograd.grad(value, leaf) for value, leaf in ((loss, exponents), (expected, scale))
    )
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-12)


def generalized_kl(logits, x_1, x_t, jump):
    """``jump (-s_z + [z = x_1] - [z != x_1] log s_x1)``."""
    s = logits.softmax(-1)
    at_z, at_x = (s.gather(-1, x[..., None]).squeeze(-1) for x in (x_t, x_1))
    return jump[:, None] * torch.where(x_t == x_1, 1 - at_z, -at_z - at_x.log())


@of("flow_matching")
def test_flow_matching(page):
    """Data at t = 1, kappa = t^2; tokens that are the data's and others."""
    x_1, network = torch.randint(27, (4, 8)), Network(4, 8, 27)
    loss = page["training_loss"](network, x_1)
    t = network.t
    assert (network.x_t == x_1).any()
    assert (network.x_t != x_1).any()
    each = generalized_kl(network.logits, x_1, network.x_t, 2 * t / (1 - t**2))
    agree(loss, each.mean(), network.logits)


@of("flow_matching")
def test_flow_matching_from_masks(page, monkeypatch):
    """The chain that the page names for it; the network may predict the mask."""
    alphas = page["alphas"]
    chain = d3.transitions.absorbing(28, alphas, 27, data_has_mask=True)
    monkeypatch.setattr(page["diffusion"], "transition", chain)
    x_1, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    x_t = page["diffusion"].q_sample(x_1, 1 - t)
    jump = 2 * t / (1 - t**2)
    loss = page["generalized_kl"](network.logits, x_1, x_t, t)
    agree(loss, generalized_kl(network.logits, x_1, x_t, jump), network.logits)
    visible = network.logits.masked_fill(torch.arange(28) == 27, -torch.inf)
    bound = page["diffusion"].loss(visible, x_1, x_t, 1 - t, reduction="none")
    same = generalized_kl(visible, x_1, x_t, jump).where(x_t == 27, 0)
    agree(bound, same, network.logits)


@of("flow_matching")
def test_steps_of_flow_matching(page):
    """A step moves a token to a class of the prediction, as often as kappa says."""
    seen = []

    def model(x, t):
        seen.append((float(t[0]), float((x == 3).double().mean())))
        return F.one_hot(torch.full_like(x, 3), 27) * 60.0

    assert (page["sample"](model, (1, 40_000), 2) == 3).all()
    assert [t for t, _ in seen] == [0, 0.5]
    expected = 0.25 + 0.75 / 27
    assert abs(seen[1][1] - expected) < 6 * (expected / 40_000) ** 0.5


@of("gidd")
def test_gidd(page):
    """KL and Itakura-Saito divergence of the laws of x_t, weighted by the rate into it."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    counts = torch.ones(4, 8, dtype=torch.bool)
    counts[0, 5:] = False
    loss = page["training_loss"](network, x0, counts)
    noise = F.one_hot(torch.tensor(27), 28)

    def law(t):
        """Return the weight of the data, and the law of what replaces them, times its weight."""
        c = 2 * 0.2 / 0.8 * (t * (1 - t)).sqrt()
        redrawn = c[..., None] * (1 - noise) / 27
        return (1 - t) / (1 + c), (redrawn + t[..., None] * noise) / (1 + c)[..., None]

    t = network.t.clone().requires_grad_()
    alpha, rest = law(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    slopes = torch.stack(
        [torch.autograd.grad(x.sum(), t, retain_graph=True)[0] for x in rest.unbind(-1)], -1
    )
    alpha, rest = alpha.detach()[:, None, None], rest.detach()[:, None]
    rates = slopes[:, None] - slope[:, None, None] / alpha * rest
    data = alpha * F.one_hot(x0, 28) + rest
    model = alpha * network.logits.masked_fill(noise.bool(), -torch.inf).softmax(-1) + rest
    here = network.x_t[..., None]
    at_z = data.gather(-1, here).squeeze(-1)
    ratio = at_z / model.gather(-1, here).squeeze(-1)
    weight = rates.expand_as(data).gather(-1, here).squeeze(-1) / at_z
    each = weight * (divergence(data, model) + ratio - ratio.log() - 1)
    agree(loss, each[counts].mean(), network.logits)


@of("multinomial")
def test_multinomial(page):
    """Minus the KL over its time's probability, and minus the prior; classes in dimension 1."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 27, 8)
    page["times"].seen.fill_(20)
    page["times"].mean_square.copy_(torch.rand(1000))
    probabilities = page["times"].probabilities
    found = page["log_prob"](lambda t, x_t: network(x_t, t), x0)
    t = network.t + 1
    wave = torch.cat((torch.ones(1).double(), (1 - cosine(1000)).cumprod(0)))
    betas = 1 - ((wave[1:] / wave[:-1]) ** 2).clamp(min=1e-3).sqrt()
    uniform = torch.full((27, 27), 1 / 27, dtype=torch.float64)
    logits = network.logits.movedim(1, -1)
    kl = bound(logits, x0, network.x_t, *keep_or_move(betas, uniform, t)).sum(1)
    kept = (1 - betas).prod()
    last = (1 - kept) / 27 + kept * F.one_hot(torch.tensor(0), 27)
    prior = 8 * (last * (27 * last).log()).sum()
    expected = -(kl / probabilities[t - 1] + prior)
    leaf = network.logits
    assert_close(found, expected, torch.float64, ulps=ULPS)
    agree(found.sum(), expected.sum(), leaf)


@of("maskgit")
def test_maskgit(page):
    """The mean cross-entropy of masked tokens, whose share is the cosine of the ratio."""
    x0, network = torch.randint(32, (4, 8)), Network(4, 8, 32)
    loss = page["training_loss"](network, x0)
    is_mask = network.x_t == 32
    agree(loss, entropy(network.logits, x0)[is_mask].mean(), network.logits)
    ratio = torch.linspace(0, 1, 9, dtype=torch.float64)
    share = page["alphas"].one_minus_alpha(1 - ratio)
    torch.testing.assert_close(share, (math.pi * ratio / 2).cos(), rtol=1e-12, atol=1e-12)


@of("google")
def test_images_of_google(page, monkeypatch):
    """Bits for each dimension; at its t = 0 the cross-entropy of the logits."""
    times = torch.tensor([1, 2, 300, 1000])
    monkeypatch.setattr(page["diffusion"], "sample_t", lambda batch: times)
    x0, network = torch.randint(256, (4, 2, 3)), Network(4, 2, 3, 256)
    found = page["training_losses"](network, x0)
    logits, x, x_t = network.logits.flatten(1, -2), x0.flatten(1), network.x_t.flatten(1)
    uniform = torch.full((256, 256), 1 / 256, dtype=torch.float64)
    tables = keep_or_move(cosine(1000).clamp(max=0.999), uniform, times)
    is_first = (network.t == 0)[:, None]
    each = torch.where(is_first, entropy(logits, x), bound(logits, x, x_t, *tables))
    bits = (each + 0.001 * entropy(logits, x)).mean(1) / math.log(2)
    assert_close(found, bits, torch.float64, ulps=ULPS)
    agree(found.sum(), bits.sum(), network.logits)


@of("google")
def test_text_of_google(page):
    """Sums over the tokens that count; the network may predict the mask."""
    x0, network = torch.randint(27, (4, 8)), Network(4, 8, 28)
    counts = torch.arange(8) < torch.tensor([8, 5, 6, 7])[:, None]
    found = page["text_losses"](network, x0, counts)
    betas = 1 / torch.arange(1000, 0, -1).double()
    moved = F.one_hot(torch.tensor(27), 28).double().expand(28, 28)
    tables = keep_or_move(betas, moved, network.t + 1)
    each = bound(network.logits, x0, network.x_t, *tables) + 0.01 * entropy(network.logits, x0)
    expected = each.where(counts, 0).sum(1)
    assert_close(found, expected, torch.float64, ulps=ULPS)
    agree(found.sum(), expected.sum(), network.logits)


@of("evodiff")
def test_evodiff(page, monkeypatch):
    """The mean of the means of sequences; doubled logits are a prediction that is squared."""
    times = torch.tensor([1, 2, 300, 500])
    monkeypatch.setattr(page["diffusion"], "sample_t", lambda batch: times)
    x0, network = torch.randint(20, (4, 8)), Network(4, 8, 20)
    counts = torch.arange(8) < torch.tensor([8, 5, 6, 7])[:, None]
    loss = page["training_loss"](network, x0, counts)
    logits, x_t, t = network.logits, network.x_t, network.t
    scores, law = page["SCORES"], page["BACKGROUND"]
    moved = (scores * math.log(2) / 2).exp() * law
    moved = moved / moved.sum(1, keepdim=True)
    eye = torch.eye(20, dtype=torch.float64)
    steps = [
        (1 - beta) * eye + beta * moved
        for beta in torch.linspace(1e-4, 0.1, 500, dtype=torch.float64)
    ]
    products = [eye]
    for step in steps:
        products.append(products[-1] @ step)
    tables = torch.stack(steps)[t - 1], torch.stack(products)[t - 1]
    each = bound(logits, x0, x_t, *tables)
    each = torch.where((t == 1)[:, None], entropy(logits, x0), each)
    agree(loss, (each.where(counts, 0).sum(1) / counts.sum(1)).mean(), logits)

    doubled = page["diffusion"].loss(2 * logits, x0, x_t, t, reduction="none")[1:].mean()
    squared = logits.softmax(-1).square()
    q, p = (posterior(s, x_t, *tables) for s in (F.one_hot(x0, 20).double(), squared))
    agree(doubled, divergence(q, p)[1:].mean(), logits)


def vq_tables(t):
    """Return ``Q_t``, ``Qbar_{t-1}`` and ``Qbar_t``, ``(B, 33, 33)``, of the paper's a, b, c."""
    fall, rest, eye = (0.99999 - 9e-6) / 99, 1e-6, torch.eye(32, dtype=torch.float64)

    def kept(t):
        return torch.where(t > 0, 9e-6 + (100 - t) * fall, 1)

    def matrices(a, b, c):
        table = torch.zeros(len(t), 33, 33, dtype=torch.float64)
        table[:, :32, :32] = a.view(-1, 1, 1) * eye + b.view(-1, 1, 1) / 32
        table[:, :32, 32], table[:, 32, 32] = c.view(-1, 1), 1
        return table

    def product(t):
        masked = torch.where(t > 0, 9e-6 + (t - 1) * fall, 0)
        return matrices(kept(t), rest * (t > 0).double(), masked)

    t = t.double()
    before, is_first = kept(t - 1), t == 1
    redrawn = torch.where(is_first, rest, fall * rest / (before * (before + rest)))
    masked = torch.where(is_first, 9e-6, fall / (before + rest))
    return matrices(kept(t) / before, redrawn, masked), product(t - 1), product(t)


def vq_posteriors(x_t, step, before, now):
    """``q(x_{t-1} | x_t, x_0)`` of each visible x_0, ``(B, N, 32, 33)``."""
    back, reach = (table.mT[torch.arange(len(x_t))[:, None], x_t] for table in (step, now))
    return back[:, :, None] * before[:, None, :32] / reach[:, :, :32, None]


@of("vq_diffusion")
def test_vq_diffusion(page, monkeypatch):
    """The KL of the mean of posteriors, over its time's probability, and a weighted KL of x_0."""
    chain, times = page["diffusion"], page["times"]
    x0, x_t = torch.randint(32, (2, 8, 9))
    x_t[:, :3], x_t[:, 3:6] = 32, x0[:, 3:6]  # masked, kept, and redrawn or kept
    monkeypatch.setattr(chain, "q_sample", lambda x0, t: x_t)
    times.seen.fill_(20)
    times.mean_square[[0, 1, 49, 99]] = 1.0
    probabilities = times.probabilities
    network = Network(8, 32, 9)
    loss = page["training_loss"](lambda x_t, _, t: network(x_t, t), x0, None)
    assert {0, 99} <= set(network.t.tolist())
    tables, law = vq_tables(network.t + 1), network.logits.softmax(1).movedim(1, -1)
    posteriors = vq_posteriors(x_t, *tables)
    model = (law[..., None] * posteriors).sum(-2)
    clean = F.one_hot(x0, 32).double()
    kl = divergence((clean[..., None] * posteriors).sum(-2), model)
    auxiliary = divergence(clean, law)
    factor = 5e-4 * (1 + 1 - network.t.double() / 100)[:, None]
    each = (kl + factor * auxiliary) / probabilities[network.t][:, None]
    agree(loss, each.sum() / (8 * 9), network.logits)


@of("vq_diffusion")
def test_the_chain_and_posteriors_of_vq_diffusion(page):
    chain, t = page["diffusion"], torch.tensor([1, 2, 3, 50, 99, 100])
    tables = vq_tables(t)
    for i, time in enumerate(t.tolist()):
        for found, truth in (
            (chain.transition.q_matrix(time), tables[0][i]),
            (chain.transition.q_bar_matrix(time), tables[2][i]),
        ):
            torch.testing.assert_close(found, truth, rtol=2e-11, atol=0)
    x0, x_t = torch.randint(32, (2, 6, 5))
    x_t[:, :2] = 32
    logits = torch.randn(6, 5, 32, dtype=torch.float64)
    posteriors = vq_posteriors(x_t, *tables)
    found = posteriors_of(chain, logits, x0, x_t, t)
    for law, ours in zip((F.one_hot(x0, 32).double(), logits.softmax(-1)), found, strict=True):
        truth = (law[..., None] * posteriors).sum(-2)
        assert_close(ours.exp(), truth, torch.float64, ulps=ULPS)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
@of("digress")
def test_digress(page, weights, monkeypatch):
    """Cross-entropy or KL of the nodes, and five times that of the edges."""
    times = torch.tensor([2, 250, 501])
    monkeypatch.setattr(page["nodes"], "sample_t", lambda batch: times)
    page["WEIGHTS"].update(zip(("vb_weight", "ce_weight"), weights, strict=True))
    x0, e0 = torch.randint(4, (3, 5)), page["symmetric"](torch.randint(5, (3, 5, 5)))
    is_node = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    is_edge = is_node[:, None] & is_node[:, :, None] & ~torch.eye(5, dtype=torch.bool)
    networks = Network(3, 5, 4), Network(3, 5, 5, 5)
    loss = page["training_loss"](
        lambda x_t, e_t, t: (networks[0](x_t, t), networks[1](e_t, t)), x0, e0, is_node, is_edge
    )
    e_t = networks[1].x_t
    assert torch.equal(e_t, e_t.mT)
    grid = torch.arange(502).double() / 501
    wave = ((grid + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    betas = (1 - wave[1:] / wave[:-1]).clamp(max=0.9999)
    expected = 0
    parts = (
        (1, networks[0], x0, is_node, [0.7, 0.1, 0.1, 0.1]),
        (5, networks[1], e0, is_edge, [0.8, 0.1, 0.05, 0.03, 0.02]),
    )
    for factor, network, data, counts, law in parts:
        moved = torch.tensor(law, dtype=torch.float64).expand(len(law), -1)
        tables = keep_or_move(betas, moved, network.t)
        logits, x, x_t = network.logits.flatten(1, -2), data.flatten(1), network.x_t.flatten(1)
        terms = bound(logits, x, x_t, *tables), entropy(logits, x)
        each = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        expected = expected + factor * each[counts.flatten(1)].mean()
    for network in networks:
        agree(loss, expected, network.logits)

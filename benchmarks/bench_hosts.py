"""The losses of other programs as they are written there, beside the lines of ``docs/hosts``.

Forward and backward of the mean over tokens, float32, from logits that are ready. The epsilons
that programs have are left out, so that they compute the same; they cost next to nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import d3pm_fast as d3
from d3pm_fast.functional import Score
from d3pm_fast.predictions import Predicted

from .bench_loss import distance
from .cases import OURS, Case, Inputs, Operation, Provider, Run, as_pytest
from .host_chains import EPS, EXPONENT, P_UNIFORM
from .providers import Dense, loss_and_gradient

Loss = Callable[[Tensor], Tensor]

CASES = [
    Case("hosts", *row)
    for row in (
        ("mdlm", 4, 128, 30_523),
        ("udlm", 4, 128, 30_522),
        ("sedd", 1, 256, 50_258),
        ("cloneofsimo", 16, 3072, 8),
        ("llada", 1, 256, 126_464),
        ("md4", 32, 256, 28),
        ("genmd4", 32, 256, 28),
        ("flow_matching", 4, 128, 30_522),
        ("gidd", 1, 256, 50_258),
        ("multinomial", 32, 256, 27),
        ("maskgit", 8, 256, 1025),
        ("google", 4, 3072, 256),
        ("evodiff", 8, 256, 28),
        ("vq_diffusion", 2, 1024, 1025),
        ("digress", 64, 81, 5),
    )
]
CE: dict[str, Any] = {"vb_weight": 0.0, "ce_weight": 1.0}


def gathered(rows: Tensor, x: Tensor) -> Tensor:
    """Return each row's entry of a class."""
    return rows.gather(-1, x.unsqueeze(-1)).squeeze(-1)


def loss_of(i: Inputs, logits: Predicted, **options: Any) -> Tensor:
    return d3.functional.loss(i.transition, logits, i.x0, i.x_t, i.t, **options)


def is_mask(i: Inputs) -> Tensor:
    return i.x_t == i.transition.mask_id


def each_time(values: Tensor, dims: int = 1) -> Tensor:
    """Return numbers of times (B,) as float32 that tokens, or rows, of an item share."""
    return values.float().view(-1, *[1] * dims)


def mdlm(i: Inputs) -> Loss:
    """Log-probabilities with -1e6 for the mask, and for visible tokens 0 for what they are."""
    weight = each_time((1 - EPS) / (-torch.log1p(-(1 - EPS) * i.t)).expm1() / (1 - (1 - EPS) * i.t))
    visible = ~is_mask(i).unsqueeze(-1)

    def loss(logits: Tensor) -> Tensor:
        logits = logits.index_fill(-1, torch.tensor(i.transition.mask_id), -1e6)
        log_p = logits - logits.logsumexp(-1, keepdim=True)
        log_p = log_p.masked_fill(visible, -1e6)
        log_p = torch.where(visible, log_p.scatter(-1, i.x_t.unsqueeze(-1), 0.0), log_p)
        return -(weight * gathered(log_p, i.x0)).mean()

    return loss


def udlm(i: Inputs) -> Loss:
    """Its eq. 19, with the data and the prediction as laws of x_t."""
    k, alpha = i.case.num_classes, each_time(1 - (1 - EPS) * i.t, 2)
    scale = (1 - EPS) / (k * alpha.squeeze(-1))
    data = k * alpha * F.one_hot(i.x0, k) + 1 - alpha
    data_z = gathered(data, i.x_t)

    def loss(logits: Tensor) -> Tensor:
        model = k * alpha * logits.log_softmax(-1).exp() + 1 - alpha
        model_z = gathered(model, i.x_t)
        ratio = data / data_z.unsqueeze(-1)
        logs = (ratio * (model_z.unsqueeze(-1) / model * ratio).log()).sum(-1)
        return (scale * (k / model_z - k / data_z + logs)).mean()

    return loss


def sedd(i: Inputs) -> Loss:
    """Score entropy of the masked tokens of an absorbing chain, with its constant."""
    sigma = -torch.log1p(-(1 - EPS) * i.t)
    slope = each_time((1 - EPS) / (1 - (1 - EPS) * i.t)).expand(i.x0.shape)[is_mask(i)]
    ratio = each_time(1 / sigma.expm1()).expand(i.x0.shape)[is_mask(i)]

    def loss(scores: Tensor) -> Tensor:
        rows = scores[is_mask(i)]
        positive = rows[..., :-1].exp().sum(-1)
        negative = ratio * gathered(rows, i.x0[is_mask(i)])
        each = positive - negative + ratio * (ratio.log() - 1)
        return (slope * each).sum() / i.x0.numel()

    return loss


def matrices(vb_weight: float, ce_weight: float) -> Callable[[Inputs], Loss]:
    """One-hot vectors and tables of matrices."""

    def make(i: Inputs) -> Loss:
        tables = Dense(i.transition)
        tables.EPS = 0.0

        def loss(logits: Tensor) -> Tensor:
            entropy = F.cross_entropy(logits.flatten(0, 1), i.x0.flatten())
            return vb_weight * tables.loss(logits, i.x0, i.x_t, i.t) + ce_weight * entropy

        return loss

    return make


def masked_entropy(weight_of: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Loss]:
    """The cross-entropies of masked tokens, picked out of the logits."""

    def make(i: Inputs) -> Loss:
        masked = is_mask(i)
        weight = each_time(weight_of(i.t)).expand(i.x0.shape)[masked]

        def loss(logits: Tensor) -> Tensor:
            each = F.cross_entropy(logits[masked], i.x0[masked], reduction="none")
            return (weight * each).sum() / i.x0.numel()

        return loss

    return make


def one_hot_entropy(i: Inputs) -> Loss:
    """One-hot vectors times log-probabilities without the mask."""
    weight = each_time(1 / i.t) * is_mask(i)
    clean = F.one_hot(i.x0, i.case.num_classes - 1)

    def loss(logits: Tensor) -> Tensor:
        each = (clean * logits[..., :-1].log_softmax(-1)).sum(-1)
        return -(weight * each).mean()

    return loss


def class_rates(i: Inputs) -> Tensor:
    """``-alpha_j' / (1 - alpha_j)`` for exponents 0.5 to 2, ``(B, K - 1)``."""
    return torch.linspace(0.5, 2, i.case.num_classes - 1) / each_time(i.t)


def genmd4(i: Inputs) -> Loss:
    """One-hot vectors and probabilities, each times the rates of the classes."""
    rates, clean = class_rates(i).unsqueeze(1), F.one_hot(i.x0, i.case.num_classes - 1)

    def loss(logits: Tensor) -> Tensor:
        log_p = logits[..., :-1].log_softmax(-1)
        each = (rates * (log_p.exp() - clean - clean * log_p)).sum(-1)
        return each.where(is_mask(i), 0).mean()

    return loss


def genmd4_of_ours(i: Inputs) -> Loss:
    rates, masked = class_rates(i), is_mask(i)
    right = rates.gather(1, i.x0)

    def loss(logits: Tensor) -> Tensor:
        visible = logits[..., :-1]
        ce = loss_of(i, visible, mask=masked, reduction="none", **CE)
        mean = (visible.softmax(-1) * rates.unsqueeze(1)).sum(-1)
        return ((ce - 1) * right + mean).where(masked, 0).mean()

    return loss


def jump(i: Inputs) -> Tensor:
    """``kappa' / (1 - kappa)``."""
    t = 1 - i.t
    return each_time(EXPONENT * t ** (EXPONENT - 1) / (1 - t**EXPONENT))


def flow_matching(i: Inputs) -> Loss:
    """Two gathers of log-probabilities, one of them exponentiated."""
    kept = (i.x_t == i.x0).float()

    def loss(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        each = gathered(log_p.exp(), i.x_t) - kept + (1 - kept) * gathered(log_p, i.x0)
        return -(jump(i) * each).mean()

    return loss


def flow_matching_of_ours(i: Inputs) -> Loss:
    kept, of_x_t = i.x_t == i.x0, Inputs(i.case, i.transition, i.logits, i.x_t, i.x_t, i.t)

    def loss(logits: Tensor) -> Tensor:
        moved = loss_of(i, logits, mask=~kept, reduction="none", **CE)
        stay = loss_of(of_x_t, logits, reduction="none", **CE)
        each = torch.where(kept, -torch.expm1(-stay), moved - torch.exp(-stay))
        return (jump(i) * each).mean()

    return loss


def gidd(i: Inputs) -> Loss:
    """KL and Itakura-Saito divergence of the laws of x_t, in log space."""
    k, mask_id = i.case.num_classes, i.transition.mask_id
    t = each_time(i.t)
    c = 2 * P_UNIFORM / (1 - P_UNIFORM) * (t * (1 - t)).sqrt()
    rest = (c / (k - 1)).unsqueeze(-1).expand(-1, 1, k).clone()
    rest[..., mask_id] = t
    rest, kept = rest / (1 + c).unsqueeze(-1), ((1 - t) / (1 + c)).unsqueeze(-1)
    data = kept * F.one_hot(i.x0, k) + rest
    grown = 1 / (2 * t * (1 - t))
    weight = grown.where(i.x_t != i.x0, c * grown / ((k - 1) * (1 - t) + c))
    weight = weight.where(~is_mask(i), 1 / (t * (1 - t)))
    log_data = data.log()

    def loss(logits: Tensor) -> Tensor:
        logits = logits.index_fill(-1, torch.tensor(mask_id), -1e6)
        log_model = (kept * logits.softmax(-1) + rest).log()
        divergence = (data * (log_data - log_model)).sum(-1)
        log_ratio = gathered(log_data, i.x_t) - gathered(log_model, i.x_t)
        return (weight * (divergence + log_ratio.exp() - log_ratio - 1)).mean()

    return loss


class Entries:
    """Logs of what a step, the times before it and all of them do, each ``(B, 1, 1)``.

    Attributes:
        same, other, mask: that a class stays, becomes another one, or the last one.
    """

    def __init__(self, matrix_of: Callable[[int], Tensor], t: Tensor) -> None:
        rows = torch.stack([matrix_of(int(time))[0, [0, 1, -1]] for time in t])
        logs = rows.log().clamp(min=-70.0).float().view(-1, 3, 1, 1)
        self.same, self.other, self.mask = logs.unbind(1)

    def reach(self, log_law: Tensor) -> Tensor:
        """``log(law Q)`` of visible classes, for a law over them ``(B, K, P)``."""
        log_kept = self.same + torch.log(-torch.expm1(self.other - self.same))
        return torch.logaddexp(log_law + log_kept, self.other)


def log_one_hot(x: Tensor, num_classes: int) -> Tensor:
    """Return the logs of one-hot vectors, ``(B, K, P)``, -70 in place of -inf."""
    return torch.log(F.one_hot(x, num_classes).movedim(-1, 1).float().clamp(min=1e-30)).clamp(-70)


def multinomial(i: Inputs) -> Loss:
    """Log one-hot vectors in log space, classes in dimension 1; two posteriors and their KL."""
    k, chain = i.case.num_classes, i.transition
    step, before = Entries(chain.q_matrix, i.t), Entries(chain.q_bar_matrix, i.t - 1)
    log_x0, log_x_t = log_one_hot(i.x0, k), log_one_hot(i.x_t, k)
    is_first = i.t.view(-1, 1) == 1

    def posterior(log_law: Tensor) -> Tensor:
        log_joint = before.reach(log_law) + step.reach(log_x_t)
        return log_joint - log_joint.logsumexp(1, keepdim=True)

    def loss(logits: Tensor) -> Tensor:
        log_q, log_p = posterior(log_x0), posterior(logits.log_softmax(1))
        divergence = (log_q.exp() * (log_q - log_p)).sum(1)
        decoder = -(log_x0.exp() * log_p).sum(1)
        return torch.where(is_first, decoder, divergence).mean()

    return loss


def vq_diffusion(i: Inputs) -> Loss:
    """The mean of the posteriors in log space, classes in dimension 1, the mask as one more."""
    k, chain = i.case.num_classes, i.transition
    step, before = Entries(chain.q_matrix, i.t), Entries(chain.q_bar_matrix, i.t - 1)
    now = Entries(chain.q_bar_matrix, i.t)
    masked = is_mask(i).unsqueeze(1)
    log_x0 = log_one_hot(i.x0, k)[:, :-1]
    log_x_t = log_one_hot(i.x_t, k)[:, :-1]
    log_reach = torch.where(masked, now.mask, now.reach(log_x_t))
    log_step = torch.where(masked, step.mask, step.reach(log_x_t))

    def posterior(log_law: Tensor) -> Tensor:
        log_ratio = log_law - log_reach
        log_sum = log_ratio.logsumexp(1, keepdim=True)
        visible = before.reach(log_ratio - log_sum) + log_step + log_sum
        mask = torch.where(masked, before.mask + log_sum, -70.0)
        return torch.cat((visible, mask), dim=1).clamp(-70, 0)

    log_q = posterior(log_x0)

    def loss(logits: Tensor) -> Tensor:
        log_p = posterior(logits[:, :-1].log_softmax(1))
        return (log_q.exp() * (log_q - log_p)).sum(1).mean()

    return loss


def tables_of(i: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``Q_t``, ``Qbar_{t-1}`` and ``Qbar_t`` of each item, ``(B, K, K)``."""
    chain, times = i.transition, i.t.tolist()
    steps, before, now = (
        torch.stack([matrix(t - shift) for t in times]).to(dtype)
        for matrix, shift in ((chain.q_matrix, 0), (chain.q_bar_matrix, 1), (chain.q_bar_matrix, 0))
    )
    return steps, before, now


def divergence(q: Tensor, p: Tensor) -> Tensor:
    return (torch.special.xlogy(q, q) - q * p.log()).sum(-1)


def evodiff(i: Inputs) -> Loss:
    """A sequence after another, with float64 matrices and one-hot vectors."""
    steps, before, _ = tables_of(i, torch.float64)
    clean, seen = (F.one_hot(x, i.case.num_classes).double() for x in (i.x0, i.x_t))

    def loss(logits: Tensor) -> Tensor:
        means = []
        for row, x0, x_t, step, product in zip(logits, clean, seen, steps, before, strict=True):
            back = x_t @ step.mT
            q, p = (back * (law @ product) for law in (x0, row.softmax(-1).double()))
            q, p = (joint / joint.sum(-1, keepdim=True) for joint in (q, p))
            means.append(divergence(q, p).mean())
        return torch.stack(means).mean()

    return loss


def digress(i: Inputs) -> Loss:
    """The posteriors of all x_0, ``(B, P, K, K)``, and their mean under the prediction."""
    steps, before, now = tables_of(i, torch.float32)
    seen = F.one_hot(i.x_t, i.case.num_classes).float()
    left = (seen @ steps.mT).unsqueeze(2)
    posteriors = left * before.unsqueeze(1) / (seen @ now.mT).unsqueeze(-1)
    q = (F.one_hot(i.x0, i.case.num_classes).unsqueeze(-1) * posteriors).sum(2)

    def loss(logits: Tensor) -> Tensor:
        p = (logits.softmax(-1).unsqueeze(-1) * posteriors).sum(2)
        return divergence(q, p / p.sum(-1, keepdim=True)).mean()

    return loss


CLASS_FIRST = ("multinomial", "vq_diffusion")
WITHOUT_MASK = ("llada", "maskgit")  # by its network; theirs has the mask in its softmax
THEIRS: dict[str, Callable[[Inputs], Loss]] = {
    "mdlm": mdlm,
    "udlm": udlm,
    "sedd": sedd,
    "cloneofsimo": matrices(0.001, 1.0),
    "llada": masked_entropy(lambda t: 1 / t),
    "md4": one_hot_entropy,
    "genmd4": genmd4,
    "flow_matching": flow_matching,
    "gidd": gidd,
    "multinomial": multinomial,
    "maskgit": masked_entropy(torch.ones_like),
    "google": matrices(1.0, 0.001),
    "evodiff": evodiff,
    "vq_diffusion": vq_diffusion,
    "digress": digress,
}
OPTIONS: dict[str, dict[str, Any]] = {  # of ours
    "cloneofsimo": {"first_step": "logits", "vb_weight": 0.001, "ce_weight": 1.0},
    "google": {"first_step": "logits", "ce_weight": 0.001},
    "multinomial": {"class_dim": 1},
    "vq_diffusion": {"class_dim": 1, "reverse": "posterior_mean"},
    "digress": {"reverse": "posterior_mean"},
}


def logits_of(i: Inputs) -> Tensor:
    """Return the logits as the program's network has them."""
    if i.case.family in CLASS_FIRST:
        return i.logits.movedim(-1, 1).contiguous()
    if i.case.family in WITHOUT_MASK:
        return i.logits.index_fill(-1, torch.tensor(i.transition.mask_id), -torch.inf)
    return i.logits


def fused(i: Inputs) -> Loss:
    """The bound, or what the program has of it, in one call of ours."""
    options = OPTIONS.get(i.case.family, {})
    if i.case.family == "maskgit":
        options = {**CE, "mask": is_mask(i), "denominator": i.x0.numel()}
    if i.case.family == "sedd":
        return lambda scores: loss_of(i, Score(scores))
    return lambda logits: loss_of(i, logits, **options)


COMPOSED = {"flow_matching": flow_matching_of_ours, "genmd4": genmd4_of_ours}


def ours(i: Inputs) -> Run:
    logits, loss = logits_of(i), COMPOSED.get(i.case.family, fused)(i)
    return lambda: loss_and_gradient(loss, logits)


def theirs(i: Inputs) -> Run:
    logits, loss = logits_of(i), THEIRS[i.case.family](i)
    return lambda: loss_and_gradient(loss, logits)


def bound(i: Inputs) -> Run | None:
    """The loss of the chain, where the program has another objective."""
    if i.case.family not in COMPOSED:
        return None
    logits, loss = logits_of(i), fused(i)
    return lambda: loss_and_gradient(loss, logits)


def bytes_moved(i: Inputs) -> int:
    """Read the logits and write the gradient."""
    return 2 * i.logits.nbytes


HOSTS = Operation(
    "hosts",
    CASES,
    {
        OURS: Provider(ours),
        "theirs": Provider(theirs, tolerance=1e-3),
        "our bound": Provider(bound),
    },
    bytes_moved,
    distance,
)
test_hosts = as_pytest(HOSTS)

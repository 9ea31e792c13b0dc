"""Calls with logits whose classes are sharded over ranks, and what each rank made of them.

``python -m helpers.shards FOLDER`` is one rank; :func:`start` starts several. Each makes the same
calls, of :data:`CASES`, and leaves a file of what it got.
"""

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from d3pm_fast import distributed, functional, transitions
from d3pm_fast.schedules import continuous

from . import ranks

K, T, SHAPE = 10, 8, (6, 5)  # on 4 ranks the last one has but one class, and two of padding
BETAS = torch.linspace(0.05, 0.6, T, dtype=torch.float64)
PI = (1.0 + torch.arange(K, dtype=torch.float64)) / (K * (K + 1) / 2)
LINEAR = continuous.linear()
CHAINS = {
    "uniform": transitions.uniform(K, BETAS),
    "marginal": transitions.marginal(K, BETAS, PI),
    "absorbing": transitions.absorbing(K, BETAS, mask_id=K - 1),
    "absorbing with data": transitions.absorbing(K, BETAS, mask_id=4, data_has_mask=True),
    "mask and uniform": transitions.mask_and_uniform(K, BETAS, 7, 0.3),
    "masked uniform": transitions.masked_uniform(K, BETAS, BETAS.flip(0), mask_id=2),
    "uniform, continuous": transitions.uniform(K, LINEAR),
    "absorbing, continuous": transitions.absorbing(K, LINEAR, mask_id=K - 1),
}


@dataclass(frozen=True)
class Case:
    """A loss. ``given`` are arguments beside the tokens; names of tensors in :meth:`tokens`."""

    chain: str
    dtype: torch.dtype = torch.float64
    impl: str = "cpu"
    steps: bool = False  # whether s is given
    columns: int = K  # of whole logits
    width: int = 0  # of local logits; 0 for the least
    given: dict = field(default_factory=dict)
    masked: str = ""  # "some" or "all" tokens left out
    weighted: bool = False
    shape: tuple = SHAPE
    shift: float = 0.0  # of all logits
    spread: float = 2.0
    upstream: bool = False  # whether the upstream gradient is of tokens

    def inputs(self):
        """Whole logits, the tokens, and keyword arguments: the same in every process."""
        generator = torch.Generator().manual_seed(7)
        chain, shape = CHAINS[self.chain], self.shape
        x0 = torch.randint(K - 1, shape, generator=generator)
        if chain.forbidden >= 0:
            x0 = torch.where(x0 == chain.forbidden, K - 2 - x0 // 2, x0)
        t = torch.randint(1, T + 1, shape[:1], generator=generator)
        t[:2] = torch.tensor([1, T])[: shape[0]]
        if not chain.has_steps:
            t = t / T - 0.01
        x_t = functional.q_sample(chain, x0, t, generator=generator)
        logits = self.spread * torch.randn(*shape, self.columns, generator=generator).double()
        logits = (logits + self.shift).to(self.dtype)
        options = dict(self.given, impl=self.impl)
        if self.steps:
            options["s"] = t // 2 if chain.has_steps else t / 2
        if self.masked:
            kept = torch.rand(shape, generator=generator) < 0.6
            options["mask"] = kept if self.masked == "some" else kept & False
        if self.weighted:
            weights = torch.rand(shape, generator=generator).double()
            options["weights"] = weights * (weights > 0.2)
        return logits, (x0, x_t, t), options

    def value(self, logits, **changed):
        """The loss, or its terms, of logits, or of a prediction in their place."""
        _, tokens, options = self.inputs()
        return functional.loss(CHAINS[self.chain], logits, *tokens, **(options | changed))

    def factors(self, value):
        """The upstream gradient of a value."""
        if self.given.get("with_terms"):  # which are detached
            return torch.tensor([1.0, 0, 0]).to(value.dtype).expand(value.shape)
        if not self.upstream:
            return torch.ones_like(value)
        generator = torch.Generator().manual_seed(9)
        return (torch.rand(value.shape, generator=generator) - 0.3).to(value.dtype)


def shard(whole, rank, size, width):
    """The columns of a rank, with 1e30 and NaN where there are no classes."""
    each = width or -(-whole.shape[-1] // size)
    local = whole[..., rank * each : (rank + 1) * each]
    lacking = each - local.shape[-1]
    padding = torch.tensor([1e30, torch.nan]).repeat(each)[:lacking]
    return torch.cat([local, padding.to(whole.dtype).expand(*whole.shape[:-1], lacking)], -1)


def loss_of(case):
    """The loss and the gradient of the local logits."""
    whole, _, _ = case.inputs()
    local = shard(whole, dist.get_rank(), dist.get_world_size(), case.width).requires_grad_()
    value = case.value(functional.Sharded(local, dist.group.WORLD, case.columns))
    (gradient,) = torch.autograd.grad(value, local, case.factors(value), retain_graph=True)
    if case.impl == "triton":  # in its interpreter
        return value.detach(), gradient, value.detach()
    (again,) = torch.autograd.grad(value, local, case.factors(value))  # it is made once more
    assert torch.equal(again, gradient)
    with torch.no_grad():
        alone = case.value(functional.Sharded(local, dist.group.WORLD, case.columns))
    return value.detach(), gradient, alone


def losses():
    """The cases of losses, by name."""
    cases = {}
    for chain in CHAINS:
        for impl in ("reference", "cpu"):
            for reverse in ("joint", "posterior_mean"):
                given = {"reverse": reverse, "ce_weight": 0.1}
                cases[f"{chain}, {reverse}, {impl}"] = Case(chain, impl=impl, given=given)
        sum_of_terms = {"reduction": "sum", "with_terms": True, "ce_weight": 0.1}
        cases[f"{chain}, terms"] = Case(chain, given=sum_of_terms)
        first = {"first_step": "logits", "reduction": "batch"}
        cases[f"{chain}, steps"] = Case(chain, given=first, steps=True, upstream=True)
        none = {"reduction": "none", "vb_weight": 0.7, "ce_weight": 0.2}
        cases[f"{chain}, tokens"] = Case(
            chain, given=none, masked="some", weighted=True, upstream=True
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            cases[f"{chain}, {dtype}"] = Case(chain, dtype, masked="some")
        for shift in (-1e4, 1e4):
            cases[f"{chain}, {shift}"] = Case(chain, torch.float32, shift=shift)
    denominator = {"denominator": torch.tensor(17.0), "ce_weight": 1.0}
    if importlib.util.find_spec("triton") is not None:
        cases["triton"] = Case("mask and uniform", torch.float32, "triton", shape=(2, 1))
    return cases | {
        "weights": Case("uniform", weighted=True),
        "denominator": Case("uniform", given=denominator, masked="some", weighted=True),
        "denominator, float16": Case("uniform", torch.float16, given=denominator),
        "cross-entropy": Case("uniform", given={"vb_weight": 0.0, "ce_weight": 1.0}),
        "weights of tensors": Case("uniform", given={"ce_weight": torch.tensor(0.3)}),
        "no token counts": Case("absorbing", masked="all"),
        "a rank without classes": Case(
            "uniform", width=K, given={"reduction": "none"}, upstream=True
        ),
        "many classes of padding": Case("absorbing", torch.float32, width=17),
        "no items": Case("uniform", shape=(0, 5), given={"reduction": "sum"}),
        "no positions": Case("uniform", shape=(6,)),
        "without the mask's logit": Case("absorbing", columns=K - 1),
        "large logits": Case("uniform", spread=1e4),
    }


def bytes_of(case):
    """How many bytes a rank sends for a row."""
    sent, gather = [], dist.all_gather

    def spy(whole, part, group):
        sent.append(part.numel() * part.element_size())
        return gather(whole, part, group=group)

    dist.all_gather = spy
    try:
        loss_of(case)
    finally:
        dist.all_gather = gather
    return [count / case.inputs()[1][0].numel() for count in sent]


WIRE = {
    "absorbing": Case("absorbing", torch.float32),
    "absorbing, continuous": Case("absorbing, continuous", torch.bfloat16),
    "uniform": Case("uniform", torch.float32),
    "uniform, float64": Case("uniform"),
    "uniform, cross-entropy": Case(
        "uniform", torch.float32, given={"vb_weight": 0.0, "ce_weight": 1.0}
    ),
    "mask and uniform": Case("mask and uniform", torch.float32),
}


def error_of(make):
    """The type of an error and what it says."""
    try:
        make()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def of_local(local, num_classes=K, chain="uniform", **options):
    """The loss of local logits that may be wrong."""
    sharded = functional.Sharded(local, dist.group.WORLD, num_classes)
    shape = 2, 3
    tokens = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    return functional.loss(
        CHAINS.get(chain, chain), sharded, *tokens, torch.ones(2).long(), **options
    )


def twice():
    """Differentiate a gradient."""
    local = torch.zeros(2, 3, K, requires_grad=True)
    (gradient,) = torch.autograd.grad(of_local(local), local, create_graph=True)
    gradient.sum().backward()


def mesh_of(*names):
    """A mesh with all ranks in its last dimension, or half of them."""
    size = dist.get_world_size()
    sizes = (size,) if len(names) == 1 else (2, size // 2)
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def of_dtensor(case):
    """The loss and the gradient of a DTensor: its local part, and whether it is placed the same."""
    whole, (x0, x_t, t), options = case.inputs()
    mesh, placements = mesh_of(*case.mesh), case.placements
    first = case.dim == 1
    whole = whole.movedim(-1, 1) if first else whole
    logits = distribute_tensor(whole, mesh, placements).requires_grad_()
    part = 0
    if len(placements) == 2 and placements[0].is_shard(0):
        part = mesh.get_local_rank("dp")
        x0, x_t, t = (x.tensor_split(2)[part] for x in (x0, x_t, t))
    options |= {"class_dim": case.dim}
    with forbidden(DTensor, "full_tensor"), forbidden(DTensor, "redistribute"):
        value = functional.loss(CHAINS[case.chain], logits, x0, x_t, t, **options)
        value.backward()
    gradient = logits.grad
    same = gradient.placements == tuple(placements) and gradient.device_mesh == mesh
    local = gradient.to_local()
    return value.detach(), local.movedim(1, -1) if first else local, same, part


@contextmanager
def forbidden(owner, name):
    """Fail where a method is called."""
    method = getattr(owner, name)

    def refuse(*_args, **_options):
        raise AssertionError(f"{name} is called")

    setattr(owner, name, refuse)
    try:
        yield
    finally:
        setattr(owner, name, method)


@dataclass(frozen=True)
class Placed(Case):
    """A loss of a DTensor."""

    mesh: tuple = ("tp",)
    placements: tuple = (Shard(2),)
    dim: int = -1


PLACED = {
    "classes": Placed("uniform", given={"ce_weight": 0.1}),
    "absorbing": Placed("absorbing"),
    "without the mask's logit": Placed("absorbing", columns=K - 1),
    "classes first": Placed("uniform", placements=(Shard(1),), dim=1),
    "replicated": Placed("uniform", placements=(Replicate(),)),
    "items and classes": Placed("uniform", mesh=("dp", "tp"), placements=(Shard(0), Shard(2))),
    "no items here": Placed(
        "uniform",
        mesh=("dp", "tp"),
        placements=(Shard(0), Shard(2)),
        shape=(1, 5),
        given={"reduction": "sum"},
    ),
    "classes of two": Placed("absorbing", mesh=("dp", "tp"), placements=(Replicate(), Shard(2))),
}


def of_placed(*placements, names=("tp",), tokens_placed=False):
    """The loss of a DTensor that may be placed wrong."""
    mesh = mesh_of(*names)
    logits = DTensor.from_local(torch.zeros(2, 4, K), mesh, placements, run_check=False)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    if tokens_placed:
        tokens = DTensor.from_local(tokens, mesh, [Replicate()], run_check=False)
    return functional.loss(CHAINS["uniform"], logits, tokens, tokens, torch.ones(2).long())


def count_of(kind):
    """How many tokens count, and by how much gradients that are averaged are off."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mask = torch.arange(6).view(2, 3) < rank * 2
    if kind == "mask":
        return distributed.global_count(mask)
    if kind == "no tokens":
        return distributed.global_count(torch.zeros(4 * rank, 3, dtype=torch.int32))
    if kind == "group":
        groups = [dist.new_group([0]), dist.new_group(list(range(1, size)))]
        return distributed.global_count(torch.zeros(rank + 1, dtype=torch.int64), groups[rank > 0])
    logits, tokens, _ = Case("uniform", shape=(2, 3)).inputs()
    logits = (logits * (rank + 1)).requires_grad_()
    count = distributed.global_count(mask) / size
    loss = functional.loss(CHAINS["uniform"], logits, *tokens, mask=mask, denominator=count)
    return torch.autograd.grad(loss, logits)[0], mask, logits.detach()


def upstream_of(shape):
    """A gradient of log-probabilities of all classes."""
    generator = torch.Generator().manual_seed(11)
    return torch.rand(*shape, generator=generator).double() - 0.3


def posterior_of(case):
    """The local log-probabilities, and the gradient of the local logits."""
    whole, (_, x_t, t), options = case.inputs()
    rank, size = dist.get_rank(), dist.get_world_size()
    local = shard(whole, rank, size, case.width).requires_grad_()
    sharded = functional.Sharded(local, dist.group.WORLD, K)
    log_p = functional.p_posterior(CHAINS[case.chain], sharded, x_t, t, **options)
    above = shard(upstream_of(whole.shape), rank, size, case.width)
    finite = log_p.isfinite()
    (gradient,) = torch.autograd.grad(log_p[finite], local, above[finite].to(log_p.dtype))
    return log_p.detach(), gradient


def draws_of(case):
    """Draws of local logits, and of a DTensor."""
    whole, (_, x_t, t), options = case.inputs()
    local = shard(whole, dist.get_rank(), dist.get_world_size(), case.width)
    sharded = functional.Sharded(local, dist.group.WORLD, K)
    options["seeds"] = torch.arange(len(x_t))
    chain = CHAINS[case.chain]
    drawn = functional.p_sample(chain, sharded, x_t, t, **options)
    behind = functional.Sharded(local[:, 7:], dist.group.WORLD, K)
    later = functional.p_sample(chain, behind, x_t[:, 7:], t, position_offset=7, **options)
    assert torch.equal(later, drawn[:, 7:])
    placed = distribute_tensor(whole, mesh_of("tp"), [Shard(2)])
    assert torch.equal(functional.p_sample(chain, placed, x_t, t, **options), drawn)
    return drawn


STEPS = {
    f"{chain}, {reverse}, {first_step}, {width}": Case(
        chain,
        impl="auto",
        given={"reverse": reverse, "first_step": first_step},
        steps=True,
        width=width,
    )
    for chain in CHAINS
    for reverse in ("joint", "posterior_mean")
    for first_step, width in (("posterior", 0), ("logits", K))
}
DRAWS = {name: replace(case, shape=(24, 40), width=0) for name, case in STEPS.items()}


def predictions_of(case):
    """What local logits, a DTensor, and positions of their own say of tokens."""
    whole, (_, x_t, t), options = case.inputs()
    local = shard(whole, dist.get_rank(), dist.get_world_size(), case.width)
    chain = case.transition
    options["seeds"] = torch.arange(len(x_t))

    def predict(logits, tokens, **more):
        return functional.predict(chain, logits, tokens, t, **options, **more)

    found = predict(functional.Sharded(local, dist.group.WORLD, case.columns), x_t)
    behind = functional.Sharded(local[:, 1:], dist.group.WORLD, case.columns)
    later = predict(behind, x_t[:, 1:], position_offset=1)
    assert all(torch.equal(x, y[:, 1:]) for x, y in zip(later, found, strict=True))
    if not case.width:
        placed = predict(distribute_tensor(whole, mesh_of("tp"), [Shard(2)]), x_t)
        assert all(torch.equal(x, y) for x, y in zip(placed, found, strict=True))
    return tuple(found)


@dataclass(frozen=True)
class Predicted(Case):
    """A prediction of x_0, of a chain of as many classes as there are columns, or one more."""

    classes: int = K

    @property
    def transition(self):
        """The chain."""
        return CHAINS[self.chain] if self.classes == K else transitions.uniform(self.classes, BETAS)


MANY = 2 * 4096 + 500  # classes: tiles of a draw that ranks share
PREDICTIONS = {
    "uniform": Predicted("uniform", impl="auto", shape=(6, 40)),
    "absorbing": Predicted("absorbing", impl="auto", shape=(6, 40)),
    "without the mask's logit": Predicted("absorbing", impl="auto", columns=K - 1),
    "a rank without classes": Predicted("uniform", impl="auto", width=K),
    "float32": Predicted("marginal", torch.float32, impl="auto"),
    "argmax": Predicted("uniform", impl="auto", given={"take": "argmax"}),
    "far apart": Predicted("uniform", impl="auto", spread=1e4, given={"take": "argmax"}),
    "many": Predicted("uniform", impl="auto", shape=(4, 20), columns=MANY, classes=MANY),
    "many, padded": Predicted(
        "uniform", impl="auto", shape=(4, 20), columns=MANY, classes=MANY, width=2 * 4096
    ),
}


def no_law(logit):
    """Draw from rows that are no law."""
    local = torch.full((1, 2, K), logit)
    sharded = functional.Sharded(local, dist.group.WORLD, K)
    tokens, t = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    options = {"seeds": torch.zeros(1, dtype=torch.int64), "first_step": "logits"}
    functional.p_sample(CHAINS["uniform"], sharded, tokens, t, **options)


def without_mask():
    """Ask for the law of logits that have no column of the mask."""
    sharded = functional.Sharded(torch.zeros(2, 3, K), dist.group.WORLD, K - 1)
    tokens, t = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    functional.p_posterior(CHAINS["absorbing"], sharded, tokens, t)


REFUSED = {
    "no law": lambda: no_law(-torch.inf),
    "NaN": lambda: no_law(torch.nan),
    "no column of the mask": without_mask,
    "partial": lambda: of_placed(Partial()),
    "positions": lambda: of_placed(Shard(1)),
    "classes twice": lambda: of_placed(Shard(2), Shard(2), names=("dp", "tp")),
    "tokens as a DTensor": lambda: of_placed(Shard(2), tokens_placed=True),
    "no tensor": lambda: of_local([1.0]),
    "integers": lambda: of_local(torch.zeros(2, 3, K).long()),
    "other tokens": lambda: of_local(torch.zeros(2, 4, K)),
    "other tokens, classes first": lambda: of_local(torch.zeros(2, K, 4), class_dim=1),
    "other K": lambda: of_local(torch.zeros(2, 3, K), K - 1),
    "too few": lambda: of_local(torch.zeros(2, 3, 1)),
    "no number": lambda: of_local(torch.zeros(2, 3, K), "10"),
    "dense": lambda: of_local(torch.zeros(2, 3, K), chain=transitions.band(K, BETAS, 2)),
    "cuda": lambda: of_local(torch.zeros(2, 3, K), impl="cuda"),
    "transform": lambda: torch.func.grad(of_local)(torch.zeros(2, 3, K)),
    "gradient of a gradient": twice,
}


@dataclass(frozen=True)
class Head(Case):
    """A loss of hidden states and a head whose classes are sharded."""

    bias: bool = True
    budget: int | None = None  # of a chunk's logits
    hidden: str = ""  # "DTensor", or "positions" for one of which each rank has some positions
    is_told: bool = False  # how many tokens may have a loss

    def leaves(self):
        """Hidden states, and weight and bias as a whole."""
        generator = torch.Generator().manual_seed(11)
        sizes = (*self.shape, 3), (self.columns, 3), (self.columns,)
        made = [torch.randn(size, generator=generator).double() for size in sizes]
        return [x.to(self.dtype) for x in made[: 2 + self.bias]]


def of_head(case):
    """The loss, and the gradients of hidden and of this rank's part of the head."""
    hidden, *head = case.leaves()
    mesh = mesh_of("tp")
    head = [distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in head]
    given = leaf = hidden.requires_grad_()
    if case.hidden:
        placement = Shard(1) if case.hidden == "positions" else Replicate()
        leaf = distribute_tensor(hidden.detach(), mesh, [placement]).requires_grad_()
        given = leaf.redistribute(mesh, [Replicate()])
    bias = head[1] if case.bias else None
    number = None
    if case.is_told:
        number = functional.count_open(CHAINS[case.chain], *case.inputs()[1])
    value = case.value(functional.Linear(given, head[0], bias, case.budget, num_open=number))
    gradients = torch.autograd.grad(value, (leaf, *head), case.factors(value))
    placed = all(g.placements == x.placements for g, x in zip(gradients[1:], head, strict=True))
    of_hidden = gradients[0].full_tensor() if case.hidden else gradients[0]
    return value.detach(), of_hidden, [g.to_local() for g in gradients[1:]], placed


HEADS = {
    f"{chain}, {reduction}": Head(
        chain, given={"reduction": reduction, "ce_weight": 0.1}, masked="some", upstream=True,
        budget=K * 8 * 7,
    )
    for chain in ("uniform", "absorbing", "marginal", "mask and uniform", "uniform, continuous")
    for reduction in ("mean", "none")
} | {
    "float32": Head("uniform", torch.float32),
    "bfloat16": Head("absorbing", torch.bfloat16, bias=False),
    "weights": Head("absorbing", weighted=True, budget=1),
    "told how many are open": Head("absorbing", is_told=True),
    "without the mask's row": Head("absorbing", columns=K - 1),
    "reference": Head("mask and uniform", impl="reference", given={"reduction": "batch"}),
    "terms": Head("uniform", given={"with_terms": True, "reduction": "sum"}),
    "hidden as a DTensor": Head("uniform", hidden="DTensor", given={"reduction": "sum"}),
    "hidden in positions": Head("absorbing", hidden="positions", shape=(6, 8)),
    "no items": Head("uniform", shape=(0, 5), given={"reduction": "sum"}),
}  # fmt: skip


def steps_of_head(chain):
    """Whether posteriors, a gradient and draws are those of the logits that a head makes."""
    case = Head(chain)
    hidden, weight, bias = case.leaves()
    _, (_, x_t, t), _ = case.inputs()
    mesh = mesh_of("tp")
    weight, bias = (distribute_tensor(x, mesh, [Shard(0)]) for x in (weight, bias))
    local = torch.nn.functional.linear(hidden, weight.to_local(), bias.to_local())
    each = -(-K // dist.get_world_size())
    local = torch.nn.functional.pad(local, (0, each - local.shape[-1]))
    leaf = hidden.requires_grad_()
    found, expected = (
        functional.p_posterior(CHAINS[chain], logits, x_t, t)
        for logits in (functional.Linear(leaf, weight, bias), functional.Sharded(local, None, K))
    )
    same = torch.allclose(found, expected[..., : found.shape[-1]], rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(found.exp().square().sum(), leaf)
    seeds = torch.arange(len(x_t))
    drawn = [
        functional.p_sample(CHAINS[chain], logits, x_t, t, seeds=seeds)
        for logits in (functional.Linear(leaf, weight, bias), functional.Sharded(local, None, K))
    ]
    return same, torch.equal(*drawn), gradient


def of_wrong_head(*placements, chain="uniform", bias=None, schedule="rows", **options):
    """The loss of a head that may be wrong."""
    mesh = mesh_of("tp")
    weight = distribute_tensor(torch.zeros(K, 3), mesh, placements)
    hidden = torch.zeros(2, 4, 3, requires_grad=True)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    given = functional.Linear(hidden, weight, bias, None, schedule)
    return functional.loss(
        CHAINS.get(chain, chain), given, tokens, tokens, torch.ones(2).long(), **options
    )


def of_other_tokens():
    """The loss of a head whose ranks have different data, as under FSDP."""
    mesh, rank = mesh_of("tp"), dist.get_rank()
    weight = distribute_tensor(torch.randn(K, 3), mesh, [Shard(0)])
    x0 = torch.full((2, 4), rank * -(-K // dist.get_world_size()))
    given = functional.Linear(torch.randn(2, 4, 3), weight)
    return functional.loss(CHAINS["uniform"], given, x0, x0, torch.full((2,), T))


REFUSED |= {
    "head, other tokens": of_other_tokens,
    "head, features": lambda: of_wrong_head(Shard(1)),
    "head, replicated": lambda: of_wrong_head(Replicate()),
    "head, plain bias": lambda: of_wrong_head(Shard(0), bias=torch.zeros(K)),
    "head, tiles": lambda: of_wrong_head(Shard(0), schedule="tiles"),
    "head, dense": lambda: of_wrong_head(Shard(0), chain=transitions.band(K, BETAS, 2)),
    "head, other K": lambda: of_wrong_head(Shard(0), chain=transitions.uniform(K + 1, BETAS)),
}


CASES = {
    "head": (of_head, HEADS),
    "head's steps": (steps_of_head, {chain: chain for chain in ("uniform", "absorbing")}),
    "loss": (loss_of, losses()),
    "wire": (bytes_of, WIRE),
    "dtensor": (of_dtensor, PLACED),
    "posterior": (posterior_of, STEPS),
    "draws": (draws_of, DRAWS),
    "predictions": (predictions_of, PREDICTIONS),
    "count": (count_of, {kind: kind for kind in ("mask", "no tokens", "group", "gradient")}),
    "refused": (error_of, REFUSED),
}


def start(folder, size):
    """Make all calls on so many ranks."""
    ranks.run(folder, "helpers.shards", size)


def main(folder):
    """Be one of the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    made = {kind: {n: run(c) for n, c in cases.items()} for kind, (run, cases) in CASES.items()}
    torch.save(made, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

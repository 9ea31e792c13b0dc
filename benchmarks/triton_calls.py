"""Calls of every Triton kernel, to compile them: tensors without memory stand for real ones."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d3pm_fast.chains import handles, tables
from d3pm_fast.chains.structures import DenseMarginal, MatrixStep, RankOneMarginal, RankOneStep
from d3pm_fast.records import (
    Loss,
    Model,
    Random,
    Shaping,
    Shard,
    TokenRandom,
    Weights,
    unshaped_of,
)
from d3pm_fast.reference.logspace import compute_dtype

SIZES = [27, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768]
DENSE_SIZES = [27, 64, 128, 256, 1024]  # of chains of matrices; float64 has no kernels of its own
PRODUCTS_SIZES = [27, 32, 64]  # more classes are multiplied by PyTorch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
PRODUCTS_DTYPES = ["float32", "float64"]
TARGET, REVIEWED = "sm_90", ["float32", "bfloat16"]  # of the table
LONG_ROWS = {"loss and gradient, pi, posterior mean": 8192, "p_posterior_grad": 32768}
TOKENS = 1 << 20


class Call(NamedTuple):
    """What starts kernels."""

    name: str
    target: str
    num_classes: int
    dtype: str
    run: Callable[[], Any]


class Chain:
    """Stands for a transition whose steps are at hand."""

    def __init__(self, steps: Any, num_classes: int) -> None:
        self.num_classes, self.num_steps, self.memory_budget = num_classes, len(steps.s), 1 << 62
        self.handle = handles.new_handle(self)
        tables._all_steps[self] = {torch.device("meta"): steps}

    def step_record(self, t: Tensor) -> MatrixStep:
        """Return the record of steps to t - 1."""
        return MatrixStep(t, None, self.handle)


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(num_classes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Return a call of every kernel, by name."""
    from d3pm_fast.kernels.common import scale
    from d3pm_fast.kernels.predictions import gap, logistic, predict, shaped
    from d3pm_fast.kernels.rank_one import (
        loss,
        loss_strokes,
        p_sample,
        posterior,
        q_sample,
        score_loss,
    )

    logits, tokens = empty(TOKENS, num_classes, dtype=dtype), empty(TOKENS)
    double = torch.float64
    table, rows = empty(1001, 7, dtype=double), empty(TOKENS // 1024)
    pi = empty(num_classes, dtype=double)
    uniform, marginal = (
        RankOneStep(rows, table, None, None, -1, num_classes, -1),
        RankOneStep(rows, table, pi, pi, 0, num_classes, 0),
    )
    weights = Weights(1.0, 0.01)
    loc, made = empty(TOKENS, dtype=dtype), empty(TOKENS, num_classes, dtype=compute_dtype(dtype))
    draw, shaping = Random(empty(TOKENS // 1024), 3), Shaping(logits, 3.0, 0.5, 5, 0.9, 0.01, 0)
    of_tokens, as_it_is = TokenRandom(tokens, tokens, 3), unshaped_of(num_classes, 0)
    model, mean = Model(False, True), Model(True, True)
    plain = Loss(logits, tokens, None, tokens, uniform, model, weights)
    of_mean = Loss(logits, tokens, None, tokens, marginal, mean, weights)
    base = RankOneMarginal(rows, table, pi, 0, num_classes)
    shard = Shard(0)
    statistics, line, sums = (empty(TOKENS, n, dtype=compute_dtype(dtype)) for n in (5, 3, 2))
    return {
        "loss": lambda: loss.loss(plain, "sum"),
        "loss and gradient": lambda: loss.loss(plain, "sum", False),
        "loss and gradient, pi, posterior mean": lambda: loss.loss(of_mean, "sum", False),
        "loss by scores": lambda: score_loss.score_loss(plain, "sum", False),
        "loss by scores, pi": lambda: score_loss.score_loss(of_mean, "sum", False),
        "gap": lambda: gap.gap(logits, tokens),
        "statistics stroke": lambda: loss_strokes.loss_statistics(of_mean, shard),
        "solve stroke": lambda: loss_strokes.loss_solve(of_mean, shard, statistics),
        "sums stroke": lambda: loss_strokes.loss_sums(of_mean, shard, statistics, line),
        "gradient stroke": lambda: loss_strokes.loss_gradient(of_mean, shard, statistics, sums),
        "q_posterior": lambda: posterior.q_posterior(tokens, tokens, marginal, dtype),
        "p_posterior": lambda: posterior.p_posterior(logits, tokens, marginal, mean),
        "p_posterior_grad": lambda: posterior.p_posterior(logits, tokens, marginal, mean, logits),
        "p_sample": lambda: p_sample.p_sample(logits, tokens, marginal, mean, draw),
        "p_sample, shaped": lambda: p_sample.p_sample(
            logits, tokens, marginal, mean, draw, shaping
        ),
        "logistic logits": lambda: logistic.logits(loc, loc, num_classes, True),
        "logistic gradient": lambda: logistic.gradient(loc, loc, made, True),
        "shaped logits": lambda: shaped.shaped_logits(logits, shaping),
        "predict": lambda: predict.predict(logits, tokens, of_tokens, True, as_it_is),
        "predict, shaped": lambda: predict.predict(logits, tokens, of_tokens, True, shaping),
        "q_sample": lambda: q_sample.q_sample(tokens, base, draw),
        "scale": lambda: scale.scale_(logits, made[0, 0]),
        "scale by token": lambda: scale.scale_(logits, made[:, 0]),
    }


def dense_calls(num_classes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Return a call of every kernel for chains of matrices, by name."""
    from d3pm_fast.kernels.dense import jumps, loss, p_sample, posterior, q_sample

    matrices = empty(1000, num_classes, num_classes, dtype=torch.float64)
    common = empty(1000, num_classes, dtype=torch.float64)
    parts = empty(1000, 3, num_classes, num_classes, dtype=torch.bfloat16)
    steps = tables.StepTables(matrices, matrices, matrices, common, parts, empty(1000))
    chain = Chain(steps, num_classes)
    shape = TOKENS // 1024, 1024
    logits, tokens = empty(*shape, num_classes, dtype=dtype), empty(*shape)
    step, draw = MatrixStep(empty(shape[0]), None, chain.handle), Random(empty(shape[0]), 3)
    joint, mean, weights = Model(False, True), Model(True, True), Weights(1.0, 0.01)
    of_loss = logits, tokens, None, tokens, step
    few_logits, few = empty(1024, 16, num_classes, dtype=dtype), empty(1024, 16)
    few_steps = MatrixStep(few, None, chain.handle)
    of_few = Loss(few_logits, few, None, few, few_steps, mean, weights, is_density=True)
    counts = jumps.Counts(step.t, 1024, empty(1000, 100, dtype=torch.float64), 100)
    rows = jumps.Jumps(tokens, tokens, empty(TOKENS, dtype=torch.float64), num_classes)
    return {
        "dense loss, few tokens of a step": lambda: loss.loss(of_few, "sum", False),
        "dense p_posterior_grad, few tokens of a step": lambda: posterior.p_posterior(
            few_logits, few, few_steps, mean, few_logits
        ),
        "dense p_posterior, few tokens of a step": lambda: posterior.p_posterior(
            few_logits, few, few_steps, mean
        ),
        "dense p_sample, few tokens of a step": lambda: p_sample.p_sample(
            few_logits, few, few_steps, mean, draw
        ),
        "dense loss": lambda: loss.loss(Loss(*of_loss, joint, weights), "sum", False),
        "dense loss, posterior mean": lambda: loss.loss(
            Loss(*of_loss, mean, weights), "sum", False
        ),
        "dense loss, density": lambda: loss.loss(
            Loss(*of_loss, joint, weights, is_density=True), "sum", False
        ),
        "dense loss, density, posterior mean": lambda: loss.loss(
            Loss(*of_loss, mean, weights, is_density=True), "sum", False
        ),
        "dense q_posterior": lambda: posterior.q_posterior(tokens, tokens, step, dtype),
        "dense p_posterior": lambda: posterior.p_posterior(logits, tokens, step, mean),
        "dense p_posterior_grad": lambda: posterior.p_posterior(logits, tokens, step, mean, logits),
        "dense q_sample": lambda: q_sample.by_matrix(
            tokens, DenseMarginal(step.t, chain.handle), draw
        ),
        "dense p_sample": lambda: p_sample.p_sample(logits, tokens, step, mean, draw),
        "sparse q_sample": lambda: jumps.draw_by(tokens, counts, rows, 32, draw),
    }


def products_calls(num_classes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Return both calls of the cumulative products' kernel, by name."""
    from d3pm_fast.kernels.dense.products import scan

    matrices = empty(1000, num_classes, num_classes, dtype=dtype)
    return {
        "products": lambda: scan(matrices, None),
        "products gradient": lambda: scan(matrices, matrices),
    }


def every_call(targets: list[str], sizes: list[int], dtypes: list[str]) -> Iterator[Call]:
    """Yield all calls."""
    for target, dtype, size in product(targets, dtypes, sizes):
        of_size = calls(size, DTYPES[dtype])
        if size in PRODUCTS_SIZES and dtype in PRODUCTS_DTYPES:
            of_size |= products_calls(size, DTYPES[dtype])
        if size in DENSE_SIZES and dtype != "float64":
            of_size |= dense_calls(size, DTYPES[dtype])
        for name, run in of_size.items():
            yield Call(name, target, size, dtype, run)


def reviewed_calls(dtypes: list[str]) -> Iterator[Call]:
    """Yield calls that start every kernel, with 128 classes where it serves so many."""
    for dtype in dtypes:
        for name, size in LONG_ROWS.items():
            yield Call(name, TARGET, size, dtype, calls(size, DTYPES[dtype])[name])
        if dtype in PRODUCTS_DTYPES:
            for name, run in products_calls(64, DTYPES[dtype]).items():
                yield Call(name, TARGET, 64, dtype, run)
    yield from every_call([TARGET], [128], dtypes)

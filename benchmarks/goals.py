"""What the library is meant to reach, as ratios of medians of one run; reported, never asserted."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .cases import FEW, GAUSSIAN, GAUSSIAN_FULL, LONG, NEIGHBORS, OURS, Case
from .timing import Timing

Timings = Mapping[tuple[Case, str], Timing]

BYTES_A_ROW = 64  # peak memory above one gradient

LARGE, SMALL, WIDE = (8, 1024, 256), (32, 256, 27), (1, 512, 8192)
LOSS_GOALS = [  # shape, provider, least (provider / ours) or greatest (ours / provider) ratio
    (LARGE, "dense eager", "least", 30),
    (LARGE, "closed form compiled", "least", 12),
    (LARGE, "cross_entropy", "greatest", 0.6),
    (SMALL, "dense eager", "least", 8),
    (SMALL, "closed form compiled", "least", 4),
    (SMALL, "cross_entropy", "greatest", 1.0),
    (WIDE, "closed form eager", "least", 25),
    (WIDE, "closed form compiled", "least", 25),
    (WIDE, "cross_entropy", "greatest", 0.5),
]
ABSORBING_SPEEDUP = 1.8
LOGISTIC_SHARE = 0.7
NEIGHBORS_SHAPE = (1, 128, 8192)
FEW_SHAPE, FEW_SPEEDUP = (64, 1024, 256), 10
ELBO_SHAPES, ELBO_SHARE = [(1, 256, 16), (1, 256, 256)], 1.05
SAMPLE_GOALS = [("q_sample", (64, 1024, 256), 50), ("p_sample", (8, 1024, 256), 10)]


DENSE_GOALS = [  # family, provider, least or greatest ratio as above
    (GAUSSIAN_FULL, "dense eager", "least", 2.5),
    (GAUSSIAN_FULL, "two products", "greatest", 1.25),
    (GAUSSIAN, "two products", "greatest", 1.0),
]
LINEAR_SHAPE, LINEAR_FEATURES = (2, 1024, 32768), 512
LINEAR_GOALS = [
    ("three matmuls and our row kernel", "greatest", 1.05),
    ("plain logits, closed form eager", "least", 1.5),
    ("plain logits, closed form compiled", "least", 1.5),
    ("ours, all rows", "greatest", 0.55),
]


class Goal(NamedTuple):
    """A goal and what was measured; ``measured`` is None where a provider did not run."""

    text: str
    bound: float
    at_least: bool
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.bound if self.at_least else self.measured <= self.bound
        return "met" if met else "not met"


def goals(timings: Timings, memory: Mapping[tuple[Case, str], int]) -> list[Goal]:
    """Return the goals of the cases that ran, each beside its measurement."""
    return [*_loss_goals(timings), *_sample_goals(timings), *_memory_goals(memory)]


def gradient_bytes(case: Case) -> int:
    """Return the size of the gradient of float32 logits."""
    return 4 * case.num_tokens * case.num_classes


def _loss_goals(timings: Timings) -> Iterator[Goal]:
    of_cases = [(Case("loss", "uniform", *shape), *goal) for shape, *goal in LOSS_GOALS]
    of_cases += [(Case("dense loss", family, *LARGE), *goal) for family, *goal in DENSE_GOALS]
    of_cases += [
        (Case("logistic", family, *LARGE), "logits first", "greatest", LOGISTIC_SHARE)
        for family in ("uniform", GAUSSIAN)
    ]
    of_cases += [
        (Case("linear", family, *LINEAR_SHAPE), *goal)
        for family in ("uniform", "absorbing")
        for goal in LINEAR_GOALS
        if family == "absorbing" or goal[0] != "ours, all rows"
    ]
    of_cases += [
        (Case("sparse p_sample", family, *NEIGHBORS_SHAPE), "dense product", "least", 10)
        for family in NEIGHBORS
    ]
    of_cases += [
        (Case("elbo", LONG, *shape), "denoiser alone", "greatest", ELBO_SHARE)
        for shape in ELBO_SHAPES
    ]
    for case, provider, kind, bound in of_cases:
        times = (case, provider), (case, OURS)
        if kind == "least":
            text = f"{case.name}: {provider} / ours"
            yield from _goal(timings, text, bound, True, *times)
        else:
            text = f"{case.name}: ours / {provider}"
            yield from _goal(timings, text, bound, False, *reversed(times))
    for shape in (LARGE, SMALL, WIDE):
        uniform, absorbing = (Case("loss", family, *shape) for family in ("uniform", "absorbing"))
        text = f"{absorbing.name}: our uniform / our absorbing"
        times = (uniform, OURS), (absorbing, OURS)
        yield from _goal(timings, text, ABSORBING_SPEEDUP, True, *times)


def _sample_goals(timings: Timings) -> Iterator[Goal]:
    for operation, shape, bound in SAMPLE_GOALS:
        for family in ("uniform", "absorbing"):
            case = Case(operation, family, *shape)
            times = (case, "Gumbel eager"), (case, OURS)
            yield from _goal(timings, f"{case.name}: Gumbel eager / ours", bound, True, *times)
    uniform, few = (Case("p_sample", family, *FEW_SHAPE) for family in ("uniform", FEW))
    times = (uniform, OURS), (few, OURS)
    yield from _goal(timings, f"{few.name}: our uniform / ours", FEW_SPEEDUP, True, *times)


def _memory_goals(memory: Mapping[tuple[Case, str], int]) -> Iterator[Goal]:
    for (case, provider), peak in memory.items():
        if provider == OURS and case.operation == "loss":
            above = (peak - gradient_bytes(case)) / case.num_tokens
            text = f"{case.name}: bytes a row above one gradient"
            yield Goal(text, BYTES_A_ROW, False, above)
        if provider == OURS and case.operation == "linear":
            above = (peak - 4 * LINEAR_FEATURES * (case.num_tokens + case.num_classes)) / 2**20
            text = f"{case.name}: MiB above both gradients, of a budget of 128"
            yield Goal(text, 130, False, above)


def _goal(
    timings: Timings,
    text: str,
    bound: float,
    at_least: bool,
    over: tuple[Case, str],
    under: tuple[Case, str],
) -> Iterator[Goal]:
    """Yield the goal of a ratio, where the cases of both times ran."""
    ran = {case for case, _ in timings}
    if {over[0], under[0]} <= ran:
        is_measured = {over, under} <= timings.keys()
        ratio = timings[over].median / timings[under].median if is_measured else None
        yield Goal(text, bound, at_least, ratio)

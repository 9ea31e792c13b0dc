"""Whether counts follow a law: fixed seeds, exact laws, Bonferroni over the tests of a call."""

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-3  # of a whole comparison; the seeds are fixed, so it never comes by chance


def assert_follows(samples, law):
    """Fail unless each column of ``samples`` follows its row of ``law``.

    Args:
        samples: integers, ``(draws, N)``.
        law: probabilities, ``(N, K)``; a class of probability 0 must never be seen.
    """
    samples, law = np.asarray(samples), np.asarray(law, dtype=np.float64)
    assert samples.shape[1:] == law.shape[:1]
    for n, row in enumerate(law):
        counts = np.bincount(samples[:, n], minlength=len(row))
        assert len(counts) == len(row), "a class outside [0, K)"
        assert counts[row == 0].sum() == 0, f"token {n}: a class of probability 0 was drawn"
        p_value = chi_square(counts, row)
        assert p_value > FALSE_ALARM / len(law), f"token {n}: p-value {p_value:.2g}"


def chi_square(counts, law):
    """The p-value of counts under a law; classes expected fewer than 5 times are pooled."""
    expected = law * counts.sum()
    rare = expected < 5
    if expected[rare].sum() < 5:  # too few even together: their number is Poisson
        p_rare = stats.poisson.sf(counts[rare].sum() - 1, expected[rare].sum() + 1e-300)
        observed, expected = counts[~rare], expected[~rare]
    else:
        p_rare = 1.0
        observed = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    common = stats.chi2.sf(statistic, len(observed) - 1) if len(observed) > 1 else 1.0
    return min(common, 2 * p_rare)


def assert_rate(count, expected):
    """Fail unless a count could be Poisson with this mean."""
    low, high = stats.poisson.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], expected)
    assert low <= count <= high, f"{count} events, expected {low:.0f} to {high:.0f}"

"""The few formulas behind the numbers of pages and evaluations: intervals, pass@k, deviations."""

import math
from statistics import stdev

QUANTILE = 1.959964  # of the normal distribution: 95 % of it lie between this many deviations below and above the mean


def deviation(values):
    """The standard deviation of a sample, 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def wilson(share, size):
    """The 95 % interval (low, high) of a share of `size` independent cases, after Wilson."""
    squared = QUANTILE**2 / size
    center = share + squared / 2
    half = math.sqrt(squared * (share * (1 - share) + squared / 4))
    return (center - half) / (1 + squared), (center + half) / (1 + squared)


def accuracy_interval(right, n):
    """Wilson's 95 % interval (low, high) of accuracy. right: (N,) ints, how many of n completions of each problem are.

    The completions of one problem are alike, so that N * n of them are worth less than as many independent ones. The
    interval is for the number of independent ones that would vary as much as the mean over problems does: this is N
    where n is 1, and at most N * n.
    """
    share = float(right.mean()) / n
    variance = float(right.var()) / n**2
    size = len(right)
    if variance:
        size = min(size * share * (1 - share) / variance, size * n)
    return wilson(share, size)


def pass_at_k(n, c, k):
    """The chance that one of k completions is right, from n of which c are: unbiased (Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)

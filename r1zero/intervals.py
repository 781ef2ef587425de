"""Compute the intervals, pass@k and deviations that pages and evaluations show, and write numbers as text."""

import math
from statistics import stdev

QUANTILE = 1.959964  # of the normal distribution: 95 % of it lie between this many deviations below and above the mean


def deviation(values):
    """Return the standard deviation of a sample, 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def wilson(share, size):
    """Return Wilson's 95 % interval (low, high) of a share (0 to 1) of `size` independent cases.

    >>> [round(bound, 4) for bound in (*wilson(15 / 148, 148), *wilson(1, 29))]  # Newcombe 1998, table I
    [0.0624, 0.1605, 0.883, 1.0]
    """
    squared = QUANTILE**2 / size
    center = share + squared / 2
    half = math.sqrt(squared * (share * (1 - share) + squared / 4))
    return (center - half) / (1 + squared), (center + half) / (1 + squared)


def accuracy_interval(right, n):
    """Return Wilson's 95 % interval (low, high) of accuracy.

    right: (N,) ints, right completions of each problem, out of n. Completions of one problem resemble each other, so
    N * n of them hold less information than N * n independent ones. The interval uses an effective size: the number
    of independent completions that would vary as much as the mean over problems does. It is N if n is 1, and at most
    N * n.
    """
    share = float(right.mean()) / n
    variance = float(right.var()) / n**2
    size = len(right)
    if variance:
        size = min(size * share * (1 - share) / variance, size * n)
    return wilson(share, size)


def pass_at_k(n, c, k):
    """Return the unbiased chance that one of k completions is right, if c of n were (Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def text_of(value, form):
    """Return a value as text, "-" for None. form: a format string."""
    return "-" if value is None else form.format(value)


def accuracy_text(accuracy, interval):
    """Return an accuracy with its interval (low, high) in percent, "-" for None.

    >>> accuracy_text(0.6, (0.172, 0.915))
    '60.0% (17.2 to 91.5)'
    """
    return "-" if accuracy is None else f"{accuracy:.1%} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"

"""Intervals and pass@k against published numbers and counts.   bash tests/run.sh tests/test_statistics.py"""

import itertools

import numpy as np
import pytest

from r1zero.intervals import accuracy_interval, pass_at_k, wilson


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


# Newcombe 1998, table I
@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_interval_of_single_completions_is_wilsons(right, of, low, high):
    assert accuracy_interval(np.array([1] * right + [0] * (of - right)), 1) == pytest.approx((low, high), abs=5e-5)
    assert wilson(right / of, of) == pytest.approx((low, high), abs=5e-5)


def test_interval_of_several_completions_is_as_wide_as_the_problems_differ():
    rng = np.random.default_rng(0)
    right = rng.binomial(8, rng.beta(1, 1, 500))  # (problems,)
    resampled = rng.choice(right, (4000, 500)).mean(1) / 8
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert accuracy_interval(right, 8) == pytest.approx((low, high), abs=0.004)

"""Countdown's problems, drawn, told apart, split and sorted.   bash tests/run.sh tests/test_countdown_problems.py"""

import random
from fractions import Fraction

import numpy as np
import pytest

import preprocess
from r1zero.grading.arithmetic import solves_countdown
from r1zero.tasks.countdown import CELL_METRICS, cells, draw_problems, make_splits, problem_id, solve, split_source


def asked(flags):
    """The arguments of preprocess.py countdown with these flags."""
    return preprocess.read_arguments(["countdown", *flags.split()])


def reachable(values):
    """Every value that some expression in all of these numbers has, by brute force."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if i != j:
                rest = [value for k, value in enumerate(values) if k not in (i, j)]
                for value in (a + b, a - b, a * b, *([a / b] if b else [])):
                    found |= reachable([*rest, value])
    return found


def solved_by_sums(nums, target):
    """Whether + and - are enough, by brute force over the signs."""
    sums = {0}
    for number in nums:
        sums = {total + sign for total in sums for sign in (number, -number)}
    return target in sums


def test_problems_are_as_asked_half_of_each_size_solvable_and_none_comes_twice():
    train, test = make_splits(asked("--train_size 1001 --test_size 100"))
    assert sorted(len(nums) for nums, _ in train) == [3] * 501 + [4] * 500
    assert sorted(len(nums) for nums, _ in test) == [3] * 50 + [4] * 50
    for nums, target in train + test:
        assert all(1 <= number <= 99 for number in nums) and 10 <= target <= 100
    assert all(solves_countdown(solve(*problem), *problem) for problem in (train + test)[:20])
    assert len({problem_id(*problem) for problem in train + test}) == 1101
    needed = [not solved_by_sums(*problem) for problem in train]
    assert 0.4 < sum(needed) / len(needed) < 0.6, "products and quotients are needed in a fair share"


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_solution_is_found_if_there_is_one(k):
    rng = random.Random(k)
    for _ in range(2):
        nums = [rng.randint(0, 12) for _ in range(k)]
        values = reachable([Fraction(number) for number in nums])
        for target in range(-2, 40, 3):
            if target in values:
                assert solves_countdown(solve(nums, target), nums, target)
            else:
                with pytest.raises(ValueError, match=f"{target} cannot be reached with "):
                    solve(nums, target)


def test_seed_decides_the_problems_and_their_order():
    first, again, other = (
        make_splits(asked(f"--num_operands 3 --train_size 50 --test_size 50 --seed {seed}")) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_existing_set_is_deduplicated_and_split_without_leakage_or_as_tinyzero_does(capsys):
    problems = [([a, a + 1, 5], 2 * a + 6) for a in range(10, 40)]
    reordered = [([5, *nums[:2]], target) for nums, target in problems[:10]]
    asked_for_three = asked("--source x --num_operands 3 --train_size 25 --test_size 5")
    train, test = split_source([*problems, *reordered, ([1, 9], 10)], asked_for_three)
    assert "40 rows, 10 of them duplicates, 30 different problems" in capsys.readouterr().out
    assert (len(train), len(test)) == (25, 5)
    assert len({problem_id(*problem) for problem in train + test}) == 30
    held_out = [([5, 11, 10], 26), ([90, 3, 4], 97)]
    tinyzeros = asked("--source x --split tinyzero --train_size 10 --test_size 2")
    assert split_source(problems[:10] + held_out, tinyzeros) == (problems[:10], held_out)
    assert "leaks: 1 of 2 test rows (50.0%)" in capsys.readouterr().out


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_cells_are_those_of_every_choice_of_signs(k):
    nums, target = draw_problems(np.random.default_rng(k), 4000, k, 1, 30, 10, 60)
    nums, target = nums[:300].tolist(), target[:300].tolist()
    expected = []
    for row, goal in zip(nums, target, strict=True):
        expected.append((f"{k} numbers", "+ - alone" if solved_by_sums(row, goal) else "needs * or /"))
    ten, eleven = [1] * 10, [1] * 11  # numbers: of the latter not all choices are tried
    found = cells([None, *nums, ten, eleven], [None, *target, 10, 11])
    assert found == [None, *expected, ("10 numbers", "+ - alone"), None], "each keeps its place"
    assert {kind for _, kind in expected} == set(CELL_METRICS)

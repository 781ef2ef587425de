r"""Maths answers in LaTeX are equal or different, case by case.   bash tests/run.sh tests/test_latex.py

The cases stand in tests/cases/boxed_maths.tsv: a gold, an answer, the verdict, whether text (with exact numbers) or
algebra decides it, and the reason.
"""

import csv
import doctest

import pytest
from conftest import CASES

from r1zero.grading import algebra, behaviours, latex, program_tests
from r1zero.grading.latex import equal, equal_exactly

with open(CASES / "boxed_maths.tsv", newline="") as file:
    PAIRS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("pair", PAIRS, ids=[pair["reason"] for pair in PAIRS])
def test_pair_has_its_verdict_by_text_or_by_algebra(monkeypatch, pair):
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 60)  # only a hang needs them
    expected = {"equal": True, "different": False}[pair["verdict"]]
    assert equal_exactly(pair["gold"], pair["answer"]) is (expected if pair["decided by"] == "text" else None)
    assert equal([pair["gold"]], [pair["answer"]]) == [expected]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("", "", id="an empty gold"),
        pytest.param(" ", r"\,", id="a blank gold"),
        pytest.param("", "5", id="an empty gold and a number"),
        pytest.param("1", "1" * 2_000, id="two thousand digits"),
        pytest.param("0.5", r"\frac{" * 140 + "1", id="fractions that never close"),
        pytest.param("0.5", r"\frac{" * 70 + "1" + "}{1}" * 70, id="a fraction in a fraction, seventy times"),
    ],
)
def test_text_finds_different(gold, answer):
    assert equal_exactly(gold, answer) is False


def test_pair_that_stands_twice_in_a_batch_is_judged_once(monkeypatch):
    asked = []
    monkeypatch.setattr(algebra, "ask_helper", lambda pairs: asked.extend(pairs) or [None] * len(pairs))
    assert equal(["2x", "2", "2x"], ["x+x", "2", "x+x"]) == [None, True, None]
    assert asked == [("2x", "x+x")]


@pytest.mark.parametrize("module", [behaviours, latex, program_tests], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0

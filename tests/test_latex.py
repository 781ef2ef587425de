r"""Maths answers in LaTeX are equal or different, case by case.   bash tests/run.sh tests/test_latex.py

The cases stand in tests/cases/boxed_maths.tsv: a gold, an answer, the verdict, whether text (with exact numbers) or
algebra decides it, and the reason.
"""

import pytest
from conftest import each_case

from r1zero.grading import algebra
from r1zero.grading.latex import equal, equal_exactly


@each_case("boxed_maths.tsv")
def test_pair_has_its_verdict_by_text_or_by_algebra(monkeypatch, case):
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 60)  # only a hang needs them
    expected = {"equal": True, "different": False}[case["verdict"]]
    assert equal_exactly(case["gold"], case["answer"]) is (expected if case["decided by"] == "text" else None)
    assert equal([case["gold"]], [case["answer"]]) == [expected]


EMPTY = [("", ""), (" ", r"\,"), ("", "5")]
LONG = [("1", "1" * 2_000), ("0.5", r"\frac{" * 140 + "1"), ("0.5", r"\frac{" * 70 + "1" + "}{1}" * 70)]


@pytest.mark.parametrize(("gold", "answer"), EMPTY + LONG)
def test_text_finds_different(gold, answer):
    assert equal_exactly(gold, answer) is False


def test_pair_that_stands_twice_in_a_batch_is_judged_once(monkeypatch):
    asked = []
    monkeypatch.setattr(algebra, "ask_helper", lambda pairs: asked.extend(pairs) or [None] * len(pairs))
    assert equal(["2x", "2", "2x"], ["x+x", "2", "x+x"]) == [None, True, None]
    assert asked == [("2x", "x+x")]

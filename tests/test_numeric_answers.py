r"""Answers that surely differ are found without computer algebra, and nothing that math-verify finds equal is.

bash tests/run.sh tests/test_numeric_answers.py
"""

import doctest
import itertools
import threading

import pytest
from test_symbolic_helper import BOMBS, GOOD

from r1zero.grading import algebra as symbolic_helper
from r1zero.grading import latex as latex_answers
from r1zero.grading import numeric_answers
from r1zero.grading.algebra import compare_symbolically
from r1zero.grading.numeric_answers import known_different


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param(r"K\pi r", r"K\pi r^2", id="a factor"),
        pytest.param(r"\frac{\sqrt{5}}{2}", r"\frac{\sqrt{5}}{3}", id="a denominator"),
        pytest.param("x^2-1", "x^2+1", id="a sign"),
        pytest.param("$x^2-1$", "$x^2+1$", id="dollar signs around them"),
        pytest.param("V", "V+1", id="a name and a sum"),
        pytest.param("m", "-m", id="a name and its negative"),
        pytest.param(r"2 \frac{1}{2} x", r"2 \frac{1}{3} x", id="a mixed number that is none"),
        pytest.param("-1./3", "-1./4", id="texts that no parser reads"),
        pytest.param("E_{1}+E_{2}", "x+1", id="a text that no parser reads"),
        pytest.param(r"m \frac{d v}{d t}+b v=f", r"m \frac{d v}{d t}-b v=f", id="a derivative with a factor"),
        pytest.param(r"e^{x+2}", r"e^{x-2}", id="a sign in an exponent"),
        pytest.param(r"2\ln 3", r"\ln 8", id="logarithms"),
        pytest.param(r"\cos 2t", r"\sin 2t", id="another function"),
        pytest.param("(1,x+1)", "(2,x+1)", id="an element"),
        pytest.param(r"\{1,2\}", r"\{1,2,3\}", id="an element more"),
        pytest.param("(1,2)", "3", id="a pair and a number"),
        pytest.param("x+1", "y=x+2", id="the right side of an equation"),
        pytest.param("y=x+1", "x+2", id="the right side of an equation that is the gold"),
        pytest.param("u(t)+1", "u(t)+2", id="a function that is not known"),
        pytest.param(r"\sqrt{x-1}", r"\sqrt{x-1}+1", id="a root that is real at one of the points only"),
        pytest.param(r"\arcsin{0.5 x}", r"\arcsin{0.6 x}", id="an arcsine"),
        pytest.param("P=100-2Q", "P=100+2Q", id="equations"),
        pytest.param(r"\frac{d x}{d t}=k x-a", r"\frac{d x}{d t}=k x+a", id="equations with a derivative"),
        pytest.param(r"y^{\prime}+r y=0", r"y^{\prime}-r y=0", id="equations with a prime"),
    ],
)
def test_answers_of_other_values_are_known_to_differ(gold, answer):
    assert known_different(gold, answer) and known_different(answer, gold)
    assert compare_symbolically(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *GOOD,
        pytest.param(r"\frac{1}{3}", "0.3333333", id="decimals that math-verify rounds"),
        pytest.param(r"10^{-8}x", r"2\cdot 10^{-8}x", id="values that math-verify takes for zero"),
        pytest.param("x+1", "y=x+1", id="a formula and an equation"),
        pytest.param("(1,x+1)", r"\{x+1,1\}", id="a pair and a set"),
        pytest.param(r"\mu", "mu", id="the letters of a name"),
        pytest.param("x", "X", id="a capital letter"),
        pytest.param("$x+1$", "1+x", id="dollar signs around one of them"),
        pytest.param("y=E_1=x", "x", id="an equation whose last part is read"),
        pytest.param("x^E_1", "x", id="a subscript of an exponent"),
        pytest.param("e", "E", id="the letter e"),
        pytest.param(r"e^{-sT}", r"e^{-st}", id="a capital letter in an exponent"),
        pytest.param(r"\frac{1}{m} t", r"\frac{1}{m}", id="a letter that is taken for a unit"),
        pytest.param("x-y=1", "2x=2y+2", id="equations with a factor"),
        pytest.param("x-y=1", "y-x=-1", id="equations with signs"),
        pytest.param("ab=ac", "2ab=ac", id="equations with a solution in common"),
        pytest.param("2=3", "4=5", id="equations without a solution"),
        pytest.param(r"\frac{d x}{d t}=k x-a", r"2\frac{d x}{d t}=k x-a", id="derivatives that may be taken for zero"),
        pytest.param(r"\frac{d x}{d t}+1", r"2\frac{d x}{d t}+1", id="derivatives in formulas"),
        pytest.param(r"m_{p}\left(\gamma^{2}-1\right)", r"m_{p}\left(\gamma^{2}-2\right)", id="gamma"),
        pytest.param("x=1,y=2", "2", id="two equations"),
        pytest.param("1,234x", "1234x", id="thousands apart"),
        pytest.param(r"\frac{1}{x-x}", "1", id="a division by zero"),
        pytest.param(r"\sqrt{-1-x}", "2", id="a root that is not real"),
    ],
)
def test_answers_that_math_verify_may_find_equal_are_left_to_it(gold, answer):
    assert not known_different(gold, answer) and not known_different(answer, gold)


REWRITTEN = {  # formulas, and their values in other forms
    "x^2-4": ["(x-2)(x+2)", "-4+x^2", "x(x-4/x)", r"\frac{x^3-4x}{x}"],
    r"2\sqrt{2}x": [r"\sqrt{8}x", r"\frac{4x}{\sqrt{2}}", r"8^{1/2}x", r"2^{\frac{3}{2}}x"],
    r"\sin(2t)": [r"2\sin t\cos t", r"2 \sin(t) \cos(t)", r"-\sin(-2t)"],
    r"e^{-at}-e^{-bt}": [r"\frac{1}{e^{at}}-\exp(-bt)", r"e^{-at}(1-e^{at-bt})"],
    r"-\tau\ln 2": [r"\tau\ln\frac{1}{2}", r"-\frac{\tau}{2}\ln 4"],
    r"\frac{a}{b+c}": ["a(b+c)^{-1}", r"\frac{2a}{2b+2c}", "a/(c+b)"],
    "P=100-2Q": ["2Q=100-P", "P+2Q=100", "Q=50-P/2"],
    r"(x,\frac{x}{2})": [r"(x,0.5x)", r"\left(x,x/2\right)"],
}


@pytest.mark.parametrize("gold", REWRITTEN)
def test_right_answer_in_another_form_is_never_called_different(gold):
    for one, other in itertools.permutations([gold, *REWRITTEN[gold]], 2):
        assert not known_different(one, other), (one, other)


def test_wrong_answer_does_not_reach_the_helper(monkeypatch):
    asked = []
    monkeypatch.setattr(symbolic_helper, "ask_helper", lambda pairs: asked.extend(pairs) or [True] * len(pairs))
    assert latex_answers.equal(["2x", "2x"], ["3x", "x+x"]) == [False, True]
    assert asked == [("2x", "x+x")]


@pytest.mark.parametrize(
    "bomb", [*BOMBS, "1/" * 495 + "x", "1," * 495 + "x", "x^{99}" * 160, "9^{64}^{64}", "x" * 990]
)
def test_bombs_are_passed_over(bomb):
    known_different("2x+1", bomb[: latex_answers.LONGEST_TEXT])


def test_same_is_found_in_eight_threads():
    numeric_answers.read.cache_clear()
    numeric_answers.element_bounds.cache_clear()
    pairs = [(f"x^{n}+{n}", f"x^{m}+{m}") for n in range(2, 8) for m in range(2, 8)]
    found = []
    threads = []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: found.append([known_different(*pair) for pair in pairs])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[one != other for one, other in pairs]] * 8


def test_examples_in_docstrings_hold():
    assert doctest.testmod(numeric_answers).failed == 0

"""Equality of maths answers case by case: by text and exact numbers, and by computer algebra in its helper process.

bash tests/run.sh tests/test_latex_answers.py
"""

import doctest

import pytest

from r1zero.grading import algebra as symbolic_helper
from r1zero.grading import latex as latex_answers
from r1zero.grading.latex import equal, equal_exactly


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("42", "42", id="the same text"),
        pytest.param("42", "042", id="a leading zero"),
        pytest.param("1234", "1,234", id="thousands with a comma"),
        pytest.param("1234", "1{,}234", id="thousands with a LaTeX comma"),
        pytest.param("10000", r"10\,000", id="thousands with a thin space"),
        pytest.param("5", "5.0", id="a decimal that is whole"),
        pytest.param("0.5", r"\frac{1}{2}", id="a decimal and a fraction"),
        pytest.param(r"\frac{1}{2}", r"\dfrac12", id="a fraction without braces"),
        pytest.param(r"\frac{1}{2}", r"\frac{2}{4}", id="a fraction not in lowest terms"),
        pytest.param(r"\frac{1}{2}", "1/2", id="a slash"),
        pytest.param(r"-\frac{3}{2}", "-1.5", id="a negative fraction"),
        pytest.param(r"-\frac{1}{2}", r"\frac{1}{-2}", id="a sign below"),
        pytest.param(r"-\frac{1}{2}", r"\frac{-1}{2}", id="a sign above"),
        pytest.param(r"\frac{1}{2}", r"-\frac{1}{-2}", id="two signs"),
        pytest.param("-0.5", "1/-2", id="a sign after a slash"),
        pytest.param(r"\frac{1}{6}", r"\frac{\frac{1}{2}}{3}", id="a fraction above"),
        pytest.param(r"\frac{2}{3}", r"\frac{2}{\dfrac{6}{2}}", id="a fraction below"),
        pytest.param("-0.5", r"\frac{\frac{1}{3}}{-\frac{2}{3}}", id="a fraction above and below, with a sign"),
        pytest.param(r"\frac{1}{6}", r"\frac{1/2}{3}", id="a fraction with a slash above"),
        pytest.param("3.5", r"3\frac{1}{2}", id="a mixed number"),
        pytest.param("4.5e33", r"4.5 \times 10^{33}", id="scientific notation"),
        pytest.param("3e8", r"3\cdot10^8", id="scientific notation without braces"),
        pytest.param("18", r"\$18", id="a dollar sign"),
        pytest.param("18", "$18$", id="math mode inside the box"),
        pytest.param("5", r"5\text{ cm}", id="a unit"),
        pytest.param("5", r"5\ \mathrm{m/s^2}", id="a unit with a power"),
        pytest.param("57", r"5\text{7}", id="a digit in text"),
        pytest.param("-5", r"\text{-}5", id="a sign in text"),
        pytest.param("3", r"\text{3 apples}", id="a number and words in text"),
        pytest.param("0.5", r"\frac1{2}", id="a fraction with braces below alone"),
        pytest.param("100, 200", r"100,\ 200", id="a list with other spaces"),
        pytest.param(r"\operatorname{ln}2", r"\ln 2", id="a logarithm by another command"),
        pytest.param("5", "x=5", id="a left-hand side"),
        pytest.param("41.8", r"41.8^\circ", id="degrees"),
        pytest.param("16", "16.", id="a final stop"),
        pytest.param(r"\text{east}", "East", id="a word, in whatever case"),
        pytest.param(r"\text{(A)}", "A", id="a letter of choice"),
        pytest.param(r"\left( 1, 2 \right)", "(1,2)", id="left and right"),
        pytest.param("-5", "\N{MINUS SIGN}5", id="a typographic minus"),
        pytest.param("-5", "\N{EN DASH}5", id="a dash for a minus"),
        pytest.param("np.arcsin(10/13)", "np.arcsin(10/13)", id="a gold that no parser reads"),
    ],
)
def test_text_or_numbers_find_equal(gold, answer):
    assert equal_exactly(gold, answer) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("42", "43", id="another integer"),
        pytest.param(r"\frac{1}{3}", "0.333333", id="a rounded decimal"),
        pytest.param("12", "1 2", id="two numbers side by side"),
        pytest.param("6", r"2\cdot 3", id="a product not worked out"),
        pytest.param("5", "2+3", id="a sum not worked out"),
        pytest.param("5", r"\frac{10}{2}", id="a division not carried out"),
        pytest.param("5", "10/2", id="a division with a slash not carried out"),
        pytest.param("5", "45/9", id="a division with a slash of larger numbers"),
        pytest.param("15.975", "31.95/2", id="a division of a decimal not carried out"),
        pytest.param("10080", r"7! \times 2!", id="a product of factorials not worked out"),
        pytest.param("2", r"\frac{-10}{-5}", id="a division with signs not carried out"),
        pytest.param("2", r"\frac{1}{\frac{1}{2}}", id="a division by a fraction not carried out"),
        pytest.param(r"-\frac{1}{2}", r"\frac{-1}{-2}", id="signs that cancel"),
        pytest.param(r"\frac{1}{6}", r"\frac{1}{\frac{2}{3}}", id="a nested fraction of another value"),
        pytest.param(r"\frac{1}{2}", r"--\frac{1}{2}", id="two signs side by side"),
        pytest.param("0.5", r"\frac{1}{\frac{0}{2}}", id="a division by a fraction that is zero"),
        pytest.param("0.5", r"\frac{" * 140 + "1", id="fractions that never close"),
        pytest.param("0.5", r"\frac{" * 70 + "1" + "}{1}" * 70, id="a fraction in a fraction, seventy times"),
        pytest.param("1101_2", "1101_3", id="another base is another number"),
        pytest.param("1101_{2}", r"1101_{\text{three}}", id="another base in words"),
        pytest.param("1101_2", "x=1101_{10}", id="another base after a left-hand side"),
        pytest.param("1101_2, 1011_2", "1101_2, 1011_3", id="another base in a list"),
        pytest.param("4", r"\sqrt{16}", id="a root not taken"),
        pytest.param("1024", "2^{10}", id="a power not worked out"),
        pytest.param("120", "5!", id="a factorial not worked out"),
        pytest.param("10", r"\binom{5}{2}", id="a binomial not worked out"),
        pytest.param("6", "2(3)", id="a product without a sign not worked out"),
        pytest.param("5", "x=2+3", id="arithmetic after a left-hand side"),
        pytest.param("0.5", r"\frac{1+0}{2}", id="arithmetic in a fraction"),
        pytest.param("3", r"\log_2 8", id="a logarithm not worked out"),
        pytest.param(r"\text{east}", "seat", id="the same letters in another order"),
        pytest.param("", "", id="an empty gold"),
        pytest.param(" ", r"\,", id="a blank gold"),
        pytest.param("", "5", id="an empty gold and a number"),
        pytest.param("1", "1" * 2_000, id="two thousand digits"),
        pytest.param("2", r"\frac{2}{0}", id="a division by zero"),
        pytest.param("1e999", "9e999", id="a huge exponent"),
        pytest.param("5", r"5\text{7}", id="more digits in text"),
        pytest.param("5", r"\text{6 or }5", id="the second of two numbers"),
        pytest.param("5", r"\text{-}5", id="a sign in text, of another number"),
        pytest.param("5", r"\mathbf{6}+5", id="a sum with a number in bold"),
        pytest.param("5", r"5\text{ million}", id="a million times as much"),
        pytest.param(r"5\text{ million}", "5", id="a millionth"),
        pytest.param("5", r"\text{not }5", id="every other number"),
        pytest.param("7", r"7\text{ hours }30\text{ minutes}", id="a second number with a unit"),
        pytest.param(r"7\text{ hours }30\text{ minutes}", "7", id="the first of two numbers with units"),
    ],
)
def test_text_or_numbers_find_different(gold, answer):
    assert equal_exactly(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        pytest.param("x^2-1", "(x-1)(x+1)", True, id="a product of sums"),
        pytest.param(r"2\pi", r"\pi+\pi", True, id="a sum of pi"),
        pytest.param(r"2\sqrt{2}", r"\sqrt{8}", True, id="a root"),
        pytest.param(r"e^{x+y}", r"e^xe^y", True, id="a power of a sum"),
        pytest.param(r"\frac{x}{2}", "0.5x", True, id="a half of x"),
        pytest.param(r"\{1,2\}", r"\{2,1\}", True, id="a set in another order"),
        pytest.param(r"2\ln 2", r"\ln 4", True, id="a logarithm"),
        pytest.param(r"\frac{1}{1+x}", r"(1+x)^{-1}", True, id="a negative power"),
        pytest.param("5", "5 cm", True, id="a unit without text"),
        pytest.param(r"50\%", "0.5", True, id="a percentage"),
        pytest.param("1101_2", "1101_{2}", True, id="the same base with braces"),
        pytest.param("1101_2", "1101_{(2)}", True, id="the same base in parentheses"),
        pytest.param("1101_2", "1101", True, id="a base left out"),
        pytest.param("1101_2", "13", False, id="the value in base ten of a gold in another"),
        pytest.param("13", "1101_2", False, id="the value in another base of a gold in base ten"),
        pytest.param("x=2,y=3", "y=3", False, id="half of an answer"),
        pytest.param(r"2\pi", "2", False, id="a bare gold with pi is not cut to its number"),
        pytest.param(r"\sqrt{2}", "2", False, id="a bare root is not cut to its number"),
        pytest.param("5", "5x^2", False, id="a term that begins with the number"),
        pytest.param("(1,2)", "(2,1)", False, id="a pair the other way round"),
        pytest.param("[0,1)", "[0,1]", False, id="an interval that is closed"),
        pytest.param("5", r"5\text{ or }600", False, id="two numbers with a word between them"),
        pytest.param("100, 200", "100200", False, id="a list is no number with thousands apart"),
        pytest.param(r"2\mathrm{i}", "2", False, id="an imaginary unit is none of measure"),
        pytest.param(r"\operatorname{ln}2", "2", False, id="nor is a logarithm"),
        pytest.param("MR=SRMC", "SRAC=LRAC", False, id="equations of names"),
        pytest.param(r"\unknown{", "5", False, id="a gold that no parser reads accepts nothing"),
        pytest.param(r"\unknown{", "x", False, id="nor a letter"),
        pytest.param("x", "__import__('os').system('touch /tmp/x')", False, id="code"),
    ],
)
def test_computer_algebra_decides_the_rest(monkeypatch, gold, answer, expected):
    monkeypatch.setattr(symbolic_helper, "BATCH_SECONDS", 60)  # none needs them
    assert equal_exactly(gold, answer) is None
    assert equal([gold], [answer]) == [expected]


def test_examples_in_docstrings_hold():
    assert doctest.testmod(latex_answers).failed == 0


def test_pair_that_stands_twice_in_a_batch_is_judged_once(monkeypatch):
    asked = []
    monkeypatch.setattr(symbolic_helper, "ask_helper", lambda pairs: asked.extend(pairs) or [None] * len(pairs))
    assert equal(["2x", "2", "2x"], ["x+x", "2", "x+x"]) == [None, True, None]
    assert asked == [("2x", "x+x")]

r"""Formulas mean here what they mean to math-verify, or are not read.

bash tests/run.sh tests/test_formula_parser.py
"""

import pytest
import sympy
from math_verify import LatexExtractionConfig, parse

from r1zero.grading.formula_parser import NotRead, Parser, elements_of, tokens_of
from r1zero.grading.numeric_answers import Point, normalization, value, variable_value

NAMES = {"x": "x", "y": "y", "t": "t", "omega_n": r"\omega_n", "theta": r"\theta", "c_1": "c_1", "dt": "dt"}
POINT = Point(0, 0.25, 2**-13, {})


def trees(latex):
    """The trees of an answer's elements."""
    return [Parser(element).whole() for element in elements_of(tokens_of(normalization()(latex)))]


def math_verify_value(latex):
    """The value that math-verify's parser and sympy give a formula in the variables of NAMES."""
    (found, _) = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)
    values = {}
    for symbol in found.free_symbols:
        bounds = variable_value(NAMES[symbol.name], POINT)
        values[symbol] = sympy.Rational(float(bounds.a))
    return float(sympy.N(found.subs(values), 20))


@pytest.mark.parametrize(
    "latex",
    [
        pytest.param("1/2x", id="a product side by side binds closer than a slash"),
        pytest.param("x/y/t", id="slashes from left to right"),
        pytest.param("-x^2", id="a sign before a power"),
        pytest.param("x--y", id="a sign after a sign"),
        pytest.param(r"2\cdot-x", id="a sign after a dot"),
        pytest.param("x^23", id="an exponent of two digits without braces"),
        pytest.param("x^yt", id="an exponent of one letter without braces"),
        pytest.param("x^{1/2}y", id="a fraction in an exponent"),
        pytest.param("(-2)^3x", id="a negative base"),
        pytest.param("3e^{-2t}", id="a power of e"),
        pytest.param("xe^2y", id="e between letters"),
        pytest.param(r"\frac12x", id="a fraction without braces"),
        pytest.param(r"\frac{x}{y}^2", id="a fraction squared"),
        pytest.param(r"\frac{1}{2} \frac{x}{y}", id="two fractions"),
        pytest.param(r"\sqrt[3]{x}y", id="a cube root"),
        pytest.param(r"\sqrt2x", id="a root without braces"),
        pytest.param(r"\sin 2t/3", id="a slash in an argument without parentheses"),
        pytest.param(r"\sin(2t)/3", id="a slash after an argument in parentheses"),
        pytest.param(r"\sin{2t} y", id="a factor after an argument in braces"),
        pytest.param(r"\sin 2 \cos x", id="a function after an argument"),
        pytest.param(r"\sin x e^y t", id="e after an argument"),
        pytest.param(r"\sin (x+1)(x-1)", id="a product after an argument in parentheses"),
        pytest.param(r"\sin (x+1)^2", id="a power of a function in parentheses"),
        pytest.param(r"\sin x^2", id="a power in an argument"),
        pytest.param(r"\sin^{2} \theta \cos x", id="a power of a function"),
        pytest.param(r"\sin\cos x", id="a function of a function"),
        pytest.param(r"\tan x+\arcsin 0.3x", id="tangent and arcsine"),
        pytest.param(r"\log x+\log_2 3y", id="logarithms of two bases"),
        pytest.param(r"-t \ln y", id="a natural logarithm"),
        pytest.param(r"\exp{x*t}", id="exp with braces"),
        pytest.param("x(t+1)", id="a product with a sum"),
        pytest.param("xy(t-1)(t-2)", id="products with sums"),
        pytest.param("X+x", id="a capital letter is the small one"),
        pytest.param(r"\omega_{n} t+C_1", id="subscripts"),
        pytest.param(r"\left[x+1\right]^{2}", id="square brackets"),
        pytest.param("2x^{1.5}+.5", id="decimals"),
        pytest.param("x dt", id="a differential"),
        pytest.param(r"x\,y\;t\quad 2", id="spaces"),
        pytest.param(r"\frac{37}{4} m", id="a last letter that is taken for a unit"),
        pytest.param(r"\frac{2 \pi x}{3}", id="pi"),
    ],
)
def test_formula_has_the_value_that_math_verify_gives_it(latex):
    (tree,) = trees(latex)
    bounds = value(tree, POINT)
    expected = math_verify_value(latex)
    assert float(bounds.a) - 1e-12 <= expected <= float(bounds.b) + 1e-12
    assert float(bounds.b) - float(bounds.a) < 1e-9


@pytest.mark.parametrize(
    "latex",
    [
        pytest.param("2(3)", id="what math-verify adds as a mixed number"),
        pytest.param(r"2\frac{1}{2}", id="a mixed number"),
        pytest.param("2e^0", id="a mixed number with a power that is whole"),
        pytest.param("x^2(t)", id="a power of a function or of a product"),
        pytest.param("x(t^2)", id="a function of a power or a product"),
        pytest.param(r"\sin 2x(t)", id="a function in an argument"),
        pytest.param("x(.5)", id="a function of a decimal number"),
        pytest.param(r"e^{\log x}", id="a logarithm in an exponent"),
        pytest.param("x^y^t", id="two exponents"),
        pytest.param("e^x^t", id="two exponents of e"),
        pytest.param("x_1^2_3", id="two subscripts"),
        pytest.param("2I", id="the imaginary unit"),
        pytest.param("2E", id="E"),
        pytest.param("3!", id="a factorial"),
        pytest.param("|x|", id="an absolute value"),
        pytest.param(r"1\pm x", id="plus or minus"),
        pytest.param(r"\gamma x", id="gamma, which is a number to math-verify"),
        pytest.param(r"x\%", id="a percentage"),
        pytest.param(r"\frac{x^2}{dt}", id="a fraction over a differential"),
        pytest.param(r"\frac{dx}{dx}", id="a derivative by itself"),
        pytest.param(r"x\text{ or so}+1", id="words"),
        pytest.param("x<5", id="an inequality"),
        pytest.param("[0,1)", id="an interval that is half open"),
        pytest.param("(x,y)(x,t)", id="a product of pairs"),
        pytest.param("(x", id="a bracket that is open"),
        pytest.param("x)", id="a bracket that is closed twice"),
        pytest.param("", id="nothing"),
        pytest.param("x+", id="a sign at the end"),
        pytest.param("(" * 200 + "x" + ")" * 200, id="two hundred brackets"),
        pytest.param("x^{" * 200 + "x" + "}" * 200, id="two hundred exponents"),
        pytest.param(r"\sin " * 200 + "x", id="two hundred functions"),
        pytest.param("__import__('os')", id="code"),
    ],
)
def test_formula_with_a_second_meaning_is_not_read(latex):
    with pytest.raises(NotRead):
        trees(latex)


@pytest.mark.parametrize(
    ("latex", "count"),
    [
        ("x+1", 1),
        ("(x+1)", 1),
        ("(x)(y)", 1),
        ("x,y+1", 2),
        (r"5\text{ or }6", 2),
        ("(x,2(t+1))", 2),
        (r"\{1,2,x\}", 3),
        (r"\{x\}", 1),
    ],
)
def test_list_has_its_elements(latex, count):
    assert len(trees(latex)) == count

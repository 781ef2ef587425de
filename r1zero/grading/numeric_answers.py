r"""Tells that two LaTeX answers differ, by their values at a few points, before computer algebra is asked.

Most of what reaches computer algebra is wrong, and two formulas that differ in value at one point are not equal. So
each answer is read by a small parser, its variables are given fixed values, and bounds of its value are worked out in
interval arithmetic (mpmath), which rounds outwards. Only answers whose bounds lie well apart are called different. All
else is left to computer algebra, and nothing is ever called equal here.

The verdict must be the one that math-verify would come to. So an answer goes through its normalisation first, and the
parser follows its grammar (PS.g4 of https://github.com/huggingface/latex2sympy2_extended). A token that is not known
here, or that has a second meaning there, leaves the whole answer unread.
"""

import functools
import itertools
import math
import re
import zlib
from typing import NamedTuple

from mpmath import iv

from r1zero.grading.formula_parser import DERIVATIVE, NotRead, Parser, elements_of, names_in, split, tokens_of

PI = r"\pi"
LARGEST_POWER = 64  # exponent of a power that is multiplied out; another exponent goes through the logarithm
SMALLEST, LARGEST = 1e-9, 1e30  # absolute values of all that is worked out; math-verify takes tiny ones for zero
FARTHEST_EQUAL = 1e-5  # math-verify compares decimals to six places
FARTHEST_EQUAL_SHARE = 1e-9  # of the larger value
STEPS = 4096  # values that a variable can have at a point
MOST_NAMES = 16  # variables of an equation that is solved: the work grows with the square of their number


class Point(NamedTuple):
    """Values for all variables. seed: of the choice by name; first, step: of STEPS values; fixed: dict by key."""

    seed: int
    first: float
    step: float
    fixed: dict


POINTS = (Point(0, 0.25, 2**-13, {}), Point(1, 1.0, 2**-10, {}), Point(9, 0.25, 2**-12, {}))
# What math-verify looks for before it reads the formula, a transposed matrix, a number with thousands apart, and long
# gaps, over which its patterns would take their time
SPECIAL = re.compile(r"(?i:answer|boxed)|[$\n]|\\$|\^\{?T|,[0-9]{3}|\s{9}")
# Where math-verify may read on all the same: after the last of several =, and a subscript of an exponent
SOMETIMES_READ = re.compile(r"=.*=|\^\s*E")


class Reading(NamedTuple):
    """An answer that was read."""

    elements: list  # trees of the elements of a list, or of a formula alone: of an equation, what stands right of =
    is_equation: bool = False
    difference: tuple | None = None  # of an equation with one =, the tree of what is zero
    text: str | None = None  # of what math-verify cannot read, and compares as text


@functools.cache
def normalization():
    """What math-verify does to an answer before it reads it."""
    from latex2sympy2_extended.math_normalization import normalize_latex
    from math_verify import LatexExtractionConfig  # takes a second to import

    return functools.partial(normalize_latex, config=LatexExtractionConfig().normalization_config)


@functools.lru_cache(maxsize=4096)
def read(latex):
    """The Reading of an answer, or None where it is not read."""
    if latex.startswith("$") and latex.endswith("$"):
        latex = latex[1:-1]
    if SPECIAL.search(latex):
        return None
    try:
        text = normalization()(latex)
        tokens = tokens_of(text)
        if any(kind == "unreadable" for kind, _ in tokens):
            return None if SOMETIMES_READ.search(text) else Reading([], text=text)
        sides = split(tokens, "=")
        if len(sides) == 1:
            return Reading([Parser(element).whole() for element in elements_of(tokens)])
        if ("sign", ",") in tokens:
            return None
        right = Parser(sides[-1]).whole()
        if len(sides) > 2:
            return Reading([right], True)
        return Reading([right], True, ("sum", [Parser(sides[0]).whole(), ("negative", right)]))
    except NotRead:
        return None


def known_different(gold, answer):
    r"""Whether two LaTeX answers surely differ in value; False says nothing.

    >>> known_different(r"2\sqrt{2}", r"\sqrt{3}"), known_different("2x", "3x"), known_different("2x", "x+x")
    (True, True, False)
    """
    one, other = read(gold), read(answer)
    if one is None or other is None:
        return False
    if one.text or other.text:
        return one.text != other.text
    if one.is_equation and other.is_equation:
        return equations_differ(one.difference, other.difference)
    # Here math-verify compares the right side of an equation with a formula.
    if any(has_derivative(tree) for tree in one.elements + other.elements):
        return False
    if any(spell_the_same(*trees) for trees in itertools.product(one.elements, other.elements)):
        return False
    for number in range(len(POINTS)):
        bounds, others = element_bounds(gold, number), element_bounds(answer, number)
        if lacks_element(bounds, others) or lacks_element(others, bounds):
            return True
    return False


def spell_the_same(one, other):
    """Whether a name and a product of letters might be one word to math-verify."""
    return is_spelled(one) and is_spelled(other) and "name" in (one[0], other[0])


def is_spelled(tree):
    """Whether a formula is a name, or e, or a product of these."""
    match tree:
        case ("name", _) | ("call", "exp", ("number", "1")):
            return True
        case ("product", factors):
            return all(is_spelled(factor) for factor in factors)
    return False


def has_derivative(tree):
    """Whether there is a derivative in a formula: math-verify finds most of them zero."""
    return any(key.startswith(DERIVATIVE) for key in names_in(tree))


@functools.lru_cache(maxsize=4096)
def element_bounds(latex, number):
    """The bounds of each element of an answer that was read, at one of POINTS, with None where it has no value."""
    return [value_or_none(tree, POINTS[number]) for tree in read(latex).elements]


def lacks_element(bounds, others):
    """Whether one of the elements differs from all of the others."""
    return any(all(lie_apart(one, other) for other in others) for one in bounds)


def lie_apart(one, other):
    """Whether two values are both known, and differ by more than math-verify overlooks."""
    if one is None or other is None:
        return False
    gap = max(float(one.a) - float(other.b), float(other.a) - float(one.b))
    size = max(float(abs(one).b), float(abs(other).b))
    return gap > FARTHEST_EQUAL + FARTHEST_EQUAL_SHARE * size


def equations_differ(one, other):
    """Whether two equations surely have other solutions. Each is a tree that is zero, or None.

    math-verify finds two equations equal where the sides of one make the other's, and where both have the same
    solutions. So we solve one for each variable that is linear in it: no such solution may solve the other. As
    math-verify may take derivatives for zero, this must hold with them at zero too.
    """
    if one is None or other is None:
        return False
    derivatives = [key for key in names_in(one) | names_in(other) if key.startswith(DERIVATIVE)]
    zeros = dict.fromkeys(derivatives, iv.zero)
    for point in POINTS:
        points = [point, point._replace(fixed=zeros)] if derivatives else [point]
        for solved, tested in ((one, other), (other, one)):
            if all(solutions_fail(solved, tested, point) for point in points):
                return True
    return False


def solutions_fail(solved, tested, point):
    """Whether an equation has solutions for a linear variable, and none of these solves the other one."""
    failed = 0
    names = names_in(solved) - point.fixed.keys() - {PI}
    if len(names) > MOST_NAMES:
        return False
    for key in sorted(names):
        if degree(solved, key, point.fixed) != 1:
            continue
        below, above = [value_or_none(solved, with_value(point, key, at)) for at in (iv.zero, iv.one)]
        if below is None or above is None or not excludes_zero(above - below):
            return False
        missed = value_or_none(tested, with_value(point, key, below / (below - above)))
        if not lie_apart(missed, iv.zero):
            return False
        failed += 1
    return failed > 0


def with_value(point, key, found):
    """A point at which one variable has another value."""
    return point._replace(fixed={**point.fixed, key: found})


def degree(node, key, zeros):
    """The degree of a variable in a formula: 0, 1, or 2 where it is higher or not known. zeros: keys of zeros."""
    if not any(name == key or f"({key})" in name for name in names_in(node)):
        return 0
    match node:
        case ("name", name):
            return 1 if name == key else 2
        case ("negative", inner):
            return degree(inner, key, zeros)
        case ("sum", terms):
            return max(degree(term, key, zeros) for term in terms)
        case ("product", factors):
            if any(factor in [("name", zero) for zero in zeros] for factor in factors):
                return 0
            return min(2, sum(degree(factor, key, zeros) for factor in factors))
    return 2


def value(node, point):
    """Bounds (an interval of mpmath) of a node's value at a point. NotRead where it is not real, or out of range."""
    match node:
        case ("number", text):
            whole, _, decimals = text.partition(".")
            found = iv.mpf(int(whole + decimals)) / 10 ** len(decimals)
        case ("name", key):
            found = iv.mpf(iv.pi) if key == PI else variable_value(key, point)
        case ("negative", inner):
            found = -value(inner, point)
        case ("inverse", inner):
            found = 1 / nonzero(value(inner, point))
        case ("sum", terms):
            found = sum((value(term, point) for term in terms), iv.zero)
        case ("product", factors):
            found = iv.one
            for factor in factors:
                found = bounded(found * value(factor, point))
        case ("power", base, exponent):
            found = power_value(value(base, point), value(exponent, point))
        case ("log", inner, base):
            found = iv.log(positive(value(inner, point))) / nonzero(iv.log(positive(value(base, point))))
        case ("call", "exp", inner):
            found = iv.exp(moderate(value(inner, point)))
        case ("call", "tan", inner):
            angle = value(inner, point)
            found = iv.sin(angle) / nonzero(iv.cos(angle))
        case ("call", "arcsin", inner):
            found = arcsine(value(inner, point))
        case ("call", function, inner):
            found = getattr(iv, function)(value(inner, point))
    return bounded(found)


def variable_value(key, point):
    """A value for a variable, which depends on its name alone: of all answers at once."""
    if key in point.fixed:
        return point.fixed[key]
    return iv.mpf(point.first + point.step * (zlib.crc32(key.encode(), point.seed) % STEPS))


def power_value(base, exponent):
    """Bounds of a power."""
    number = float(exponent.a)
    if exponent.a == exponent.b and number.is_integer() and abs(number) <= LARGEST_POWER:
        power = bounded(base ** int(abs(number)))
        return power if number >= 0 else 1 / nonzero(power)
    return iv.exp(moderate(exponent * iv.log(positive(base))))


def arcsine(found):
    """Bounds of an arcsine. The library of C is right to the last bit or two; the bounds leave room for more."""
    low, high = float(found.a), float(found.b)
    if low < -1 or high > 1:
        raise NotRead("not real")
    return iv.mpf([math.asin(low) - 1e-14, math.asin(high) + 1e-14])


def bounded(found):
    """The bounds of a value that is neither huge nor tiny, or is exactly zero."""
    low, high = float(found.a), float(found.b)
    size = max(abs(low), abs(high))
    if size <= LARGEST and (size >= SMALLEST or size == 0):
        return found
    raise NotRead("out of range")


def moderate(exponent):
    """The bounds of an exponent of e whose power is neither huge nor tiny."""
    if float(abs(exponent).b) <= 99:
        return exponent
    raise NotRead("out of range")


def nonzero(found):
    """The bounds of a value that may be divided by."""
    if excludes_zero(found):
        return found
    raise NotRead("a division by zero")


def excludes_zero(found):
    """Whether a value is surely not zero."""
    return found.a > 0 or found.b < 0


def positive(found):
    """The bounds of a value that has a real logarithm."""
    if found.a > 0:
        return found
    raise NotRead("not positive")


def value_or_none(node, point):
    """Bounds of a node's value at a point, None where it has none."""
    try:
        return value(node, point)
    except NotRead:
        return None

r"""Compare maths answers in LaTeX: as text, as exact numbers, and only then by computer algebra.

Text and numbers decide nearly all answers, about a thousand times faster than computer algebra. The rest goes to the
helper process of r1zero/grading/algebra.py.
"""

import functools
import re
from fractions import Fraction

from r1zero.grading import algebra
from r1zero.grading.extract import braced

LONGEST_TEXT = 1000  # characters; longer answers are compared as text only

SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|~|\\?\$|\s+")
INNER_SPACE = re.compile(r"(?<=[0-9A-Za-z]) (?=[0-9A-Za-z])")
TEXT_GROUP = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
REWRITES = [  # two ways to write the same
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*(\w)"), r"\\frac\1{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*(\{[^{}]*\})"), r"\\frac{\1}\2"),
    (re.compile(r"\\operatorname\s*\{(ln|log|exp|(?:arc)?(?:sin|cos|tan)|sec|csc|cot)\}"), r"\\\1 "),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|\N{DEGREE SIGN}"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}]"), "-"),
]

WHOLE = re.compile(r"[0-9]+")
MIXED = re.compile(r"([0-9]+)(\\frac\{[0-9]+\}\{[0-9]+\})")
SLASH = re.compile(r"([0-9]+)/([+-]?[0-9]+)")
DECIMAL = re.compile(
    r"""(?P<digits>[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)?   # with or without thousands separators
        (?:\.(?P<decimals>[0-9]*))?
        (?:[eE](?P<e>[+-]?[0-9]{1,3})
          |(?:\\times|\\cdot|\*)[ ]?10\^(?:(?P<digit>[0-9])|\{(?P<power>[+-]?[0-9]{1,3})\}))?""",
    re.VERBOSE,
)

UNIT = "\N{SECTION SIGN}"  # replaces the words of a \text{...} while the number beside them is read
WORDS = re.compile(r"[^\W\d_](?:\^-?\d|[^\d{}])*")  # m/s^2 too
FACTORS = ("not", "dozen", "hundred", "thousand", "million", "billion", "trillion")  # make another number of a number
NO_UNITS = {"i", "e", "and", "or", *FACTORS}  # constants, and what stands between two answers, too
CONSTANT = re.compile(r"\\(?:mathrm|text)\s*\{([ie])\}")  # math-verify would take it for a unit
LIST = re.compile(r"[0-9],\s+[0-9]")  # not a thousands separator
FACTOR = re.compile(rf"(?:{'|'.join(FACTORS)})(?![a-z])")
SEVERAL_UNITS = re.compile(rf"[0-9] ?{UNIT} ?[0-9]")  # 7 hours 30 minutes
NAME_IS = re.compile(r"[A-Za-z\\][\w\\{}()']*=")
# Signs of arithmetic left undone, in an answer to a question whose answer is a plain number
UNDONE = re.compile(
    r"[0-9.)}\]!]\s*[-+*/^:]\s*[-+]?[({\[\s]*[0-9.]|[0-9)}]!|[0-9.]\s*\(|[)}]\s*[0-9({]|[0-9.]\s+[0-9.]"
    r"|\\(?!(?:approx|sim|simeq|prime|mu|Omega|AA|l?dots|[%{}])(?![a-zA-Z]))"
)
SET = re.compile(r"\\\{[^()\[\]]*\\\}")
PAIR = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")  # an interval or a point, which have an order
BASE = re.compile(r"[0-9]_(?:\{\(?(\w+)\)?\}|([0-9]|[A-Za-z]+))")  # of a number: 1101_{2}


@functools.lru_cache(maxsize=4096)
def normalize(latex):
    r"""Return an answer without what does not change its meaning: spacing, $, \left, \text{...}, a final stop.

    >>> normalize(r" \dfrac 12 ,\; \text{east}. ")
    '\\frac{1}{2},east'
    """
    text = SPACING.sub(" ", latex)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = TEXT_GROUP.sub(r"\1", text).strip().rstrip(".").rstrip()
    return INNER_SPACE.sub("\0", text).replace(" ", "").replace("\0", " ")  # 1 2 is not 12, nor "a b" "ab"


@functools.lru_cache(maxsize=4096)
def number(text):
    r"""Return the exact value (Fraction) of a normalised number, None if it is none or a division left undone.

    A number is an integer or a decimal number, with or without thousands separators, in scientific notation or not, a
    fraction or a mixed number. A fraction may have signs and fractions in it; its value must not be a whole number.

    >>> number("1,234.5"), number(r"-1\frac{1}{2}"), number(r"4.5\times10^{3}"), number(r"\frac{10}{2}"), number("2+3")
    (Fraction(2469, 2), Fraction(-3, 2), Fraction(4500, 1), None, None)
    >>> number(r"\frac{1}{-2}"), number(r"\frac{\frac{1}{2}}{3}")
    (Fraction(-1, 2), Fraction(1, 6))
    """
    if len(text) > LONGEST_TEXT:
        return None
    sign, text = split_sign(text)
    decimal = DECIMAL.fullmatch(text)
    if decimal and (decimal["digits"] or decimal["decimals"]):
        digits, decimals = re.sub("[, ]", "", decimal["digits"] or ""), decimal["decimals"] or ""
        exponent = int(decimal["e"] or decimal["digit"] or decimal["power"] or 0)
        return sign * int(digits + decimals) * Fraction(10) ** (exponent - len(decimals))
    mixed = MIXED.fullmatch(text)
    whole, text = (int(mixed[1]), mixed[2]) if mixed else (0, text)
    quotient = quotient_value(text)
    if quotient is None or quotient.denominator == 1:
        return None
    return sign * (whole + quotient)


def split_sign(text):
    """Return the sign that a text begins with, 1 or -1, and what follows it."""
    if text.startswith("-"):
        return -1, text[1:]
    return 1, text.removeprefix("+")


def quotient_value(text):
    r"""Return the value of a/b or \frac{a}{b} without a sign before it, or None (also for a division by zero)."""
    slash = SLASH.fullmatch(text)
    if slash:
        top, bottom = slash.groups()
    else:
        top = braced(text, len(r"\frac"), len(text)) if text.startswith(r"\frac{") else None
        if top is None:
            return None
        below = text[len(r"\frac{}") + len(top) :]
        bottom = braced(below, 0, len(below))
        if below != f"{{{bottom}}}":
            return None
    top, bottom = term_value(top), term_value(bottom)
    if top is None or bottom is None or bottom == 0:
        return None
    return top / bottom


def term_value(text):
    """Return the value of what stands above or below in a fraction, a whole number or a fraction, or None."""
    sign, text = split_sign(text)
    value = Fraction(int(text)) if WHOLE.fullmatch(text) else quotient_value(text)
    return None if value is None else sign * value


def stated_number(latex):
    r"""Return the number that an answer states, alone or beside words, units and the name of a variable, or None.

    >>> stated_number(r"x = 5\text{ cm}"), stated_number(r"5\text{ or }6")
    (Fraction(5, 1), None)
    """
    if LIST.search(latex):
        return None
    text = without_units(latex).strip(UNIT + " ")
    return number(NAME_IS.sub("", text, count=1))


@functools.lru_cache(maxsize=4096)
def without_units(latex):
    r"""Return the normalised text of an answer, with UNIT in the place of words that are no part of a formula.

    >>> without_units(r"5\text{ cm}") == "5" + UNIT, without_units(r"5\text{7}"), without_units(r"\text{-}5")
    (True, '57', '-5')
    """
    return normalize(TEXT_GROUP.sub(unit_or_content, latex))


def unit_or_content(match):
    """Return what replaces a \\text{...} in without_units. match: of TEXT_GROUP."""
    content = match[1]
    is_no_unit = not NO_UNITS.isdisjoint(content.split()) and not re.search("[0-9]", content)
    if is_no_unit or match[0].startswith(r"\operatorname"):
        return content
    return WORDS.sub(UNIT, content)


def equal_exactly(gold, answer):
    r"""Return whether two LaTeX answers (str) are equal: True, False, or None if text and exact numbers do not decide.

    A gold that is a plain number refuses an answer that leaves arithmetic undone: a question restated is no answer.
    So unreduced answers are wrong on purpose, as in OpenAI's and PRIME's graders: 45/9 for 5, 31.95/2 for 15.975,
    7! \times 2! for 10080. A fraction is no division left undone unless its value is a whole number: so 2/4 is right
    for 1/2 and, as in those graders, \frac{1}{-2} for -1/2 and the nested \frac{\frac{1}{2}}{3} for 1/6, while
    \frac{1}{\frac{1}{2}} for 2 is wrong. A number in another base is another number: 1101_3 is not 1101_2.

    >>> equal_exactly("0.5", r"\frac12"), equal_exactly("6", r"2\cdot3"), equal_exactly(r"2\pi", r"\pi+\pi")
    (True, False, None)
    """
    if answer == gold:
        return bool(gold.strip())
    if max(len(gold), len(answer)) > LONGEST_TEXT:
        return gold.split() == answer.split()
    if WHOLE.fullmatch(gold) and WHOLE.fullmatch(answer):  # the most frequent case, for speed
        return int(gold) == int(answer)

    normal_gold, normal = normalize(gold), normalize(answer)
    if not normal_gold or not normal:
        return False
    if normal == normal_gold:
        return True

    value = stated_number(gold)
    if value is not None:
        found = stated_number(answer)
        if found is not None:
            return found == value
        if UNDONE.search(without_units(answer).rpartition("=")[2]):  # after the name of a variable
            return False
    for one, other in ((normal_gold, normal), (normal, normal_gold)):
        if SET.fullmatch(one) and PAIR.fullmatch(other):
            return False  # math-verify takes a set for the interval or the point of the same numbers
    bases = [sorted(braces or bare for braces, bare in BASE.findall(text)) for text in (normal_gold, normal)]
    if len(bases[0]) == len(bases[1]) and bases[0] != bases[1]:
        return False
    units = [without_units(gold), without_units(answer)]
    if any(SEVERAL_UNITS.search(text) for text in units) or FACTOR.findall(units[0]) != FACTOR.findall(units[1]):
        return False  # math-verify would take the first number and leave out what follows

    words = TEXT_GROUP.fullmatch(gold.strip())
    if words and words[1].strip("() ").replace(" ", "").isalpha():
        # math-verify would take the words for products of letters
        return normal.strip("()").casefold() == normal_gold.strip("()").casefold()
    return None


def equal(golds, answers):
    """Return whether each pair of LaTeX answers is equal: B bools, None for a pair not decided in its time.

    golds, answers: B strs each, without their boxes. Raises RuntimeError if the helper process does not work.
    """
    pairs = []
    for gold, answer in zip(golds, answers, strict=True):
        pairs.append((CONSTANT.sub(r"\1", gold), CONSTANT.sub(r"\1", answer)))
    verdicts = {}
    undecided = []
    for pair in pairs:
        if pair not in verdicts:
            verdicts[pair] = equal_exactly(*pair)
            if verdicts[pair] is None:
                undecided.append(pair)
    if undecided:
        verdicts.update(zip(undecided, algebra.ask_helper(undecided), strict=True))
    return [verdicts[pair] for pair in pairs]

"""Count in a completion's text what R1-Zero is said to show, and name the mistake of a wrong one.

The first four behaviours are those of Gandhi et al. 2025 (arXiv 2503.01307), who had a language model find them. Here
they are fixed phrases: coarser, but the same in every run. What can be counted exactly is: the equations that a text
states are parsed and worked out by r1zero/grading/arithmetic.py. The work is linear in the length of the text.
"""

import functools
import re
from fractions import Fraction
from itertools import pairwise

from r1zero.grading.arithmetic import exact_value, tokenize
from r1zero.grading.extract import extract_answer

MISTAKES = ("no_answer", "bent_equation", "false_yes", "another_answer", "gave_up", "other")  # of name_mistake

# Searched for in lower case, with " not" for n't, one space for each whitespace, and one at both ends of the text. No
# phrase is part of another, so none counts twice.
# fmt: off
PHRASES = {
    "verification": [
        "check", "verify", "make sure", "see if", "let me confirm", "which equals", "which is equal to",
        "matches the target", "equals the target", "that works", "this works", "it works", "is correct",
        "that's correct", "that right", "this right",
    ],
    "backtracking": [
        "incorrect", "wrong", "too big", "too large", "too high", "too small", "too low", "dead end", "backtrack",
        "go back",
    ],
    "subgoals": [
        "subgoal", "sub-goal", "step 1", "step 2", "step 3", "first, let", "first, i", "first, we", "try to get",
        "aim for", "closer to", "multiple of", "next, ",
    ],
    "backward_chaining": [
        "work backward", "working backward", "from the target", "with the target", "factor of", "factors of",
        "divisor of", "divisors of",
    ],
    "restarts": [
        " hmm", "alternatively", "try again", "try another", "try something", "different approach", "different way",
        "different combination", "start over", "starting over",
    ],
}
# fmt: on
# Phrases that depend on what stands beside them. "26 no, ... 16 yes" are verdicts in the embedded default's traces.
PATTERNS = {
    "verification": re.compile(r" yes(?<=[0-9] yes)(?![a-z])"),
    "backtracking": re.compile(
        r" no(?:(?<=[0-9] no)(?![a-z])|t (?:[0-9]"
        r"|(?:it|right|correct|possible|enough|quite|what|equal|work|match|give|reach|the target)(?![a-z])))"
    ),
    "restarts": re.compile(r" wait(?![a-z])"),
}

BEHAVIOURS = (*PHRASES, "equations", "true_equations", "answer_multiplies")  # what count_behaviours counts
PLAIN_SIGNS = {"×": "*", "·": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/", " equals ": " = "}
LAST_VERDICT = re.compile(r".*= ?([0-9]{1,9}) (yes|no)(?![a-z])", re.DOTALL)
SIDE_CHARACTERS = "0123456789+-*/(). \t"  # of one side of an equation; a new line ends it
DECIMAL_NUMBER = re.compile(r"\s*[-+]?[0-9]*\.[0-9]*\s*")  # without an exponent, which Fraction reads too
LONG = 200  # tokens; a completion with more counts as long
LONGEST_SIDE = 200  # characters of one side of an equation, so that no number grows without bounds


def count_behaviours(text):
    """Count each of BEHAVIOURS in one completion (str). Return {name: int}; the mean over completions is a rate.

    verification, backtracking, subgoals, backward_chaining, restarts: phrases and verdicts. equations, true_equations:
    different equations stated, and how many of them are true. answer_multiplies: 1 if the answer is an expression with
    * or /.

    >>> counts = count_behaviours("6*2 = 12, 12+8 = 21 no. Wait, let me check: 12+8 = 20. <answer>6*2+8</answer>")
    >>> {name: count for name, count in counts.items() if count}
    {'verification': 1, 'backtracking': 1, 'restarts': 1, 'equations': 3, 'true_equations': 2, 'answer_multiplies': 1}
    """
    words = text.lower().replace("’", "'").replace("n't", " not").split()
    flat = f" {' '.join(words)} "
    counts = {behaviour: sum(map(flat.count, phrases)) for behaviour, phrases in PHRASES.items()}
    for behaviour, pattern in PATTERNS.items():
        counts[behaviour] += len(pattern.findall(flat))
    stated = equations(text)
    counts["equations"] = len(stated)
    counts["true_equations"] = sum(stated.values())
    answer = extract_answer(text) or ""
    counts["answer_multiplies"] = int(("*" in answer or "/" in answer) and expression_value(answer) is not None)
    return counts


def equations(text):
    """Return {equation: whether it is true} for the different equations that a text states, without their spaces.

    The left side is an expression, the right side a number or, in a chain, an expression. 3+7=10 and 7+3=10 are two
    equations. An approximate right side (10/3 = 3.33) is false.

    >>> equations("3*7 = 21: 21+5 = 26 no, 21-5 = 15 yes; again 3 × 7 equals 21")
    {'3*7=21': True, '21+5=26': True, '21-5=15': False}
    """
    for sign, plain in PLAIN_SIGNS.items():
        text = text.replace(sign, plain)
    found = {}
    for before, after in pairwise(text.split("=")):
        left = before[len(before.rstrip(SIDE_CHARACTERS)) :]
        right = after[: len(after) - len(after.lstrip(SIDE_CHARACTERS))]
        if not left or not right or max(len(left), len(right)) > LONGEST_SIDE:
            continue
        stated = read_equation(left, right)
        if stated is not None:
            equation, is_true = stated
            found[equation] = is_true
    return found


def name_mistake(text, target):
    """Return why a wrong completion (str) of a Countdown problem with this target (int) is wrong: one of MISTAKES.

    The first that holds counts. no_answer: it was cut off, or has no <answer>. bent_equation: it gives another
    expression the target as its value, `72+6 = 12` for 12. false_yes: it takes another value for the target, `26 yes`
    for 12. another_answer: it finds the target by a true equation and answers something else. gave_up: its last
    verdict is no.

    >>> name_mistake("72+6 = 12 yes</think> <answer>72+6</answer>", 12)
    'bent_equation'
    """
    if extract_answer(text) is None:
        return "no_answer"
    found_it = False
    for equation, is_true in equations(text).items():
        if expression_value(equation.rpartition("=")[2]) != target:
            continue
        if not is_true:
            return "bent_equation"
        found_it = True
    verdict = LAST_VERDICT.match(text)
    if verdict and verdict[2] == "yes" and int(verdict[1]) != target:
        return "false_yes"
    if found_it:
        return "another_answer"
    if verdict and verdict[2] == "no":
        return "gave_up"
    return "other"


@functools.lru_cache(1 << 14)
def read_equation(left, right):
    """Return (equation, whether it is true) for the text on both sides of an equals sign, None if it is no equation.

    Leave off what surrounds it: the end of a sentence before it and the beginning of one after it, the dash of a list,
    markdown's asterisks, and parentheses that open or close beyond it.

    >>> read_equation("1. (44 - 19) * 3 ", " 75. 3 "), read_equation("- 44+19", " 62)"), read_equation("2 4", " 6")
    (('(44-19)*3=75', True), ('44+19=62', False), None)
    """
    left = left.rpartition(". ")[2].lstrip("*/ \t").removeprefix("- ").strip()
    right = right.partition(". ")[0].rstrip("+-*/(. \t").strip()
    opened, closed = left.count("("), left.count(")")
    if opened > closed:
        left = left.partition("(")[2]
    elif opened < closed:
        left = left.partition(")")[2]
    if right.count(")") > right.count("("):
        right = right.rpartition(")")[0]
    if not any(operator in left[1:] for operator in "+-*/"):
        return None
    found, stated = expression_value(left), expression_value(right)
    if found is None or stated is None:
        return None
    return f"{left}={right}".replace(" ", ""), found == stated


def expression_value(text):
    """Return the exact value of an expression or a decimal number, None if a text (str) is neither.

    A text longer than LONGEST_SIDE is neither, so the value never has more digits than a page can hold.
    """
    if len(text) > LONGEST_SIDE:
        return None
    try:
        if DECIMAL_NUMBER.fullmatch(text):
            return Fraction(text)
        return exact_value(tokenize(text))
    except (ValueError, ZeroDivisionError):
        return None

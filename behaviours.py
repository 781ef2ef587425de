"""What R1-Zero is said to show, counted in a completion's text, and what kind of problem a Countdown problem is.

The first four behaviours are those of Gandhi et al. 2025 (arXiv 2503.01307), who had a language model find them. Here
they are fixed phrases, which is coarser, and the same in every run. What can be counted exactly is: the equations that
a text states are parsed and worked out by rewards.py. All of it is linear in the length of the text.
"""

import functools
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np

from preprocess import solvable_by_sums
from rewards import completion_text, evaluate, extract_answer, tokenize

# Looked for in lower case, with " not" for n't, a single space for each whitespace, and one at both ends. No phrase is
# part of another, so that none counts twice.
PHRASES = {
    "verification": "check|verify|make sure|see if|let me confirm|which equals|which is equal to|matches the target"
    "|equals the target|that works|this works|it works|is correct|that's correct|that right|this right",
    "backtracking": "incorrect|wrong|too big|too large|too high|too small|too low|dead end|backtrack|go back",
    "subgoals": "subgoal|sub-goal|step 1|step 2|step 3|first, let|first, i|first, we|try to get|aim for|closer to"
    "|multiple of|next, ",
    "backward_chaining": "work backward|working backward|from the target|with the target|factor of|factors of"
    "|divisor of|divisors of",
    "restarts": " hmm|alternatively|try again|try another|try something|different approach|different way"
    "|different combination|start over|starting over",
}
PHRASES = {behaviour: phrases.split("|") for behaviour, phrases in PHRASES.items()}
# The same for what needs a look around. " 26 no, ... 16 yes" are the verdicts of the embedded default's traces.
PATTERNS = {
    "verification": re.compile(r" yes(?<=[0-9] yes)(?![a-z])"),
    "backtracking": re.compile(
        r" no(?:(?<=[0-9] no)(?![a-z])|t (?:[0-9]"
        r"|(?:it|right|correct|possible|enough|quite|what|equal|work|match|give|reach|the target)(?![a-z])))"
    ),
    "restarts": re.compile(r" wait(?![a-z])"),
}

PLAIN = {"×": "*", "·": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/", " equals ": " = "}
SIDE_CHARACTERS = "0123456789+-*/(). \t"  # of one side of an equation; a new line ends it
METRIC_NAMES = {"+ - alone": "sums_suffice", "needs * or /": "needs_times_divide"}  # which trackers can have
LONG = 200  # tokens: a completion with more is counted as long
LONGEST_SIDE = 200  # characters: a longer one is no equation, so that no number grows without bounds


def value(side):
    """The exact value of one side of an equation, an expression or a decimal number, or None where it is neither."""
    try:
        return Fraction(side) if "." in side else evaluate(tokenize(side))
    except (ValueError, ZeroDivisionError):
        return None


@functools.lru_cache(1 << 14)
def equation(left, right):
    """(equation, whether it is true) from the text on both sides of an equals sign, or None where there is none.

    What surrounds an equation is left off: the end of a sentence before it or the beginning of one after it, the dash
    of a list, markdown's asterisks, and parentheses that open or close beyond it.

    >>> equation("1. (44 - 19) * 3 ", " 75. 3 "), equation("- 44+19", " 62)"), equation("2 4", " 6")
    (('(44-19)*3=75', True), ('44+19=62', False), None)
    """
    left = left.rpartition(". ")[2].lstrip("*/ \t").removeprefix("- ").strip()
    right = right.partition(". ")[0].rstrip("+-*/(. \t").strip()
    if beyond := left.count("(") - left.count(")"):
        left = left.partition("(" if beyond > 0 else ")")[2]
    if right.count(")") > right.count("("):
        right = right.rpartition(")")[0]
    found, stated = value(left), value(right)
    if found is None or stated is None or not set("+-*/") & set(left[1:]):
        return None
    return f"{left}={right}".replace(" ", ""), found == stated


def equations(text):
    """dict of the different equations that a text states, without spaces, to whether each is true.

    The left side is an expression, the right side a number or, in a chain, an expression. Different means a different
    text: 3+7=10 and 7+3=10 are two. An approximate right side (10/3 = 3.33) is false.

    >>> equations("3*7 = 21: 21+5 = 26 no, 21-5 = 15 yes; again 3 × 7 equals 21")
    {'3*7=21': True, '21+5=26': True, '21-5=15': False}
    """
    for sign, plain in PLAIN.items():
        text = text.replace(sign, plain)
    found = []
    for before, after in pairwise(text.split("=")):
        left = before[len(before.rstrip(SIDE_CHARACTERS)) :]
        right = after[: len(after) - len(after.lstrip(SIDE_CHARACTERS))]
        if left and right and len(left) <= LONGEST_SIDE >= len(right):
            found.append(equation(left, right))
    return dict(filter(None, found))


def behaviours(text):
    """Counts in one completion (str), as a dict of name to int; the mean over completions is a rate.

    verification, backtracking, subgoals, backward_chaining, restarts: phrases and verdicts; equations, true_equations:
    different equations stated, and those of them that are true; answer_multiplies: 1 if the answer is an expression
    with * or /.

    >>> counts = behaviours("6*2 = 12, 12+8 = 21 no. Wait, let me check: 12+8 = 20. <answer>6*2+8</answer>")
    >>> {name: count for name, count in counts.items() if count}
    {'verification': 1, 'backtracking': 1, 'restarts': 1, 'equations': 3, 'true_equations': 2, 'answer_multiplies': 1}
    """
    flat = text.lower().replace("’", "'").replace("n't", " not")
    flat = f" {' '.join(flat.split())} "
    counts = {behaviour: sum(map(flat.count, phrases)) for behaviour, phrases in PHRASES.items()}
    for behaviour, pattern in PATTERNS.items():
        counts[behaviour] += len(pattern.findall(flat))
    stated = equations(text)
    answer = extract_answer(text) or ""
    multiplies = ("*" in answer or "/" in answer) and value(answer[: LONGEST_SIDE + 1]) is not None
    return counts | {
        "equations": len(stated),
        "true_equations": sum(stated.values()),
        "answer_multiplies": int(multiplies),
    }


def cells(nums, target):
    """Where each Countdown problem stands: ("3 numbers", "+ - alone") or ("4 numbers", "needs * or /") and so on.

    nums: N lists of ints, target: N ints, None in rows of another task. Returns N pairs, None for those rows. A policy
    that never multiplies or divides solves the first half at most.
    """
    found = [None] * len(nums)
    for k in {len(row) for row in nums if row is not None}:
        own = [i for i, row in enumerate(nums) if row is not None and len(row) == k]
        sums = solvable_by_sums(np.array([nums[i] for i in own]), np.array([target[i] for i in own]))
        for i, alone in zip(own, sums, strict=True):
            found[i] = (f"{k} numbers", "+ - alone" if alone else "needs * or /")
    return found


def logged(reward):
    """A reward function (of rewards.py) that also logs what its completions show, through TRL's log_metric.

    Over the rows that it scores, one value a row: `behaviours/<name>`, a count of behaviours(), and the same of right
    and wrong completions as `behaviours_correct/<name>` and `behaviours_incorrect/<name>`, with whether it is longer
    than 200 tokens; for Countdown the accuracy in each of its cells, such as `cells/4_numbers_needs_times_divide`.
    """

    @functools.wraps(reward)
    def wrapped(completions, log_metric=None, **columns):
        if log_metric is None:
            return reward(completions=completions, **columns)
        right = []

        def log(name, value):
            log_metric(name, value)
            if name == "accuracy":
                right.append(value)

        scores = reward(completions=completions, log_metric=log, **columns)
        own = [i for i, score in enumerate(scores) if score is not None]
        judged = len(right) == len(own)  # another's reward may log no accuracy
        for i, correct in zip(own, right if judged else [None] * len(own), strict=True):
            counts = behaviours(completion_text(completions[i]))
            if "completion_ids" in columns:
                counts["over_200_tokens"] = len(columns["completion_ids"][i]) > LONG
            for name, count in counts.items():
                log_metric(f"behaviours/{name}", count)
                if judged:
                    log_metric(f"behaviours_{'correct' if correct else 'incorrect'}/{name}", count)
        if reward.__name__ == "countdown_reward":
            kinds = filter(None, cells(columns["nums"], columns["target"]))
            for (size, kind), correct in zip(kinds, right, strict=True):
                log_metric(f"cells/{size}_{METRIC_NAMES[kind]}".replace(" ", "_"), correct)
        return scores

    return wrapped

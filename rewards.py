"""Verifiable rewards: pure functions of a completion and its row's columns, with TRL's reward signature.

A reward function's name is its metric's name in every tracker (`rewards/<name>/mean`). Nothing here runs what a model
wrote: an answer is split into tokens, parsed, and worked out in exact fractions.
"""

import operator
import re
from fractions import Fraction

FORMAT_REWARD = 0.1
CORRECT_REWARD = 1.0

TOKEN = re.compile(r"[0-9]+|[-+*/()]|[ \t\r\n]+")  # ASCII on purpose: any other character makes the answer wrong
BINARY = {"+": (1, operator.add), "-": (1, operator.sub), "*": (2, operator.mul), "/": (2, Fraction)}
SIGN = {"+": (3, operator.pos), "-": (3, operator.neg)}  # binds tighter than every binary operator


def completion_text(completion):
    """The text of a completion that TRL gives as a string or as a list of chat messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def extract_answer(text):
    """The content of the last complete <answer>...</answer>, stripped, or None where there is none.

    >>> extract_answer("<answer>1+2</answer> no, wait: <answer> 2*3 </answer>")
    '2*3'
    """
    last_close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, last_close) if last_close >= 0 else -1
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


def tokenize(text):
    """Numbers, operators and parentheses as list[str]; ValueError where anything but them and whitespace is there."""
    tokens = TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise ValueError("a character that is no part of an expression")
    return [token for token in tokens if not token.isspace()]


def evaluate(tokens):
    """The exact value of an infix expression, an int or a Fraction.

    Shunting-yard on two stacks rather than recursion, so that no depth of parentheses can exhaust the interpreter.
    Raises ValueError where the expression is malformed and ZeroDivisionError where it divides by zero.
    """
    values, pending = [], []  # pending: (precedence, function, number of operands), or None for an open parenthesis

    def apply_down_to(precedence):
        while pending and pending[-1] and pending[-1][0] >= precedence:
            _, function, arity = pending.pop()
            operands = values[-arity:]
            values[-arity:] = [function(*operands)]

    value_is_next = True
    for token in tokens:
        if value_is_next and token in SIGN:
            pending.append((*SIGN[token], 1))
        elif value_is_next and token == "(":
            pending.append(None)
        elif value_is_next and token.isdigit():
            values.append(int(token))
            value_is_next = False
        elif not value_is_next and token in BINARY:
            precedence, function = BINARY[token]
            apply_down_to(precedence)
            pending.append((precedence, function, 2))
            value_is_next = True
        elif not value_is_next and token == ")":
            apply_down_to(0)
            if not pending:
                raise ValueError("a parenthesis that was never opened")
            pending.pop()
        else:
            raise ValueError(f"{token} where {'a value' if value_is_next else 'an operator'} belongs")
    if value_is_next:
        raise ValueError("an expression that stops where a value belongs")
    apply_down_to(0)
    if pending:
        raise ValueError("a parenthesis that was never closed")
    return values[0]


def solves_countdown(answer, nums, target):
    """Whether `answer` (str) is an expression in exactly the numbers `nums` (list[int]) whose value is `target` (int).

    >>> solves_countdown("(25 - 3) * 2", [2, 3, 25], 44), solves_countdown("25 + 2*9", [2, 9, 25, 3], 43)
    (True, False)
    """
    try:
        tokens = tokenize(answer)
        # Compared as text before anything is worked out: 07 is not 7, and no number is larger than those given.
        if sorted(token for token in tokens if token.isdigit()) != sorted(map(str, nums)):
            return False
        return evaluate(tokens) == target
    except (ValueError, ZeroDivisionError):
        return False


def countdown_reward(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    """TinyZero's Countdown score: 0 without an answer, 0.1 for a wrong one, 1.0 for a right one.

    completions: B texts (or chat messages) that follow the prompt; nums: B lists of ints; target: B ints, None in rows
    of another task. Returns B floats, None for those rows. Logs `accuracy` and `format_rate` as plain fractions and
    the columns target, numbers, equation, verdict for the table of completions.

    >>> countdown_reward(["20+5 = 25 </think> <answer>20 + 5 * 2</answer>"] * 2, [[2, 5, 20]] * 2, [30, 44])
    [1.0, 0.1]

    Source: compute_score in TinyZero's verl/utils/reward_score/countdown.py, which evaluates the answer as Python and
    allows an error of 1e-5. Stricter here: exact arithmetic, so a near miss is wrong, and only + - * / ( ) and plain
    decimal integers, so `**`, `//`, `2.5*10` from [2, 5, 10], `07` and `equation = target` are wrong. More lenient
    here: the last complete answer counts wherever it stands, not only on the last line, and it may span lines.
    """
    rewards, equations = [], []
    for completion, row_nums, row_target in zip(completions, nums, target, strict=True):
        answer = extract_answer(completion_text(completion)) if row_target is not None else None
        equations.append(answer)
        if row_target is None:
            rewards.append(None)
        elif answer is None:
            rewards.append(0.0)
        else:
            rewards.append(CORRECT_REWARD if solves_countdown(answer, row_nums, row_target) else FORMAT_REWARD)
    own = [reward for reward in rewards if reward is not None]
    if log_metric is not None and own:
        log_metric("accuracy", sum(reward == CORRECT_REWARD for reward in own) / len(own))
        log_metric("format_rate", sum(reward > 0 for reward in own) / len(own))
    if log_extra is not None:
        verdicts = {None: "", 0.0: "no answer", FORMAT_REWARD: "wrong", CORRECT_REWARD: "correct"}
        log_extra("target", list(target))
        log_extra("numbers", [str(row_nums) for row_nums in nums])
        log_extra("equation", equations)
        log_extra("verdict", [verdicts[reward] for reward in rewards])
    return rewards

"""Work out expressions of whole numbers and + - * / ( ) exactly, without running what a model wrote.

An expression is split into tokens, parsed, and worked out in integers and fractions, so a near miss is a miss.
"""

import operator
import re
from fractions import Fraction

TOKEN = re.compile(r"[0-9]+|[-+*/()]")
TOKEN_CHARACTERS = "0123456789+-*/() \t\r\n"  # ASCII alone: any other character makes the answer wrong
SIGN_PRECEDENCE = 3  # a sign binds tighter than every binary operator


def tokenize(text):
    """Return numbers, operators and parentheses (list[str]). Raises ValueError for all else but whitespace."""
    if text.strip(TOKEN_CHARACTERS):
        raise ValueError("a character that is no part of an expression")
    return TOKEN.findall(text)


def divide(a, b):
    """Return the exact quotient: an int if it is whole, for speed, otherwise a Fraction."""
    if type(a) is type(b) is int and a % b == 0:
        return a // b
    return Fraction(a, b)


BINARY = {"+": (1, operator.add), "-": (1, operator.sub), "*": (2, operator.mul), "/": (2, divide)}
SIGN = {"+": (SIGN_PRECEDENCE, operator.pos), "-": (SIGN_PRECEDENCE, operator.neg)}


def apply_down_to(precedence, values, pending):
    """Carry out the operators on top of the stack `pending` that bind at least as tightly as `precedence`."""
    while pending and pending[-1] and pending[-1][0] >= precedence:
        rank, function = pending.pop()
        if rank == SIGN_PRECEDENCE:
            values[-1] = function(values[-1])
        else:
            right = values.pop()
            values[-1] = function(values[-1], right)


def exact_value(tokens):
    """Return the exact value, an int or a Fraction, of an infix expression (list[str] of tokenize).

    Shunting-yard on two stacks instead of recursion, so that no depth of parentheses can exhaust the interpreter.
    Raises ValueError if the expression is malformed, and ZeroDivisionError.

    >>> exact_value(tokenize("8 / (3 - 8/3)"))
    Fraction(24, 1)
    """
    values, pending = [], []  # pending: (precedence, function), or None for an open parenthesis
    value_is_next = True
    for token in tokens:
        if value_is_next:
            if token.isdigit():
                values.append(int(token))
                value_is_next = False
            elif token == "(":
                pending.append(None)
            elif token in SIGN:
                pending.append(SIGN[token])
            else:
                raise ValueError(f"found {token}, wanted a value")
        elif token in BINARY:
            apply_down_to(BINARY[token][0], values, pending)
            pending.append(BINARY[token])
            value_is_next = True
        elif token == ")":
            apply_down_to(0, values, pending)
            if not pending:
                raise ValueError("a parenthesis that was never opened")
            pending.pop()
        else:
            raise ValueError(f"found {token}, wanted an operator")
    if value_is_next:
        raise ValueError("found the end, wanted a value")
    apply_down_to(0, values, pending)
    if pending:
        raise ValueError("a parenthesis that was never closed")
    return values[0]


def solves_countdown(answer, nums, target):
    """Return whether `answer` (str) is an expression in exactly the numbers `nums` (ints) of the value `target` (int).

    >>> solves_countdown("(25 - 3) * 2", [2, 3, 25], 44), solves_countdown("25 + 2*9", [2, 9, 25, 3], 43)
    (True, False)
    """
    try:
        tokens = tokenize(answer)
        # Compare as text before anything is worked out: 07 is not 7, and no number is larger than those given.
        used = [token for token in tokens if token.isdigit()]
        if sorted(used) != sorted(map(str, nums)):
            return False
        return exact_value(tokens) == target
    except (ValueError, ZeroDivisionError):
        return False

"""What is counted in a completion's text, case by case, and the names of mistakes; hostile texts are elsewhere.

The cases stand in tests/cases/behaviours.tsv, with texts and what is expected as JSON.
bash tests/run.sh tests/test_behaviours.py
"""

import ast
import json
import operator
import re
from fractions import Fraction

from conftest import each_case
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1zero.grading.behaviours import BEHAVIOURS, MISTAKES, PHRASES, count_behaviours, equations, name_mistake


@each_case("behaviours.tsv")
def test_text_is_counted(case):
    text, expected = json.loads(case["text"]), json.loads(case["expected"])
    counts = count_behaviours(text)
    assert tuple(counts) == BEHAVIOURS
    match case["kind"]:
        case "phrases":
            assert {name: counts[name] for name in PHRASES if counts[name]} == expected
        case "equations":
            assert equations(text) == expected
            assert (counts["equations"], counts["true_equations"]) == (len(expected), sum(expected.values()))
        case "answer_multiplies":
            assert counts["answer_multiplies"] == expected
        case "mistake":
            assert name_mistake(text, 12) == expected and expected in MISTAKES


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(alphabet="0123456789+-*/() .=\n", max_size=80))
@example("1+1=2" * 3)
def test_true_equations_of_any_text_are_true(text):
    for equation, is_true in equations(text).items():
        left, right = equation.split("=")
        assert (by_python(left) == by_python(right)) == is_true


def by_python(side):
    """The value of an expression or a decimal number by Python's own parser, as a Fraction."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def walk(node):
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand) if isinstance(node.op, ast.USub) else walk(node.operand)
        return Fraction(node.value)

    if "." in side:
        return Fraction(side)
    whole = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", side)  # Python has no 007
    return walk(ast.parse(whole, mode="eval").body)

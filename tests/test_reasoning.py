"""What is counted in a completion's text, case by case; hostile texts are in test_hostile_text.py.

bash tests/run.sh tests/test_reasoning.py
"""

import ast
import doctest
import itertools
import operator
import re
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1zero.grading import behaviours as reasoning
from r1zero.grading.behaviours import (
    BEHAVIOURS,
    MISTAKES,
    PATTERNS,
    PHRASES,
    count_behaviours,
    equations,
    name_mistake,
)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(reasoning) == (0, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Let me check: 12+8 is 20.", {"verification": 1}, id="let me check"),
        pytest.param("12 + 8, which equals 20", {"verification": 1}, id="which equals"),
        pytest.param("Let me double-check", {"verification": 1}, id="double-check counts once"),
        pytest.param("LET\nME   VERIFY", {"verification": 1}, id="capitals and line breaks"),
        pytest.param("21-5 = 16 yes\n</think>", {"verification": 1}, id="a yes after a number"),
        pytest.param("yes, 5 yesterday", {}, id="any other yes"),
        pytest.param("That doesn't work.", {"backtracking": 1}, id="doesn't work"),
        pytest.param("That doesn’t work.", {"backtracking": 1}, id="a curly apostrophe"),
        pytest.param("it does not equal 98", {"backtracking": 1}, id="does not equal"),
        pytest.param("No, that's not it.", {"backtracking": 1}, id="not it"),
        pytest.param("This is 91, not 39", {"backtracking": 1}, id="not a number"),
        pytest.param("75 is too big", {"backtracking": 1}, id="too big"),
        pytest.param("21+5 = 26 no, 21-5 = 16 no", {"backtracking": 2}, id="a no after a number"),
        pytest.param("no 5 notes, not items, 5 nodes", {}, id="any other no"),
        pytest.param("First, let me make 24, a multiple of 8", {"subgoals": 2}, id="sub-goals"),
        pytest.param("Working backwards, 24 has the factors of 8", {"backward_chaining": 2}, id="backward chaining"),
        pytest.param("Wait. Alternatively, try again!", {"restarts": 3}, id="restarts"),
        pytest.param("wait\nhmm", {"restarts": 2}, id="at both ends of the text"),
        pytest.param("the waiter waited for await", {}, id="wait in another word"),
        pytest.param("", {}, id="nothing"),
    ],
)
def test_phrases_and_verdicts_are_counted(text, expected):
    counts = count_behaviours(text)
    assert {name: counts[name] for name in PHRASES if counts[name]} == expected


def test_the_names_are_those_of_what_is_counted():
    assert tuple(count_behaviours("")) == BEHAVIOURS


def test_no_phrase_counts_twice():
    every = [phrase for phrases in PHRASES.values() for phrase in phrases]
    assert [(a, b) for a, b in itertools.permutations(every, 2) if a in b] == []
    for phrases in PHRASES.values():
        for phrase in phrases:
            counts = count_behaviours(f"x{phrase}x" if phrase.strip() == phrase else phrase)
            assert sum(counts[name] for name in PHRASES) == 1, phrase


def test_no_pattern_looks_further_than_a_few_characters():
    """So that each is linear in the text, however hostile."""
    for pattern in PATTERNS.values():
        assert not set("*+{") & set(pattern.pattern), "nothing in it repeats"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("12+8=20", {"12+8=20": True}, id="an equation"),
        pytest.param("12 + 8 = 21", {"12+8=21": False}, id="a false one"),
        pytest.param("3*7 = 21: 21+5 = 26 no, 21-5 = 16 yes", {"3*7=21": 1, "21+5=26": 1, "21-5=16": 1}, id="a trace"),
        pytest.param("1+2=3, then 1 + 2 = 3", {"1+2=3": True}, id="one repeated"),
        pytest.param("1+2=3 and 2+1=3", {"1+2=3": True, "2+1=3": True}, id="another order is another equation"),
        pytest.param("1+2=3 and 1+2=4", {"1+2=3": True, "1+2=4": False}, id="another result is another equation"),
        pytest.param("2*3+4 = 6+4 = 10", {"2*3+4=6+4": True, "6+4=10": True}, id="a chain"),
        pytest.param("12+8 = 20. 20+5 = 25.", {"12+8=20": True, "20+5=25": True}, id="two sentences"),
        pytest.param("12+8 = 20\n20+5 = 25\n", {"12+8=20": True, "20+5=25": True}, id="two lines"),
        pytest.param("1. 12+8 = 20\n- 20+5 = 25\n* 25-5 = 20", {"12+8=20": 1, "20+5=25": 1, "25-5=20": 1}, id="lists"),
        pytest.param("**12+8 = 20**", {"12+8=20": True}, id="bold type"),
        pytest.param("(12+8 = 20)", {"12+8=20": True}, id="an equation in parentheses"),
        pytest.param("12+8 = 20 (too small)", {"12+8=20": True}, id="a parenthesis after it"),
        pytest.param("a) 12+8 = 20 - not it", {"12+8=20": True}, id="a dash after it"),
        pytest.param("((1+2)*3) = 9", {"((1+2)*3)=9": True}, id="parentheses of its own"),
        pytest.param("-5+20 = 15", {"-5+20=15": True}, id="a leading sign"),
        pytest.param("7/2 = 3.5", {"7/2=3.5": True}, id="a decimal number"),
        pytest.param("10/3 = 3.33", {"10/3=3.33": False}, id="an approximation"),
        pytest.param("8/(3-8/3) = 24", {"8/(3-8/3)=24": True}, id="a fraction on the way"),
        pytest.param("3 × 7 − 6 ÷ 2 = 18", {"3*7-6/2=18": True}, id="typographic signs"),
        pytest.param(r"3 \times 7 = 21", {"3*7=21": True}, id="LaTeX signs"),
        pytest.param("3*7 equals 21", {"3*7=21": True}, id="equals in words"),
        pytest.param("x = 5, 20 = 20, 1+x = 2, 3 = 1+2", {}, id="nothing to work out on the left"),
        pytest.param("12+8 != 21, 12+8 == 20, 12+8 =", {}, id="other operators and no right side"),
        pytest.param("2**5 = 32, 7//2 = 3, 2.5*10 = 25, 5 2+1 = 8", {}, id="no expressions of whole numbers"),
        pytest.param("5/(2-2) = 0", {}, id="division by zero"),
        pytest.param("٣+٤ = 7", {}, id="digits of another script"),
        pytest.param("9" * 201 + "+1 = 2", {}, id="a side too long to be one"),
    ],
)
def test_equations_that_a_text_states_are_worked_out(text, expected):
    assert equations(text) == expected
    counts = count_behaviours(text)
    assert (counts["equations"], counts["true_equations"]) == (len(expected), sum(expected.values()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>20+5*2</answer>", 1),
        ("<answer>20/5</answer>", 1),
        ("5*2 <answer>20+5</answer>", 0),
        ("<answer>5*2</answer> no, <answer>5+2</answer>", 0),
        ("<answer>yes/no</answer>", 0),
        ("<answer>5*2", 0),
    ],
)
def test_answer_multiplies_where_the_last_answer_is_an_expression_that_does(text, expected):
    assert count_behaviours(text)["answer_multiplies"] == expected


def test_a_megabyte_of_different_equations_is_counted():
    text = ", ".join(f"{n}*{n}={n * n + n % 2}" for n in range(50_000))
    assert [count_behaviours(text)[name] for name in ("equations", "true_equations")] == [50_000, 25_000]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(alphabet="0123456789+-*/() .=\n", max_size=80))
@example("1+1=2" * 3)
def test_any_text_is_counted_and_its_true_equations_are_true(text):
    counts = count_behaviours(text)
    assert all(isinstance(count, int) and count >= 0 for count in counts.values())
    for equation, is_true in equations(text).items():
        left, right = equation.split("=")
        assert (by_python(left) == by_python(right)) == is_true


def by_python(side):
    """The value of an expression or a decimal number by Python's own parser, as a Fraction."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def walk(node):
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.UnaryOp):
            return walk(node.operand)
        return Fraction(node.value)

    if "." in side:
        return Fraction(side)
    whole = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", side)  # Python has no 007
    return walk(ast.parse(whole, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("3*7 = 21: 21-5 = 16 no, 21", "no_answer"),
        ("72+6 = 12 yes</think> <answer>72+6</answer>", "bent_equation"),
        ("So 72 / 6 - 1 = 12. <answer>72/6-1</answer>", "bent_equation"),
        ("72/6 = 12: 12+9 = 21 yes</think> <answer>72/6+9</answer>", "false_yes"),
        ("72/6 = 12 yes</think> <answer>72-6</answer>", "another_answer"),
        ("72/6 = 12 no</think> <answer>72-6</answer>", "another_answer"),
        ("72-6 = 66 no, 72+6 = 78 no</think> <answer>72+6</answer>", "gave_up"),
        ("72+6 = 78 nothing else. <answer>72+6</answer>", "other"),
        ("I know it. <answer>72</answer>", "other"),
        ("= 9999999999999999999 yes <answer></answer>", "other"),
    ],
)
def test_mistake_has_a_name(text, mistake):
    assert name_mistake(text, 12) == mistake and mistake in MISTAKES

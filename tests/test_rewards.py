"""countdown_reward case by case, and against texts made to break it.   bash tests/run.sh tests/test_rewards.py"""

import ast
import doctest
import operator
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rewards
from rewards import countdown_reward


def score(completion, nums=(2, 5, 20), target=30):
    return countdown_reward([completion], [list(nums)], [target])[0]


def answer(expression):
    return f"12 + 8 = 20, so\n</think>\n<answer>{expression}</answer>"


@pytest.mark.parametrize(
    ("expression", "nums", "target"),
    [
        pytest.param("20+5*2", (2, 5, 20), 30, id="precedence of * over +"),
        pytest.param(" ( 20 + 5 ) * 2 ", (2, 5, 20), 50, id="parentheses and spaces"),
        pytest.param("20\n+ 5\n* 2", (2, 5, 20), 30, id="an expression over several lines"),
        pytest.param("-5 + 20 * 2", (2, 5, 20), 35, id="a leading sign"),
        pytest.param("20 * -2 / -(3 - 5 - 2)", (2, 2, 3, 5, 20), -10, id="signs after operators"),
        pytest.param("8/(3-8/3)", (3, 3, 8, 8), 24, id="a fraction on the way to a whole number"),
        pytest.param("1/3+1/3+1/3", (1, 1, 1, 3, 3, 3), 1, id="thirds that floats only nearly add up"),
        pytest.param("20-5-2", (2, 5, 20), 13, id="- binds to the left"),
        pytest.param("20/5/2", (2, 5, 20), 2, id="/ binds to the left"),
        pytest.param("((((20))))+(5*(2))", (2, 5, 20), 30, id="superfluous parentheses"),
        pytest.param("7", (7,), 7, id="a single number"),
    ],
)
def test_right_expression_scores_one(expression, nums, target):
    assert score(answer(expression), nums, target) == 1.0


@pytest.mark.parametrize(
    ("expression", "nums", "target"),
    [
        pytest.param("20+5+2", (2, 5, 20), 30, id="wrong value"),
        pytest.param("20+5*2", (2, 5, 5, 20), 30, id="a number left out"),
        pytest.param("20+5+5", (2, 5, 20), 30, id="a number used twice"),
        pytest.param("30", (2, 5, 20), 30, id="the target itself"),
        pytest.param("20+5*2 = 30", (2, 5, 20), 30, id="equation = target"),
        pytest.param("2 ** 5", (2, 5), 32, id="power operator"),
        pytest.param("7 // 2", (2, 7), 3, id="floor division"),
        pytest.param("7 % 2", (2, 7), 1, id="remainder"),
        pytest.param("2.5*10", (2, 5, 10), 25, id="a decimal point between two given numbers"),
        pytest.param("1_0+2", (10, 2), 12, id="an underscore in a number"),
        pytest.param("07+1", (7, 1), 8, id="a leading zero"),
        pytest.param("1e1+2", (1, 1, 2), 12, id="an exponent"),
        pytest.param("0x5+2", (0, 5, 2), 7, id="hexadecimal"),
        pytest.param("\u0665+2", (5, 2), 7, id="unicode digits"),
        pytest.param("5\u00d72", (5, 2), 10, id="a multiplication sign that is no *"),
        pytest.param("5\u00a0+ 2", (5, 2), 7, id="a no-break space"),
        pytest.param("(5)(2)", (5, 2), 10, id="multiplication without operator"),
        pytest.param("5 2", (5, 2), 52, id="numbers without operator"),
        pytest.param("5/(2-2)", (5, 2, 2), 0, id="division by zero"),
        pytest.param("73 - 1/100/(87*96)", (73, 1, 100, 87, 96), 73, id="a near miss within 1e-5"),
        pytest.param("(5+2", (5, 2), 7, id="a parenthesis never closed"),
        pytest.param("5+2)", (5, 2), 7, id="a parenthesis never opened"),
        pytest.param("5+*2", (5, 2), 10, id="two operators"),
        pytest.param("5+2+", (5, 2), 7, id="an operator at the end"),
        pytest.param("()", (), 0, id="empty parentheses"),
        pytest.param("", (), 0, id="empty answer"),
        pytest.param("five plus two", (5, 2), 7, id="words"),
        pytest.param("__import__('os').system('touch /tmp/x')", (5, 2), 7, id="code"),
        pytest.param("9**9**9", (9, 9, 9), 9, id="an endless power"),
        pytest.param("1" * 10**6, (1,), 1, id="a megabyte of digits"),
        pytest.param("(" * 10**4 + "1", (1,), 1, id="ten thousand open parentheses"),
    ],
)
def test_wrong_expression_scores_the_format_reward(expression, nums, target):
    assert score(answer(expression), nums, target) == 0.1


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        pytest.param("20+5*2", 0.0, id="no tag"),
        pytest.param("", 0.0, id="empty"),
        pytest.param("<answer>20+5*2", 0.0, id="a tag never closed"),
        pytest.param("20+5*2</answer>", 0.0, id="a tag never opened"),
        pytest.param("</answer>20+5*2<answer>", 0.0, id="tags the wrong way round"),
        pytest.param("<ANSWER>20+5*2</ANSWER>", 0.0, id="tags in capitals"),
        pytest.param("<answer>20+5*2</answer> and so on", 1.0, id="text after the answer"),
        pytest.param("<answer>\n20+5*2\n</answer>\n\n", 1.0, id="an answer on its own line"),
        pytest.param(
            "<answer>2</answer> wait, <answer>20+5*2</answer>", 1.0, id="the last answer counts, not the first"
        ),
        pytest.param("<answer>20+5*2</answer> or <answer>2</answer>", 0.1, id="the last answer counts, right or not"),
        pytest.param("<answer>20+5*2</answer> or <answer>2", 1.0, id="the last complete answer counts"),
        pytest.param("<answer> <answer>20+5*2</answer>", 1.0, id="an open tag before the answer"),
        pytest.param("<answer>20+5*2</answer></answer>", 1.0, id="a closing tag too many"),
        pytest.param("<answer>" * 10**4 + "20+5*2</answer>", 1.0, id="ten thousand open tags"),
        pytest.param("<answer>" * 10**4, 0.0, id="ten thousand open tags, none closed"),
        pytest.param([{"role": "assistant", "content": "<answer>20+5*2</answer>"}], 1.0, id="a chat message"),
    ],
)
def test_last_complete_answer_is_the_one_that_counts(completion, expected):
    assert score(completion) == expected


def test_ten_thousand_parentheses_around_a_right_answer_are_right():
    assert score(answer("(" * 10**4 + "20+5*2" + ")" * 10**4)) == 1.0


def test_rows_of_another_task_get_none():
    assert countdown_reward(["<answer>7</answer>"] * 2, [[7], None], [7, None]) == [1.0, None]


def test_metrics_and_columns_are_logged():
    metrics, columns = {}, {}
    countdown_reward(
        [answer("5+2"), answer("5-2"), "5+2"],
        nums=[[2, 5]] * 3,
        target=[7] * 3,
        log_metric=metrics.__setitem__,
        log_extra=columns.__setitem__,
    )
    assert metrics == {"accuracy": pytest.approx(1 / 3), "format_rate": pytest.approx(2 / 3)}
    assert columns == {
        "target": [7, 7, 7],
        "numbers": ["[2, 5]"] * 3,
        "equation": ["5+2", "5-2", None],
        "verdict": ["correct", "wrong", "no answer"],
    }


def test_examples_in_docstrings_hold():
    assert doctest.testmod(rewards).failed == 0


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def python_value(expression):
    """The value by Python's own parser, in fractions: an independent second opinion on well-formed expressions."""

    def value(node):
        match node:
            case ast.Constant():
                return Fraction(node.value)
            case ast.UnaryOp(ast.USub()):
                return -value(node.operand)
            case ast.UnaryOp(ast.UAdd()):
                return value(node.operand)
            case ast.BinOp():
                return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise TypeError(node)

    return value(ast.parse(expression, mode="eval").body)


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=8,
)


@given(expressions)
def test_value_agrees_with_pythons_parser(expression):
    tokens = rewards.tokenize(expression)
    try:
        expected = python_value(expression)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            rewards.evaluate(tokens)
    else:
        assert rewards.evaluate(tokens) == expected
        nums = [int(token) for token in tokens if token.isdigit()]
        assert score(answer(expression), nums, expected) == 1.0
        assert score(answer(expression), nums, expected + 1) == 0.1


@settings(max_examples=300)
@given(st.text(alphabet="0123456789+-*/() .=_\n<>answer", max_size=60), st.lists(st.integers(0, 99), max_size=4))
@example("", [])
def test_any_text_gets_one_of_the_three_rewards(text, nums):
    assert score(text, nums) == 0.0 or "</answer>" in text
    assert score(answer(text), nums) in (0.1, 1.0)

"""Each reward case by case; hostile texts are in test_hostile_text.py.   bash tests/run.sh tests/test_rewards.py"""

import ast
import doctest
import operator
from collections import defaultdict
from fractions import Fraction
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from r1zero.grading import arithmetic
from r1zero.grading import extract as answers
from r1zero.grading.arithmetic import exact_value, tokenize
from r1zero.grading.extract import last_box
from rewards import boxed_math_reward, countdown_reward, multiplication_reward


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
        pytest.param([{"role": "assistant", "content": "<answer>20+5*2</answer>"}], 1.0, id="a chat message"),
    ],
)
def test_last_complete_answer_is_the_one_that_counts(completion, expected):
    assert score(completion) == expected


def test_ten_thousand_parentheses_around_a_right_answer_are_right():
    assert score(answer("(" * 10**4 + "20+5*2" + ")" * 10**4)) == 1.0


def test_rows_of_another_task_get_none():
    assert countdown_reward(["<answer>7</answer>"] * 2, [[7], None], [7, None]) == [1.0, None]


def logged(reward, *columns):
    """What a reward logs: the mean of each metric, as TRL averages it, and the columns."""
    metrics, extra = defaultdict(list), {}
    reward(*columns, log_metric=lambda name, value: metrics[name].append(value), log_extra=extra.__setitem__)
    return {name: mean(values) for name, values in metrics.items()}, extra


def test_metrics_and_columns_are_logged():
    metrics, columns = logged(countdown_reward, [answer("5+2"), answer("5*2"), "5+2"], [[2, 5]] * 3, [7] * 3)
    rates = {"accuracy": pytest.approx(1 / 3), "format_rate": pytest.approx(2 / 3), "times_divide_rate": 0.5}
    assert metrics == rates
    assert columns == {
        "target": [7, 7, 7],
        "numbers": ["[2, 5]"] * 3,
        "equation": ["5+2", "5*2", None],
        "verdict": ["correct", "wrong", "no answer"],
    }


def test_shared_runs_log_accuracy_over_all_rows_and_for_each_task():
    metrics, extra = defaultdict(list), {}
    log = {"log_metric": lambda name, value: metrics[name].append(value), "log_extra": extra.__setitem__}
    completions = [answer("5+2"), r"\boxed{7}", r"\boxed{8}", r"\boxed{9}"]
    first = countdown_reward(completions, [[2, 5], None, None, None], [7, None, None, None], **log)
    second = boxed_math_reward(completions, [None, "7", "8", "7"], **log)
    assert first == [1.0, None, None, None] and second == [None, 1.1, 1.1, 0.1]
    means = {name: mean(values) for name, values in metrics.items()}
    assert means == {
        "accuracy": 0.75,
        "format_rate": 1.0,
        "accuracy/countdown": 1.0,
        "accuracy/boxed_math": pytest.approx(2 / 3),
        "undecided": 0.0,
        "times_divide_rate": 0.0,
    }
    assert len(extra) == 7 and all(len(values) == 4 for values in extra.values()), "no column is written twice"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        pytest.param("<answer>391</answer>", 1.0, id="the product"),
        pytest.param("<answer>\n391\n</answer>\nDone.", 1.0, id="an answer over several lines, text after it"),
        pytest.param("<answer>390</answer> no, <answer>391</answer>", 1.0, id="the last answer counts"),
        pytest.param([{"role": "assistant", "content": "<answer>391</answer>"}], 1.0, id="a chat message"),
        pytest.param("<answer>390</answer>", 0.1, id="another number"),
        pytest.param("<answer>3_91</answer>", 0.1, id="an underscore"),
        pytest.param("<answer>391.0</answer>", 0.1, id="a decimal"),
        pytest.param("<answer>17*23</answer>", 0.1, id="the question"),
        pytest.param("<answer>= 391</answer>", 0.1, id="an equals sign"),
        pytest.param("<answer>17 * 23 = 391</answer>", 0.1, id="an equation"),
        pytest.param("<answer>3 91</answer>", 0.1, id="a space"),
        pytest.param("<answer>0391</answer>", 0.1, id="a leading zero"),
        pytest.param("<answer>\u0663\u0669\u0661</answer>", 0.1, id="unicode digits"),
        pytest.param("<answer></answer>", 0.1, id="an empty answer"),
        pytest.param("391", 0.0, id="no tag"),
        pytest.param("<answer>391", 0.0, id="a tag never closed"),
    ],
)
def test_product_is_a_plain_integer(completion, expected):
    assert multiplication_reward([completion], ["391"]) == multiplication_reward([completion], [391]) == [expected]


def test_products_of_another_task_get_none():
    assert multiplication_reward(["<answer>7</answer>"] * 2, ["7", None]) == [1.0, None]
    assert logged(multiplication_reward, ["<answer>8</answer>", ""], ["7", "7"]) == (
        {"accuracy": 0.0, "format_rate": 0.5},
        {"product": ["7", "7"], "stated_product": ["8", None], "product_verdict": ["wrong", "no answer"]},
    )


@pytest.mark.parametrize(
    ("text", "content"),
    [
        pytest.param(r"so \boxed{5}.", "5", id="a box"),
        pytest.param(r"\boxed{5} no, \boxed{6}", "6", id="the last one counts"),
        pytest.param(r"\boxed{5}\boxed{6}", "6", id="adjacent boxes are not merged"),
        pytest.param(r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", id="nested braces"),
        pytest.param(r"\boxed{" + "{" * 10**4 + "5" + "}" * 10**4 + "}", "{" * 10**4 + "5" + "}" * 10**4, id="depth"),
        pytest.param(r"\boxed{\{1, 2\}}", r"\{1, 2\}", id="escaped braces"),
        pytest.param(r"\boxed{\left\{ x \right.}", r"\left\{ x \right.", id="an escaped brace without its other"),
        pytest.param(r"\boxed{\boxed{5}}", "5", id="a box in a box"),
        pytest.param(r"\fbox{5}", "5", id="fbox"),
        pytest.param(r"\boxed 5", "5", id="a box without braces"),
        pytest.param(r"$\boxed 5$ apples", "5", id="a box without braces in math mode"),
        pytest.param(r"\boxed \frac{1}{2} or so", r"\frac{1}{2}", id="a command without braces"),
        pytest.param(r"\boxed {5}", "5", id="a space before the brace"),
        pytest.param("\\boxed{\n5\n}", "5", id="several lines"),
        pytest.param(r"\boxed{5} so \boxed{6", "5", id="the last complete one counts"),
        pytest.param(r"\boxed{5} so \boxed{}", "5", id="the last one with content counts"),
        pytest.param(r"{ \boxed{5}", "5", id="a brace before it that never closes"),
        pytest.param(r"\boxed{x \boxed{5} y", "5", id="a complete box in one that never closes"),
        pytest.param(r"\boxed{}", None, id="an empty box"),
        pytest.param(r"\boxed{ }", None, id="a blank box"),
        pytest.param(r"\boxed", None, id="nothing to box"),
        pytest.param(r"\boxed{5", None, id="a box that never closes"),
        pytest.param(r"\boxedx{5}", None, id="another command"),
        pytest.param("boxed{5}", None, id="no backslash"),
        pytest.param("", None, id="nothing"),
        pytest.param(r"\boxed{" * 10**5, None, id="a hundred thousand boxes that never close"),
        pytest.param(r"\boxed{5}" + r"\boxed{" * 10**5, "5", id="the same after a complete one"),
        pytest.param(r"\boxed{}" * 10**5, None, id="a hundred thousand empty boxes"),
    ],
)
def test_last_box_with_content_is_found(text, content):
    assert last_box(text) == content


class TestBoxedMath:
    def test_values_are_the_recipes(self):
        completions = ["5", r"\boxed{}", r"\boxed{6}", r"\boxed{5}"]
        assert boxed_math_reward(completions, ["5"] * 4) == [0.0, 0.0, 0.1, 1.1]

    def test_gold_may_stand_in_either_column_and_in_a_box(self):
        for column in ("solution", "ground_truth"):
            for gold in ("5", "$5$", r"so it is \boxed{5}.", 5):
                assert boxed_math_reward([r"\boxed{5}", r"\boxed{6}"], **{column: [gold] * 2}) == [1.1, 0.1]

    def test_lack_of_either_column_is_an_error(self):
        with pytest.raises(ValueError, match=r"found the columns \['answer'\], wanted solution or ground_truth"):
            boxed_math_reward([r"\boxed{5}"], answer=["5"])

    def test_empty_gold_accepts_nothing(self):
        assert boxed_math_reward([r"\boxed{0}", r"\boxed{x}", ""], ["", " ", r"\boxed{}"]) == [0.1, 0.1, 0.0]

    def test_rows_of_another_task_get_none(self):
        assert boxed_math_reward([r"\boxed{5}"] * 2, ["5", None]) == [1.1, None]

    def test_chat_messages_are_read(self):
        assert boxed_math_reward([[{"role": "assistant", "content": r"\boxed{5}"}]], ["5"]) == [1.1]

    def test_computer_algebra_is_asked(self):
        assert boxed_math_reward([r"\boxed{(x-1)(x+1)}", r"\boxed{x^2}"], ["x^2-1"] * 2) == [1.1, 0.1]

    def test_what_cannot_be_decided_is_wrong_and_counted(self):
        completions = [r"\boxed{9^{9^{9^9}}}", r"\boxed{2x}", r"\boxed{y}"]
        metrics, columns = logged(boxed_math_reward, completions, ["x^2", "x+x", "x"])
        assert columns["boxed_verdict"] == ["undecided", "correct", "wrong"]
        assert columns["gold"] == ["x^2", "x+x", "x"] and columns["boxed"] == ["9^{9^{9^9}}", "2x", "y"]
        assert metrics == {name: pytest.approx(1 / 3) for name in ("accuracy", "undecided")} | {"format_rate": 1.0}


@pytest.mark.parametrize("module", [rewards, answers, arithmetic], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


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
    tokens = tokenize(expression)
    try:
        expected = python_value(expression)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            exact_value(tokens)
    else:
        assert exact_value(tokens) == expected
        nums = [int(token) for token in tokens if token.isdigit()]
        assert score(answer(expression), nums, expected) == 1.0
        assert score(answer(expression), nums, expected + 1) == 0.1

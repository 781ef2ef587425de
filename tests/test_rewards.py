"""Each reward, and each count of a text, case by case; hostile texts are in test_hostile_text.py.

The cases stand in tests/cases/rewards.tsv and behaviours.tsv, with texts and what is expected as JSON.
bash tests/run.sh tests/test_rewards.py
"""

import json
import re
from collections import defaultdict
from fractions import Fraction
from statistics import mean

import pytest
from conftest import each_case
from hypothesis import given
from hypothesis import strategies as st

from r1zero.grading import algebra
from r1zero.grading.arithmetic import exact_value, tokenize
from r1zero.grading.behaviours import BEHAVIOURS, MISTAKES, PHRASES, count_behaviours, equations, name_mistake
from r1zero.grading.extract import last_box, python_block
from rewards import boxed_math_reward, countdown_reward, multiplication_reward


def score(completion, nums=(2, 5, 20), target=30):
    return countdown_reward([completion], [list(nums)], [target])[0]


def answer(expression):
    return f"12 + 8 = 20, so\n</think>\n<answer>{expression}</answer>"


@each_case("rewards.tsv")
def test_completion_scores(case):
    completion, row, expected = (json.loads(case[name]) for name in ("completion", "given", "expected"))
    match case["kind"]:
        case "expression":  # in a Countdown answer
            assert score(answer(completion), *row) == expected
        case "countdown":
            assert score(completion, *row) == expected
        case "product":
            assert multiplication_reward([completion] * 2, [row, str(row)]) == [expected] * 2
        case "maths":
            assert boxed_math_reward([completion], solution=[row]) == [expected]
            assert boxed_math_reward([completion], ground_truth=[row]) == [expected]
        case "box":  # the last one with content
            assert last_box(completion) == expected
        case "program":  # the last complete one
            assert python_block(completion) == expected


def test_texts_of_any_length_and_depth_are_read():
    nested = "{" * 10**4 + "5" + "}" * 10**4
    assert score("<answer>" * 10**4 + "20+5*2</answer>") == 1.0
    assert score(answer("(" * 10**4 + "20+5*2" + ")" * 10**4)) == 1.0
    assert last_box(r"\boxed{" + nested + "}") == nested
    assert last_box(r"\boxed{" * 10**5) is last_box(r"\boxed{}" * 10**5) is None
    assert last_box(r"\boxed{5}" + r"\boxed{" * 10**5) == "5"
    assert python_block("```python\n" * 10**5) is python_block("```" * 10**6) is None
    assert python_block("```python\na\n```\n" * 10**5) == "a"


def logged(*calls):
    """What rewards log of a batch: the mean of each metric, as TRL averages it, and the columns.

    calls: (reward, completions, columns...).
    """
    metrics, extra = defaultdict(list), {}
    for reward, *columns in calls:
        reward(*columns, log_metric=lambda name, value: metrics[name].append(value), log_extra=extra.__setitem__)
    return {name: mean(values) for name, values in metrics.items()}, extra


def test_rows_of_another_task_get_none_and_accuracy_is_over_all_rows_and_for_each_task():
    completions = [answer("5*2"), r"\boxed{7}", r"\boxed{8}", r"\boxed{9}"]
    countdown = (countdown_reward, completions, [[2, 5], None, None, None], [10, None, None, None])
    maths = (boxed_math_reward, completions, [None, "7", "8", "7"])
    given = [reward(*columns) for reward, *columns in (countdown, maths)]
    assert given == [[1.0, None, None, None], [None, 1.1, 1.1, 0.1]]
    assert multiplication_reward(completions, [None, None, None, "7"]) == [None, None, None, 0.0]
    metrics, columns = logged(countdown, maths)
    assert metrics == {
        "accuracy": 0.75,
        "format_rate": 1.0,
        "accuracy/countdown": 1.0,
        "accuracy/boxed_math": pytest.approx(2 / 3),
        "undecided": 0.0,
        "times_divide_rate": 1.0,
    }
    assert columns == {
        "target": [10, None, None, None],
        "numbers": ["[2, 5]", None, None, None],
        "equation": ["5*2", None, None, None],
        "verdict": ["correct", "", "", ""],
        "gold": [None, "7", "8", "7"],
        "boxed": [None, "7", "8", "9"],
        "boxed_verdict": ["", "correct", "correct", "wrong"],
    }
    assert logged((multiplication_reward, ["<answer>8</answer>", ""], ["7", "7"])) == (
        {"accuracy": 0.0, "format_rate": 0.5},
        {"product": ["7", "7"], "stated_product": ["8", None], "product_verdict": ["wrong", "no answer"]},
    )


def test_what_algebra_cannot_decide_is_wrong_and_counted(monkeypatch):
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 2)
    completions = [r"\boxed{9^{9^{9^9}}}", r"\boxed{2x}", r"\boxed{y}"]
    metrics, columns = logged((boxed_math_reward, completions, ["x^2", "x+x", "x"]))
    assert columns["boxed_verdict"] == ["undecided", "correct", "wrong"]
    assert metrics == {name: pytest.approx(1 / 3) for name in ("accuracy", "undecided")} | {"format_rate": 1.0}


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
        expected = eval(re.sub("([0-9]+)", r"Fraction(\1)", expression), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            exact_value(tokens)
    else:
        assert exact_value(tokens) == expected
        nums = [int(token) for token in tokens if token.isdigit()]
        assert score(answer(expression), nums, expected) == 1.0
        assert score(answer(expression), nums, expected + 1) == 0.1


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

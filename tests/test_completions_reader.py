"""What the page's reader shows of a table of completions.   bash tests/run.sh tests/test_completions_reader.py"""

import json
import math
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1zero.report.completions import EVALUATIONS, PROBLEMS, read_completion, read_completions
from r1zero.report.run_folder import TABLES_BEFORE

TABLES = TABLES_BEFORE | {"spelling": ("spelling_answer", "spelling_verdict", ["spelling_problem"])}


OF_TASKS = {  # what a row holds: problem, answer, verdict, and the answer's value
    "maths, beside empty columns of other tasks": (
        {"boxed": "1/2", "gold": "0.5", "boxed_verdict": "correct", "verdict": "", "code_verdict": None},
        ({"gold": "0.5"}, "1/2", "correct", None),
    ),
    "multiplication without an answer": (
        {"product": "391", "stated_product": None, "product_verdict": "no answer"},
        ({"product": "391"}, None, "no answer", None),
    ),
    "an equation without a value": (
        {"equation": "7/0", "numbers": "[7, 0]", "target": 1, "verdict": "wrong"},
        ({"numbers": "[7, 0]", "target": 1}, "7/0", "wrong", None),
    ),
    "a fraction, and a target that a mixture has made a float": (
        {"equation": "7/2", "numbers": "[7, 2]", "target": 3.0, "verdict": "wrong"},
        ({"numbers": "[7, 2]", "target": 3}, "7/2", "wrong", "7/2"),
    ),
    "a user's reward": (
        {"spelling_answer": "tsetse", "spelling_verdict": "correct", "spelling_problem": "a fly"},
        ({"problem": "a fly"}, "tsetse", "correct", None),
    ),
    "a user's reward that logs verdicts alone": ({"spelling_verdict": "wrong"}, ({}, None, "wrong", None)),
    "what JSON does not know": (
        {"spelling_answer": ["t", "s"], "spelling_verdict": "wrong", "spelling_problem": math.inf},
        ({"problem": "inf"}, "['t', 's']", "wrong", None),
    ),
    "a chat": ({"completion": [{"role": "assistant", "content": "text"}]}, ({}, None, "", None)),
}


@pytest.mark.parametrize(("row", "expected"), OF_TASKS.values(), ids=OF_TASKS)
def test_completions_of_every_task_are_read(row, expected):
    about, answer, verdict, value = expected
    found = read_completion({"completion": "text", "spelling": None} | row, TABLES)
    mistake = found[1].pop("mistake")
    assert (mistake is not None) == (verdict == "wrong" and "target" in about)
    shown = {"text": "text", "answer": answer, "value": value, "verdict": verdict, "reward": 0, "changed": False}
    assert found == (about, shown)
    json.dumps(found, allow_nan=False)


def test_rewards_of_a_completion_are_added():
    row = {"completion": "text", "countdown_reward": None, "spelling": 0.5, "length": -0.25}
    assert read_completion(row, TABLES | {"length": ("", "", [])})[1]["reward"] == 0.25


def make_tables(folder, steps, problems=4, **settings):
    """What read_completions needs of a run: tables of two rows of training and `problems` of an evaluation."""
    (folder / "completions").mkdir()
    each = settings.get("num_generations_eval") or settings.get("num_generations") or 1
    for step in steps:
        rows = [{"prompt": "training", "completion": "x"}] * 2
        for i in range(problems):
            rows += [{"prompt": f"problem {i}", "completion": f"step {step}, number {n}"} for n in range(each)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "completions" / f"completions_{step:05d}.parquet")
    history = [{"step": at, "eval_reward": 0.1, "eval_completions/mean_length": 9.0} for at in (*steps, 99)]
    settings |= {"reward_funcs": ["mine:spelling"]}
    return SimpleNamespace(
        folder=folder, settings=settings, config="", metrics={"after": {"n": problems}}, history=history
    )


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        pytest.param({}, 1, id="settings of an early version"),
        pytest.param({"num_generations": 4, "num_generations_eval": 2}, 2, id="two in an evaluation"),
        pytest.param({"num_generations": 3}, 3, id="as many as in training, TRL's default"),
    ],
)
def test_rows_of_training_are_left_out_and_several_completions_of_a_problem_are_told_apart(tmp_path, settings, each):
    found = read_completions(make_tables(tmp_path, [0, 8], **settings))
    assert found["steps"] == [0, 8] and found["of"] == 4 * each
    texts = [[at["text"] for at in problem["at"].values()] for problem in found["problems"]]
    assert texts == [[f"step {step}, number {n}" for step in (0, 8)] for _ in range(4) for n in range(each)]


def test_many_evaluations_and_problems_are_thinned_out_from_the_first_to_the_last(tmp_path):
    found = read_completions(make_tables(tmp_path, range(0, 80, 2), problems=PROBLEMS + 50))
    assert len(found["steps"]) == EVALUATIONS and (found["steps"][0], found["steps"][-1]) == (0, 78)
    assert max(b - a for a, b in zip(found["steps"], found["steps"][1:], strict=False)) <= 8
    assert len(found["problems"]) == PROBLEMS and found["of"] == PROBLEMS + 50


def test_table_that_cannot_be_read_is_left_out_and_told(tmp_path, capsys):
    run = make_tables(tmp_path, [0, 8, 16])
    cut, other = (tmp_path / "completions" / f"completions_{step:05d}.parquet" for step in (8, 16))
    cut.write_bytes(cut.read_bytes()[:-9])
    pq.write_table(pq.read_table(other).drop_columns("completion"), other)
    assert read_completions(run)["steps"] == [0]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{cut} is left out of the page, as it cannot be read (")
    assert second == f"{other} is left out of the page, as it cannot be read (it lacks completion)"

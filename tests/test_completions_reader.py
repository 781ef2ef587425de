"""What the page's reader shows of a table of completions.   bash tests/run.sh tests/test_completions_reader.py

The rows stand in tests/cases/shown_completions.tsv, with what is shown of each as JSON.
"""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import each_case

from r1zero.report.completions import EVALUATIONS, PROBLEMS, read_completion, read_completions
from r1zero.report.run_folder import TABLES_BEFORE

TABLES = TABLES_BEFORE | {"length": ("", "", [])}
TABLES |= {"spelling": ("spelling_answer", "spelling_verdict", ["spelling_problem"])}


@each_case("shown_completions.tsv")
def test_completions_of_every_task_are_read(case):
    expected = {name: json.loads(case[name]) for name in ("answer", "verdict", "value", "reward")}
    row, about = json.loads(case["row"]), json.loads(case["problem"])
    found = read_completion({"completion": "text", "spelling": None} | row, TABLES)
    mistake = found[1].pop("mistake")
    assert (mistake is not None) == (expected["verdict"] == "wrong" and "target" in about)
    assert found == (about, expected | {"text": "text", "changed": False})
    json.dumps(found, allow_nan=False)


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

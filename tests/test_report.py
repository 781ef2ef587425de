"""report.html of a run and the comparison of several."""

import html
import json
import re
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import each_case, reader_of

from r1zero.report import page, run_folder
from r1zero.report.completions import EVALUATIONS, PROBLEMS, read_completion, read_completions
from r1zero.training.reward_functions import ours

HOSTILE = "</script><script>document.title = 'taken over'</script><!-- <b>not bold</b> & \u2028 ünï"
TABLES = {name: function.task.table for name, function in ours().items()} | {"length": ("", "", [])}
TABLES |= {"spelling": ("spelling_answer", "spelling_verdict", ["spelling_problem"])}


def make_run(folder, seed=0, accuracy=(0.1, 0.2, 0.6), rewards=("countdown_reward",), **settings):
    """A folder as train_countdown.py leaves it, with evaluations of three problems at three steps.

    accuracy: of the three evaluations, None for a reward that says of nothing whether it is right.
    """
    (folder / "completions").mkdir(parents=True)
    settings = {"model_name_or_path": f"models/tiny-{seed}", "data_dir": "data/countdown", "seed": seed} | settings
    settings |= {"reward_funcs": list(rewards), "output_dir": str(folder)}
    settings = {"learning_rate": 1e-6, "num_generations": 8, "num_generations_eval": 1} | settings
    tables = {name: TABLES[name] for name in (name.removeprefix("mine:") for name in rewards)}
    comments = f"# commit {HOSTILE!r}\n{run_folder.TABLES}{json.dumps(tables)}\n"
    (folder / "config.yaml").write_text(comments + yaml.safe_dump(settings))
    history = []
    row = {"completion": f"{HOSTILE}</think> <answer>1+2</answer>", "equation": "1+2", "verdict": "wrong"}
    row |= {"numbers": "[1, 2]", "target": 9, "countdown_reward": 0.1, "advantage": 0.0}
    for i, step in enumerate((0, 4, 8)):
        metrics = {"reward": 0.1 * i - 0.05, "completions/mean_length": 50.0, "behaviours/restarts": step}
        metrics |= {"accuracy": accuracy[i], "format_rate": 0.9} if accuracy else {"edit_distance": 12.5 - i}
        if step:
            history.append({"step": step, **metrics})
        history.append({"step": step, **{f"eval_{name}": value for name, value in metrics.items()}})
        # Two rows of training, then those of the evaluation
        rows = [row | {"step": step, "prompt": f"{number} {HOSTILE}"} for number in range(5)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "completions" / f"completions_{step:05d}.parquet")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 16}))
    evaluated = [{**evaluation, "n": 3} for evaluation in run_folder.evaluations(history)]
    metrics = {"before": evaluated[0], "after": evaluated[-1], "steps": 8, "train_seconds": 80.0, "completions": 64}
    metrics |= {"completion_tokens": 4000, "phases": {}, "extremes": {}}
    metrics |= {"own_metrics": [] if accuracy else ["edit_distance"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "mine")
    page.write(folder)
    return folder


def text_of(path):
    return html.unescape(path.read_text(encoding="utf-8"))


def test_page_holds_everything_and_asks_for_nothing(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2 and HOSTILE not in text
    for found in ("8 of 16", "60.0% (17.2 to 91.5)", "learning_rate: 1.0e-06", "1.3 min", "# commit", "restarts"):
        assert found in html.unescape(text), found
    # The addresses in an SVG are names of its vocabulary, which nothing fetches
    asked_for = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert asked_for and all(target.startswith(("#", "data:")) for target in asked_for)
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")


def test_memory_that_a_run_took_stands_beside_the_estimate(run):
    measured = page.read(run)
    measured.metrics["extremes"] = {"memory/process": 5.12, "reward_min": -0.5, "reward_max": 1.0}
    rows = page.what_it_took(measured)
    assert ("memory", "the process took 5.1 GiB") in rows and ("least and greatest reward", "-0.5, 1") in rows
    measured.metrics["extremes"] |= {"memory/card": 27.41, "memory/estimated": 30.0}
    took = "estimated 30.0 GiB on the card, took 27.4; the process took 5.1 GiB"
    assert ("memory", took) in page.what_it_took(measured)


def test_run_without_evaluation_or_even_a_step_has_a_page(tmp_path):
    folder = make_run(tmp_path / "run")
    shutil.rmtree(folder / "completions")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [], "max_steps": 16}))
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"before": None, "after": None, "steps": 0}))
    page.main([str(folder)])
    text = text_of(folder / "report.html")
    assert "Nothing has been logged yet" in text and "there was no evaluation" in text


def test_page_and_card_of_a_reward_that_says_of_nothing_whether_it_is_right(tmp_path, capsys):
    folder = make_run(tmp_path / "run", accuracy=None, rewards=["mine:spelling"])
    metrics = page.write(folder)
    rows = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert {"│ accuracy (95 % interval) │ - │ - │", "│ mean reward │ -0.050 │ 0.150 │"} <= set(rows), rows
    text = text_of(folder / "report.html")
    assert re.search(r"<td>mean reward</td>\s*<td>-0.050</td>\s*<td>0.150</td>", text)
    assert re.search(r"<th colspan=\"9\">Logged by the rewards</th>", text)
    assert re.search(r"<td>edit_distance</td>\s*<td>12.5</td>\s*<td>10.5</td>", text)
    assert text.count("<svg") == 3
    assert {problem["at"]["2"]["verdict"] for problem in reader_of(folder)["problems"]} == {""}
    (folder / "README.md").write_text("[None](https://huggingface.co/None)")
    page.complete_card(folder / "README.md", metrics, "models/tiny")
    card = (folder / "README.md").read_text()
    assert "| mean reward | -0.050 | 0.150 |" in card and card.startswith("`models/tiny`\n")


def test_seeds_are_averaged_and_other_settings_and_runs_without_accuracy_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")  # wide enough for the table
    shares = {0: (0.1, 0.2, 0.5), 1: (0.2, 0.4, 0.9)}
    folders = [make_run(tmp_path / f"base-{seed}", seed, accuracy) for seed, accuracy in shares.items()]
    folders.append(make_run(tmp_path / "faster", learning_rate=2e-6))
    folders.append(tmp_path / "faster" / ".")  # the same run again
    folders.append(make_run(tmp_path / "own", accuracy=None, rewards=["mine:spelling"]))
    page.main([*map(str, folders), "--output", str(tmp_path / "new" / "page.html")])
    rows = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert any(row.startswith("│ base │ 2 │ 15.0% ± 7.1% ") for row in rows), rows
    assert "│ faster │ 1 │ 10.0% │ 60.0% │ -0.050 │ 0.150 │ 50.0 │ 1.3 │" in rows, rows
    assert "│ own │ 1 │ - │ - │ -0.050 │ 0.150 │ 50.0 │ 1.3 │" in rows, rows
    text = text_of(tmp_path / "new" / "page.html")
    assert re.search(r"<td>learning_rate</td>\s*<td>1e-06</td>\s*<td>2e-06</td>", text)
    assert not re.search(r"<td>(seed|output_dir|model_name_or_path)</td>", text), "what every seed has of its own"
    assert ">edit_distance</text>" in text and "['mine:spelling']" in text


# The completions


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
    each = settings.get("num_generations_eval") or settings["num_generations"]
    for step in steps:
        rows = [{"prompt": "training", "completion": "x"}] * 2
        for i in range(problems):
            rows += [{"prompt": f"problem {i}", "completion": f"step {step}, number {n}"} for n in range(each)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "completions" / f"completions_{step:05d}.parquet")
    history = [{"step": at, "eval_reward": 0.1, "eval_completions/mean_length": 9.0} for at in (*steps, 99)]
    metrics = {"after": {"n": problems}}
    config = f"{run_folder.TABLES}{{}}"
    return SimpleNamespace(folder=folder, settings=settings, config=config, metrics=metrics, history=history)


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        pytest.param({"num_generations": 4, "num_generations_eval": 2}, 2, id="two in an evaluation"),
        pytest.param({"num_generations": 3}, 3, id="as many as in training, TRL's default"),
    ],
)
def test_rows_of_training_are_left_out_and_several_completions_of_a_problem_are_told_apart(tmp_path, settings, each):
    found = read_completions(make_tables(tmp_path, [0, 8], **settings))
    assert found["steps"] == [0, 8] and found["of"] == 4 * each
    texts = [[at["text"] for at in problem["at"].values()] for problem in found["problems"]]
    assert texts == [[f"step {step}, number {n}" for step in (0, 8)] for _ in range(4) for n in range(each)]


def test_many_evaluations_and_problems_are_thinned_out_and_a_table_that_cannot_be_read_is_left_out(tmp_path, capsys):
    run = make_tables(tmp_path, range(0, 80, 2), problems=PROBLEMS + 50, num_generations=1)
    found = read_completions(run)
    assert len(found["steps"]) == EVALUATIONS and (found["steps"][0], found["steps"][-1]) == (0, 78)
    assert max(b - a for a, b in zip(found["steps"], found["steps"][1:], strict=False)) <= 8
    assert len(found["problems"]) == PROBLEMS and found["of"] == PROBLEMS + 50
    cut = tmp_path / "completions" / "completions_00078.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    assert read_completions(run)["steps"] == found["steps"][:-1]
    assert f"{cut} is left out of the page, as it cannot be read (" in capsys.readouterr().out

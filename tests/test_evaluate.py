"""Evaluations of tiny models on the CPU: metrics, resuming, users' own rewards, and refusals.

bash tests/run.sh tests/test_evaluate.py
"""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ENVIRONMENT, PATIENCE, ROOT

import rewards
from r1zero import tiny_model as tiny
from r1zero.evaluate import checks as evaluation_checks
from r1zero.evaluate import command as evaluate
from r1zero.evaluate import engines
from r1zero.grading import behaviours as reasoning
from r1zero.grading import sandbox
from r1zero.intervals import pass_at_k

SMALL = {"limit": 24, "batch_size": 8, "max_completion_length": 12}


def words(models, data, output_dir, **flags):
    flags = SMALL | {"data": data, "output_dir": output_dir} | flags
    return ["--model", *map(str, models), *(f"--{key}={value}" for key, value in flags.items() if value is not None)]


def run(model, data, output_dir, **flags):
    """Evaluates a model in this process; returns its metrics."""
    evaluate.main(words([model], data, output_dir, **flags))
    return json.loads((output_dir / model.name / "metrics.json").read_text())


def table(folder):
    return pq.read_table(folder / "completions.parquet")


@pytest.fixture
def problems(tiny_data):
    return tiny_data / "test.parquet"


@pytest.fixture
def saying(monkeypatch):
    """Puts an engine in place that gives the texts of say(prompt), a list of n, and lists the sizes of its batches."""

    def put(say):
        batches = []

        @contextlib.contextmanager
        def engine(model, args, state):
            def generate(prompts, seeds):
                batches.append(len(prompts))
                texts = [text for prompt in prompts for text in say(model.tokenizer.decode(prompt))]
                assert len(texts) == len(seeds) == len(prompts) * args.n
                return [row + model.ends + [7] for row in model.tokenizer(texts)["input_ids"]]

            yield generate

        monkeypatch.setattr(engines, "transformers_engine", engine)
        return batches

    return put


def numbers_of(prompt):
    nums, target = prompt.split("the numbers [")[1].split("], create an equation that equals ")
    return list(map(int, nums.split(", "))), int(target.split(".")[0])


class TestMetrics:
    def test_all_metrics_are_those_of_what_was_said(self, saying, tiny_model, problems, tmp_path):
        """Right by search where the first number is odd; no answer where it is even."""

        def say(prompt):
            nums, target = numbers_of(prompt)
            tried = tiny.search(nums, target)
            if nums[0] % 2 and tried:
                return [tiny.write_trace(tried, solved=True)]
            return ["wait, 1+1 = 3"]

        saying(say)
        metrics = run(tiny_model, problems, tmp_path, limit=None)
        rows = pq.read_table(problems).to_pylist()
        solved = [bool(row["nums"][0] % 2 and tiny.search(row["nums"], row["target"])) for row in rows]
        share = sum(solved) / len(rows)
        assert metrics["problems"] == 256 and 0.2 < share < 0.8
        assert metrics["accuracy"] == metrics["format_rate"] == metrics["pass@k"]["1"] == pytest.approx(share)
        assert metrics["reward"] == pytest.approx(share) and metrics["truncated"] == 0
        low, high = metrics["accuracy_interval"]
        width = 2 * 1.96 * math.sqrt(share * (1 - share) / 256)
        assert low < share < high and high - low == pytest.approx(width, rel=0.02)

        found = table(tmp_path / "model").to_pylist()
        assert [row["row"] for row in found] == list(range(256))
        assert [row["correct"] for row in found] == solved
        lengths = [row["tokens"] for row in found]
        assert metrics["mean_completion_tokens"] == pytest.approx(np.mean(lengths))
        assert metrics["median_completion_tokens"] == np.median(lengths)

        cells = metrics["cells"]
        assert cells.keys() == {"3 numbers, + - alone", "3 numbers, needs * or /"}
        assert sum(cell["problems"] for cell in cells.values()) == 256
        assert sum(cell["problems"] * cell["accuracy"] for cell in cells.values()) == pytest.approx(sum(solved))
        assert cells["3 numbers, needs * or /"]["answers_that_multiply"] == 1.0
        assert 0 <= cells["3 numbers, + - alone"]["answers_that_multiply"] < 0.5

        counted = metrics["behaviours"]
        assert counted["restarts"] == {"all": pytest.approx(1 - share), "correct": 0.0, "incorrect": 1.0}
        assert counted["verification"]["correct"] == 1.0 and counted["verification"]["incorrect"] == 0.0
        assert counted["equations"]["incorrect"] == 1.0 and counted["true_equations"]["incorrect"] == 0.0
        tries = [
            len(tiny.search(row["nums"], row["target"])) for row, right in zip(rows, solved, strict=True) if right
        ]
        assert counted["backtracking"]["correct"] == pytest.approx(np.mean(tries) - 1)

    def test_pass_at_k_is_over_the_completions_of_each_problem(self, saying, tiny_model, problems, tmp_path):
        """Of four completions of a problem, as many are right as its first number leaves by 4."""

        def say(prompt):
            nums, target = numbers_of(prompt)
            solution = tiny.search(nums, target)[-1][3] if tiny.search(nums, target) else "1"
            right = nums[0] % 4
            return [f"<answer>{solution}</answer>"] * right + ["<answer>1</answer>"] * (4 - right)

        saying(say)
        metrics = run(tiny_model, problems, tmp_path, n=4, temperature=0.6, limit=50)
        found = table(tmp_path / "model").to_pylist()
        assert len(found) == 200 and len({row["row"] for row in found}) == 50
        by_problem = [found[i : i + 4] for i in range(0, 200, 4)]
        assert all(len({row["row"] for row in four}) == 1 for four in by_problem)
        right = [sum(row["correct"] for row in four) for four in by_problem]
        assert {0, 1, 2, 3} == set(right)
        for k in (1, 2, 4):
            assert metrics["pass@k"][str(k)] == pytest.approx(np.mean([pass_at_k(4, c, k) for c in right]))
        assert metrics["accuracy"] == pytest.approx(metrics["pass@k"]["1"])

    @pytest.mark.parametrize(
        ("task", "reward", "answer", "logged"),
        [
            pytest.param(
                "multiply",
                "multiplication_reward",
                "<answer>{product}</answer>",
                {"product", "stated_product", "product_verdict"},
                id="multiplication",
            ),
            pytest.param(
                "x_r1_750",
                "boxed_math_reward",
                "\\boxed{{{solution}}}",
                {"gold", "boxed", "boxed_verdict"},
                id="boxed maths",
            ),
            pytest.param(
                "countdown",
                "countdown_reward",
                "<answer>{target}</answer>",
                {"target", "numbers", "equation", "verdict"},
                id="countdown",
            ),
        ],
    )
    def test_every_task_is_scored_by_the_reward_of_its_columns(
        self, saying, long_model, data, tmp_path, task, reward, answer, logged
    ):
        """Every second completion is empty, the others answer."""
        rows = pq.read_table(data / task / "train.parquet")
        texts = [answer.format(**row) if i % 2 else "" for i, row in enumerate(rows.to_pylist())]
        said = iter(texts)
        saying(lambda prompt: [next(said)])
        metrics = run(long_model, data / task / "train.parquet", tmp_path, limit=None)
        found = table(tmp_path / "long")
        columns = {name: rows[name].to_pylist() for name in rows.column_names if name != "prompt"}
        expected = getattr(rewards, reward)(completions=found["completion"].to_pylist(), **columns)
        assert found["reward"].to_pylist() == expected
        assert found["answered"].to_pylist() == [bool(text) for text in texts]
        assert found["correct"].to_pylist() == [bool(text) and task != "countdown" for text in texts]
        assert metrics["accuracy"] == (0 if task == "countdown" else metrics["format_rate"])
        assert logged <= set(found.column_names)
        assert bool(metrics["cells"]) == (task == "countdown")

    @pytest.mark.skipif(sandbox.why_unavailable() is not None, reason="bubblewrap does not start here")
    def test_programs_are_right_where_they_pass_all_their_tests(self, saying, long_model, data, tmp_path):
        saying(lambda prompt: ["```python\nprint(2)\n```"])
        run(long_model, data / "eurus" / "train.parquet", tmp_path, limit=4)
        found = table(tmp_path / "long")
        programs = found.filter(pc.is_valid(found["tests_passed"]))
        assert programs["correct"].to_pylist() == [passed == 1 for passed in programs["tests_passed"].to_pylist()]
        assert set(programs["code_verdict"].to_pylist()) <= {"wrong", "correct"}

    def test_tasks_of_a_mixture_are_scored_each_by_its_own(self, saying, long_model, data, tmp_path, capsys):
        saying(lambda prompt: ["<answer>1</answer>"])
        metrics = run(long_model, data / "mixture" / "train.parquet", tmp_path)
        assert metrics["data_sources"].keys() == {"countdown", "x_r1_750"}
        found = table(tmp_path / "long")
        assert set(found["verdict"].to_pylist()) == {"", "wrong"}
        assert set(found["boxed_verdict"].to_pylist()) == {"", "no answer"}
        assert "countdown (" in capsys.readouterr().out

    def test_parts_whose_columns_are_empty_join_others(self, tmp_path):
        for number, equation in enumerate((None, "1+2", None)):
            part = pa.table({"row": [number], "equation": [equation]})
            pq.write_table(part.replace_schema_metadata({"seconds": "0.5"}), tmp_path / f"{number}.parquet")
        seconds = evaluate.join_parts(
            [tmp_path / f"{number}.parquet" for number in range(3)], tmp_path / "all.parquet"
        )
        expected = {"row": [0, 1, 2], "equation": [None, "1+2", None]}
        assert pq.read_table(tmp_path / "all.parquet").to_pydict() == expected and seconds == 1.5


# Beside the data of a user: three functions, of which the first judges
OWN_REWARDS = """
def spelling(prompts, completions, completion_ids, data_source, log_extra, **kwargs):
    assert len(completion_ids) == len(prompts)
    right = ["a" in completion for completion in completions]
    log_extra("verdict", ["correct" if row else "wrong" for row in right])
    log_extra("answer", completions)
    log_extra("vowels", [completion.count("a") for completion in completions])
    return [float(row) for row in right]


def shortness(completions, **kwargs):
    return [-len(completion) / 100 for completion in completions]


def half(completions, target, log_extra, **kwargs):
    own = [number % 2 == 0 for number in target]
    log_extra("verdict", ["correct" if row else None for row in own])
    return [1.0 if row else None for row in own]
"""


class TestOwnRewards:
    @pytest.fixture
    def own_data(self, problems, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "own.py").write_text(OWN_REWARDS)
        return shutil.copy(problems, tmp_path / "data" / "own.parquet")

    @pytest.fixture
    def said(self, saying):
        """Every second completion is right by spelling."""
        texts = itertools.cycle(["<answer>1</answer>", "11"])
        return saying(lambda prompt: [next(texts)])

    def test_a_function_with_verdicts_gives_all_metrics(self, said, own_data, tiny_model, tmp_path):
        metrics = run(tiny_model, own_data, tmp_path, reward_funcs="own:spelling")
        found = table(tmp_path / "model")
        assert metrics["accuracy"] == metrics["reward"] == 0.5 and metrics["format_rate"] == 1.0
        assert found["spelling_verdict"].to_pylist() == ["correct", "wrong"] * 12
        assert found["spelling_answer"].to_pylist() == found["completion"].to_pylist()
        assert found["vowels"].to_pylist() == [2, 0] * 12
        assert yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())["reward_funcs"] == ["own:spelling"]

    def test_without_verdicts_there_is_a_mean_reward_and_no_accuracy(
        self, said, own_data, tiny_model, tmp_path, capsys
    ):
        metrics = run(tiny_model, own_data, tmp_path, reward_funcs="own:shortness")
        found = table(tmp_path / "model")
        assert found["correct"].null_count == found["answered"].null_count == 24
        assert metrics["reward"] == pytest.approx(-(18 + 2) / 2 / 100)
        assert metrics["accuracy"] is None and metrics["accuracy_interval"] is None and metrics["format_rate"] is None
        assert metrics["pass@k"] == {"1": None}
        assert metrics["behaviours"]["equations"] == {"all": 0.0, "correct": None, "incorrect": None}
        lines = capsys.readouterr().out.splitlines()
        (accuracy,) = [line for line in lines if "accuracy (95 % interval)" in line]
        assert accuracy.split("│")[2].strip() == "-"
        assert any("mean reward" in line and "-0.100" in line for line in lines)

    def test_rewards_add_up_and_the_one_that_judges_decides(self, said, own_data, tiny_model, tmp_path):
        command = [*words([tiny_model], own_data, tmp_path), "--reward_funcs", "own:spelling", "own:shortness"]
        evaluate.main(command)
        found = table(tmp_path / "model")
        assert found["reward"].to_pylist()[:2] == pytest.approx([1 - 0.18, -0.02])
        assert found["correct"].to_pylist() == [True, False] * 12

    def test_accuracy_is_of_the_problems_that_were_judged(self, said, own_data, tiny_model, tmp_path, capsys):
        evaluate.main([*words([tiny_model], own_data, tmp_path), "--reward_funcs", "own:half", "own:shortness"])
        metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
        targets = pq.read_table(own_data).take(table(tmp_path / "model")["row"])["target"].to_pylist()
        even = sum(target % 2 == 0 for target in targets)
        assert metrics["judged_problems"] == even < 24 and metrics["accuracy"] == 1.0
        assert f"{even} judged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def greedy(tmp_path_factory, tiny_model, tiny_data):
    """Output folder and metrics of a greedy evaluation."""
    folder = tmp_path_factory.mktemp("greedy")
    return folder, run(tiny_model, tiny_data / "test.parquet", folder)


class TestRealEvaluation:
    def test_completions_are_scored_and_counted(self, greedy, tiny_data):
        folder, metrics = greedy
        found = table(folder / "model")
        rows = pq.read_table(tiny_data / "test.parquet").to_pylist()
        assert found.num_rows == metrics["problems"] == 24 and metrics["n"] == 1
        for row in found.to_pylist():
            problem = rows[row["row"]]
            assert row["prompt"] == problem["prompt"] and row["target"] == problem["target"]
            reward = rewards.countdown_reward([row["completion"]], [problem["nums"]], [problem["target"]])
            assert [row["reward"]] == reward
            assert 1 <= row["tokens"] <= 12 and (row["tokens"] == 12 or not row["truncated"])
            counts = {name: row[name] for name in reasoning.BEHAVIOURS}
            assert counts == reasoning.count_behaviours(row["completion"])
        assert metrics["tokens_per_second"] > 0
        assert not (folder / "model" / "parts").exists()

    def test_settings_versions_and_commit_are_beside_the_results(self, greedy):
        text = (greedy[0] / "model" / "config.yaml").read_text()
        config = yaml.safe_load(text)
        assert text.startswith("# commit ") and "transformers 5" in text
        assert config["temperature"] == 0 and config["reward_funcs"] == ["countdown_reward"] and config["n"] == 1

    def test_greedy_twice_is_the_same(self, greedy, tiny_model, problems, tmp_path):
        run(tiny_model, problems, tmp_path / "again")
        assert table(tmp_path / "again" / "model").equals(table(greedy[0] / "model"))

    def test_a_finished_evaluation_is_shown_again_without_a_model(
        self, greedy, tiny_model, problems, capsys, monkeypatch
    ):
        monkeypatch.setattr(engines, "load", None)
        assert run(tiny_model, problems, greedy[0]) == greedy[1]
        output = capsys.readouterr().out
        assert "24 problems, 1 completions each" in output and "accuracy (95 % interval)" in output
        assert "3 numbers, needs * or /" in output and "true equations" in output

    def test_several_models_have_a_column_each(self, greedy, saying, tiny_model, problems, tmp_path, capsys):
        saying(lambda prompt: [""])
        copy = shutil.copytree(tiny_model, tmp_path / "run" / "checkpoint-3")
        evaluate.main(words([tiny_model, copy], problems, tmp_path))
        header = next(line for line in capsys.readouterr().out.splitlines() if "run-checkpoint-3" in line)
        assert "model" in header
        assert (tmp_path / "run-checkpoint-3" / "metrics.json").is_file()

    def test_the_seed_chooses_the_problems(self, tiny_model, problems, tmp_path, saying):
        saying(lambda prompt: [""])
        chosen = []
        for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
            run(tiny_model, problems, tmp_path / folder, seed=seed)
            chosen.append(table(tmp_path / folder / "model")["row"].to_pylist())
        assert chosen[0] == chosen[1] != chosen[2] and chosen[0] == sorted(set(chosen[0]))

    def test_several_completions_of_a_problem_differ_and_the_seed_decides_them(self, tiny_model, problems, tmp_path):
        flags = {"n": 4, "temperature": 0.6, "batch_size": None, "limit": 6}
        metrics = run(tiny_model, problems, tmp_path / "first", **flags)
        assert metrics["n"] == 4 and metrics["pass@k"].keys() == {"1", "2", "4"}
        first = table(tmp_path / "first" / "model")
        texts = first["completion"].to_pylist()
        assert all(len(set(texts[i : i + 4])) == 4 for i in range(0, 24, 4))
        run(tiny_model, problems, tmp_path / "again", **flags)
        run(tiny_model, problems, tmp_path / "other", **flags, seed=1)
        assert first.equals(table(tmp_path / "again" / "model"))
        assert not set(texts) & set(table(tmp_path / "other" / "model")["completion"].to_pylist())


# A reward that waits after the second batch of its process, as long as a file called hold lies beside it
HOLDING = """
import time
from pathlib import Path

from rewards import countdown_reward

batches = []


def holding_reward(completions, nums, target, log_extra=None, **kwargs):
    if any(completions):  # the checks ask for the rewards of empty ones
        batches.append(len(completions))
    while len(batches) > 2 and Path(__file__).with_name("hold").exists():
        time.sleep(0.05)
    return countdown_reward(completions, nums, target, log_extra=log_extra)
"""
# Eight parts, two of which each process finishes before its reward waits
EIGHT = {"limit": 32, "batch_size": 4, "temperature": 1.0, "n": 2, "reward_funcs": "holding:holding_reward"}
TWO_PROCESSES = pytest.param(2, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def holding_data(tmp_path_factory, tiny_data):
    folder = tmp_path_factory.mktemp("holding")
    (folder / "holding.py").write_text(HOLDING)
    return shutil.copy(tiny_data / "test.parquet", folder / "test.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, holding_data):
    """Folder of an evaluation by one process, without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_model, holding_data, folder, **EIGHT)
    return folder / "model"


@pytest.fixture
def start(tiny_model, holding_data, tmp_path):
    """Starts the evaluation of EIGHT in one process, or in several by accelerate; as its own process group."""
    started = []

    def start(processes):
        launch = ["-m", "r1zero.evaluate"]
        if processes > 1:
            config = yaml.safe_load((ROOT / "configs" / "accelerate" / "ddp.yaml").read_text()) | {"use_cpu": True}
            (tmp_path / "ddp.yaml").write_text(yaml.safe_dump(config))
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                port = server.getsockname()[1]
            accelerate = ["-m", "accelerate.commands.launch", "--config_file", tmp_path / "ddp.yaml"]
            launch = [*accelerate, "--num_processes", processes, "--main_process_port", port, *launch]
        command = [sys.executable, *launch, *words([tiny_model], holding_data, tmp_path, **EIGHT)]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def hold(holding_data):
    """The file that makes the reward wait."""
    path = holding_data.with_name("hold")
    path.touch()
    yield path
    path.unlink(missing_ok=True)


class TestProcesses:
    @pytest.mark.parametrize("processes", [1, TWO_PROCESSES])
    def test_interrupted_and_continued_is_as_if_uninterrupted(
        self, whole, hold, start, processes, tiny_model, holding_data, tmp_path, monkeypatch
    ):
        process, deadline = start(processes), time.monotonic() + PATIENCE
        parts = tmp_path / "model" / "parts"
        while len(list(parts.glob("*.parquet"))) < 2 * processes:
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 1, output[-4000:]
        assert output.count("stopped; what is done stays: the same command goes on from there") == 1, output[-4000:]
        assert processes > 1 or "Traceback" not in output, "a launcher has its own"
        assert len(list(parts.glob("*.parquet"))) == 2 * processes
        assert not (tmp_path / "model" / "completions.parquet").exists()

        hold.unlink()
        scored, score = [], evaluate.score
        monkeypatch.setattr(evaluate, "score", lambda *batch: scored.append(batch) or score(*batch))
        run(tiny_model, holding_data, tmp_path, **EIGHT)
        assert len(scored) == 8 - 2 * processes, "nothing is done twice"
        one, other = (folder / "completions.parquet" for folder in (whole, tmp_path / "model"))
        assert one.read_bytes() == other.read_bytes()

    @pytest.mark.slow
    def test_two_processes_give_the_same_as_one(self, whole, start, tmp_path):
        process = start(2)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, output[-4000:]
        assert "transformers in float32 on 2 x cpu" in output and output.count("mean reward") == 1
        assert table(tmp_path / "model").equals(table(whole))
        two, one = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "model", whole))
        assert two | {"tokens_per_second": 0} == one | {"tokens_per_second": 0}

    @pytest.mark.parametrize(
        ("problems", "said"),
        [
            pytest.param(
                1024, "6 of them without a batch: --batch_size 128 would give each its share\n", id="two batches"
            ),
            pytest.param(4096, "", id="a batch for each"),
        ],
    )
    def test_what_gives_each_process_its_share_is_said(self, capsys, problems, said):
        args = evaluate.parse(words(["model"], "data", "out", backend="vllm", batch_size=512))
        evaluate.print_engine(args, problems, SimpleNamespace(num_processes=8, device=torch.device("cuda")))
        assert capsys.readouterr().out.partition("\n")[2] == said

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="parents' deaths are signalled on Linux alone")
    def test_process_of_an_engine_ignores_ctrl_c_and_ends_with_the_evaluation(self):
        """As multiprocessing starts it: it imports r1zero.evaluate under another name."""
        child = "import os, runpy, signal, time; runpy.run_module('r1zero.evaluate', run_name='__mp_main__'); "
        child += f"os.kill(os.getpid(), signal.SIGINT); print('there', flush=True); time.sleep({2 * PATIENCE})"
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        command = [sys.executable, "-c", parent]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        with process, contextlib.ExitStack() as cleanup:
            assert process.stdout.readline() == "there\n"
            (engine,) = psutil.Process(process.pid).children()
            cleanup.callback(lambda: engine.is_running() and engine.kill())
            process.kill()
            assert psutil.wait_procs([engine], timeout=PATIENCE)[1] == []

    def test_half_written_part_is_none(self, tiny_model, problems, tmp_path, saying):
        batches = saying(lambda prompt: [""])
        run(tiny_model, problems, tmp_path)
        (tmp_path / "model" / "metrics.json").unlink()
        (tmp_path / "model" / "parts").mkdir()
        (tmp_path / "model" / "parts" / "000001.parquet.part").write_bytes(b"PAR1")
        run(tiny_model, problems, tmp_path)
        assert batches == [8] * 6 and table(tmp_path / "model").num_rows == 24


class TestRefusals:
    @pytest.fixture
    def refused(self, tiny_model, problems, tmp_path, monkeypatch):
        """What is said, before any weight is loaded."""
        monkeypatch.setattr(engines, "load", None)

        def refused(models=(tiny_model,), data=problems, **flags):
            before = sorted((tmp_path / "out").rglob("*"))
            with pytest.raises(SystemExit) as stopped:
                evaluate.main(words(models, data, tmp_path / "out", **flags))
            assert isinstance(stopped.value.code, str), "exit status 1"
            assert sorted((tmp_path / "out").rglob("*")) == before
            head, *lines = stopped.value.code.split("\n  - ")
            assert head == "r1zero.evaluate:" and len(lines) == 1 and "\n" not in lines[0]
            return lines[0]

        return refused

    def test_wrong_numbers(self, refused):
        assert "wanted --n, --max_completion_length" in refused(n=0)
        assert "wanted --n, --max_completion_length" in refused(limit=0)
        assert "wanted --n, --max_completion_length" in refused(batch_size=0)
        assert "wanted --n, --max_completion_length" in refused(max_completion_length=0)
        assert "--temperature 0 with --n 4: wanted above 0" in refused(n=4)
        assert "--temperature -1 with --n 1: wanted above 0" in refused(temperature=-1)
        assert "--temperature nan with --n 1: wanted above 0" in refused(temperature="nan")
        assert "--seed -1: wanted at least 0" in refused(seed=-1)

    def test_wrong_data(self, refused, tmp_path):
        def having(**columns):
            pq.write_table(pa.table(columns), tmp_path / "file.parquet")
            return refused(data=tmp_path / "file.parquet")

        assert "nowhere.parquet is no readable parquet file" in refused(data="nowhere.parquet")
        assert "is no readable parquet file" in refused(data=ROOT / "README.md")
        found = having(prompt=["a"], gold=["b"])
        assert "has the columns ['prompt', 'gold'] and lacks what a reward reads" in found
        assert "has the columns ['product'] and lacks prompt" in having(product=["a"])
        found = having(prompt=["a", "b"], product=["1", None])
        assert "column product: row 1 is None, wanted a value in product, or the name of a function" in found
        assert "has no rows: write it with" in having(prompt=pa.array([], "string"), product=pa.array([], "string"))
        assert "column product: row 0 is 'a', wanted a whole number" in having(prompt=["a"], product=["a"])
        chat = [{"role": "user", "content": "1+1?"}]
        assert "wanted texts: apply the chat template first" in having(prompt=[chat], product=["2"])

    def test_wrong_rewards(self, refused):
        assert "reward_funcs names countdown; rewards.py has countdown_reward, mult" in refused(
            reward_funcs="countdown"
        )
        assert "lacks solution" in refused(reward_funcs="boxed_math_reward")
        assert "math" in refused(reward_funcs="math:no_such_function")

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            pytest.param("completions", "takes_columns", id="no columns"),
            pytest.param("completions, words, **kwargs", "words", id="a column that is not there"),
            pytest.param("completions, **kwargs): return [1.0] #", "returned 1 rewards", id="one reward for all"),
            pytest.param("completions, **kwargs): return 1/0 #", "ZeroDivisionError", id="any other error"),
        ],
    )
    def test_own_rewards_that_cannot_work(self, refused, problems, tmp_path, body, said):
        (tmp_path / "bad.py").write_text(f"def takes_columns({body}): return [1.0 for completion in completions]")
        data = shutil.copy(problems, tmp_path / "test.parquet")
        found = refused(data=data, reward_funcs="bad:takes_columns")
        assert "with which bad:takes_columns cannot work" in found and said in found

    def test_wrong_models(self, refused, tiny_model, tmp_path):
        assert "model ./nowhere is a folder that does not exist" in refused(["./nowhere"])
        assert "model nobody/nothing cannot be had" in refused(["nobody/nothing"])
        (tmp_path / "empty").mkdir()
        assert "empty has no config.json" in refused([tmp_path / "empty"])
        (tmp_path / "empty" / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone"}')
        assert "model ./gone is a folder that does not exist" in refused([tmp_path / "empty"])
        (tmp_path / "empty" / "adapter_config.json").write_text("{}")
        assert "empty/adapter_config.json names no base model" in refused([tmp_path / "empty"])
        copy = shutil.copytree(tiny_model, tmp_path / "other" / tiny_model.name)
        assert "would write to one folder" in refused([tiny_model, copy])
        too_long = refused(max_completion_length=1024)
        assert "a prompt of 9 tokens and --max_completion_length 1024 exceed the context of" in too_long

    def test_card_that_torch_does_not_see_unless_the_cpu_is_asked_for(
        self, refused, saying, tiny_model, problems, tmp_path, monkeypatch, capsys
    ):
        """With nvidia-smi as a script, and a driver that is too old for torch."""
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir()
        smi.write_text("#!/bin/sh\necho 'Tesla T4, 550.54.15'\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(smi.parent))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for backend in ({}, {"backend": "vllm"}, {"backend": "transformers"}):
            line = refused(**backend)
            assert line.startswith("found a Tesla T4 with driver 550.54.15, and torch")
            assert line.endswith("; --use_cpu evaluates on the CPU")
        saying(lambda prompt: [""])
        evaluate.main([*words([tiny_model], problems, tmp_path / "out"), "--use_cpu"])
        assert "transformers in float32 on 1 x cpu (as --use_cpu says)" in capsys.readouterr().out

    def test_vllm_on_a_gpu_where_the_cpu_is_asked_for(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        args = evaluate.parse([*words(["model"], "data", "out", backend="vllm"), "--use_cpu"])
        assert args.dtype == "float32"
        (line,) = evaluation_checks.device_errors(args)
        assert line.startswith("--backend vllm computes on the GPU: leave out --use_cpu")

    @pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
    def test_vllm_where_it_is_not(self, refused):
        assert "--backend vllm needs vLLM, which is not installed: type pip install" in refused(backend="vllm")

    def test_other_settings_in_the_same_folder(self, refused, saying, tiny_model, problems, tmp_path):
        saying(lambda prompt: [""])
        model = shutil.copytree(tiny_model, tmp_path / "model")
        run(model, problems, tmp_path / "out")
        changed = refused([model], limit=25, temperature=0.5)
        assert "out/model holds an evaluation with limit 24, now 25; temperature 0.0, now 0.5: remove it" in changed
        os.utime(model / "model.safetensors")  # as if it had been trained on
        assert "holds an evaluation with weights_written 20" in refused([model])

    def test_an_own_reward_that_was_changed_since(self, refused, saying, tiny_model, problems, tmp_path):
        saying(lambda prompt: [""])
        data = shutil.copy(problems, tmp_path / "test.parquet")
        (tmp_path / "own.py").write_text(OWN_REWARDS)
        run(tiny_model, data, tmp_path / "out", reward_funcs="own:spelling")
        (tmp_path / "own.py").write_text(OWN_REWARDS.replace('"a"', '"e"'))
        assert "holds an evaluation with own:spelling sha256" in refused(data=data, reward_funcs="own:spelling")

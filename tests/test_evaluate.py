"""Evaluations of tiny models on the CPU: metrics, resuming, users' own rewards, and refusals."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PATIENCE, accelerate, each_case

import rewards
from r1zero import tiny_model as tiny
from r1zero.evaluate import checks, command, engines
from r1zero.intervals import accuracy_interval, pass_at_k, wilson

SMALL = {"limit": 24, "batch_size": 8, "max_completion_length": 12}


def words(models, data, output_dir, **flags):
    flags = SMALL | {"data": data, "output_dir": output_dir} | flags
    found = ["--model", *map(str, models)]
    for key, value in flags.items():
        if isinstance(value, list):
            found += [f"--{key}", *value]
        elif value is not None:
            found.append(f"--{key}={value}")
    return found


def run(model, data, output_dir, **flags):
    """Evaluate a model in this process; return its metrics."""
    command.main(words([model], data, output_dir, **flags))
    return json.loads((output_dir / model.name / "metrics.json").read_text())


def table(folder):
    return pq.read_table(folder / "completions.parquet")


@pytest.fixture
def problems(tiny_data):
    return tiny_data / "test.parquet"


@pytest.fixture
def saying(monkeypatch):
    """Put an engine in place that gives these texts (an iterable), n for each prompt."""

    def put(texts):
        texts = iter(texts)

        @contextlib.contextmanager
        def engine(model, args, state):
            def generate(prompts, seeds):
                assert len(seeds) == len(prompts) * args.n
                said = list(itertools.islice(texts, len(seeds)))
                return [row + model.ends + [7] for row in model.tokenizer(said)["input_ids"]]

            yield generate

        monkeypatch.setattr(engines, "transformers_engine", engine)

    return put


class TestMetrics:
    def test_all_metrics_are_those_of_what_was_said(self, saying, tiny_model, problems, tmp_path):
        """Of a problem's four completions, as many are right as its first number leaves by 4, and no other answers."""
        rows = pq.read_table(problems).to_pylist()
        right = [row["nums"][0] % 4 for row in rows]
        solved = [k < count for count in right for k in range(4)]
        traces = [tiny.write_trace(tiny.search(row["nums"], row["target"]), solved=True) for row in rows]
        saying(traces[i // 4] if is_right else "wait, 1+1 = 3" for i, is_right in enumerate(solved))
        metrics = run(tiny_model, problems, tmp_path, n=4, temperature=0.6, limit=None)
        share = np.mean(solved)
        for name in ("accuracy", "format_rate", "reward"):
            assert metrics[name] == pytest.approx(share)
        assert metrics["problems"] == 256 and metrics["truncated"] == 0
        assert metrics["accuracy_interval"] == pytest.approx(accuracy_interval(np.array(right), 4))
        expected = {str(k): pytest.approx(np.mean([pass_at_k(4, c, k) for c in right])) for k in (1, 2, 4)}
        assert metrics["pass@k"] == expected

        found = table(tmp_path / "model")
        assert found["row"].to_pylist() == [i // 4 for i in range(1024)] and found["correct"].to_pylist() == solved
        assert metrics["mean_completion_tokens"] == pytest.approx(np.mean(found["tokens"]))
        assert metrics["median_completion_tokens"] == np.median(found["tokens"])

        cells = metrics["cells"]
        assert cells.keys() == {"3 numbers, + - alone", "3 numbers, needs * or /"}
        assert sum(cell["problems"] for cell in cells.values()) == 256
        assert sum(cell["problems"] * cell["accuracy"] for cell in cells.values()) == pytest.approx(256 * share)
        assert cells["3 numbers, needs * or /"]["answers_that_multiply"] == 1.0

        counted = metrics["behaviours"]
        assert counted["restarts"] == {"all": pytest.approx(1 - share), "correct": 0.0, "incorrect": 1.0}
        assert counted["equations"]["incorrect"] == 1.0 and counted["true_equations"]["incorrect"] == 0.0

    def test_tasks_of_a_mixture_are_scored_each_by_its_own_reward(self, saying, long_model, data, tmp_path, capsys):
        """Every second completion is empty; of the others, the maths is right. A part has one problem, of one task."""
        rows = pq.read_table(data / "mixture" / "train.parquet").to_pydict()
        golds, nums, target = rows["solution"], rows["nums"], rows["target"]
        texts = [f"<answer>1</answer> \\boxed{{{gold}}}" if i % 2 else "" for i, gold in enumerate(golds)]
        saying(texts)
        metrics = run(long_model, data / "mixture" / "train.parquet", tmp_path, limit=None, batch_size=1)
        found = table(tmp_path / "long").to_pydict()
        countdown = rewards.countdown_reward(texts, nums, target)
        maths = rewards.boxed_math_reward(texts, golds)
        assert found["reward"] == [a if b is None else b for a, b in zip(countdown, maths, strict=True)]
        assert found["answered"] == [bool(text) for text in texts]
        assert found["correct"] == [bool(text) and gold is not None for text, gold in zip(texts, golds, strict=True)]
        assert set(found["boxed_verdict"]) == {"", "no answer", "correct"}
        by_source = {name: part["accuracy"] for name, part in metrics["data_sources"].items()}
        assert by_source == {"countdown": 0, "x_r1_750": pytest.approx(0.5, abs=0.2)}
        assert "countdown (" in capsys.readouterr().out


# Beside the data of a user: those that judge, one without verdicts, and what cannot work
OWN_REWARDS = """
def spelling(prompts, completions, completion_ids, data_source, log_extra, **kwargs):
    assert len(completion_ids) == len(prompts)
    right = ["a" in completion for completion in completions]
    log_extra("verdict", ["correct" if row else "wrong" for row in right])
    log_extra("vowels", [completion.count("a") for completion in completions])
    return [float(row) for row in right]

def shortness(completions, **kwargs):
    return [-len(completion) / 100 for completion in completions]

def half(completions, target, log_extra, **kwargs):
    own = [number % 2 == 0 for number in target]
    log_extra("verdict", ["correct" if row else None for row in own])
    return [1.0 if row else None for row in own]

def fails(completions, **kwargs):
    return 1 / 0
"""


class TestOwnRewards:
    @pytest.fixture
    def evaluated(self, saying, tiny_model, problems, tmp_path):
        """Metrics, columns and data of an evaluation by own rewards, in which every second completion is an a."""

        def evaluate(*names):
            (tmp_path / "own.py").write_text(OWN_REWARDS)
            own = shutil.copy(problems, tmp_path / "own.parquet")
            saying(itertools.cycle(["<answer>1</answer>", "11"]))
            metrics = run(tiny_model, own, tmp_path, reward_funcs=[f"own:{name}" for name in names])
            return metrics, table(tmp_path / "model").to_pydict()

        return evaluate

    def test_without_verdicts_there_is_a_mean_reward_and_no_accuracy(self, evaluated, capsys):
        metrics, found = evaluated("shortness")
        assert found["correct"] == found["answered"] == [None] * 24
        assert metrics["reward"] == pytest.approx(-(18 + 2) / 2 / 100)
        assert [metrics[name] for name in ("accuracy", "accuracy_interval", "format_rate")] == [None] * 3
        assert metrics["pass@k"] == {"1": None}
        assert metrics["cells"] == {}, "an own task's columns may have the names of Countdown's"
        shown = dict(re.findall(r"│ (\S.*?) +│ (\S+) +│", capsys.readouterr().out))
        assert shown["accuracy (95 % interval)"] == "-" and shown["mean reward"] == "-0.100"

    def test_rewards_add_up_and_accuracy_is_of_what_was_judged(self, evaluated, problems, capsys):
        metrics, found = evaluated("half", "shortness")
        even = [pq.read_table(problems)["target"][row].as_py() % 2 == 0 for row in found["row"]]
        assert found["correct"] == [row or None for row in even]
        expected = [row - length for row, length in zip(even, [0.18, 0.02] * 12, strict=True)]
        assert found["reward"] == pytest.approx(expected)
        assert metrics["judged_problems"] == sum(even) < 24 and metrics["accuracy"] == 1.0
        assert f"{sum(even)} judged" in capsys.readouterr().out


def test_the_seed_decides_the_problems_and_their_completions(tiny_model, problems, tinyzeros_data, tmp_path):
    flags = {"n": 4, "temperature": 0.6, "batch_size": None, "limit": 6}
    found = {}
    in_messages = tinyzeros_data / "test.parquet"  # the same texts, each as a message
    for name, seed, file in (("first", 0, problems), ("again", 0, in_messages), ("other", 1, problems)):
        run(tiny_model, file, tmp_path / name, **flags, seed=seed)
        found[name] = table(tmp_path / name / "model")
    first, other = found["first"].to_pydict(), found["other"].to_pydict()
    texts, rows = first["completion"], pq.read_table(problems).to_pylist()
    assert all(len(set(texts[i : i + 4])) == 4 for i in range(0, 24, 4))
    assert first["prompt"] == [rows[row]["prompt"] for row in first["row"]]
    assert max(first["tokens"]) <= 12 and all(first["tokens"][i] == 12 for i in np.flatnonzero(first["truncated"]))
    assert found["first"].equals(found["again"]) and not set(texts) & set(other["completion"])
    assert first["row"] != other["row"] == sorted(other["row"])
    config = (tmp_path / "first" / "model" / "config.yaml").read_text()
    assert config.startswith("# commit ") and "reward_funcs:\n- countdown_reward\n" in config


def test_finished_evaluations_are_shown_beside_each_other_without_their_models(
    saying, tiny_model, problems, tmp_path, capsys, monkeypatch
):
    saying(itertools.repeat(""))
    twice = {"n": 2, "temperature": 1.0}
    models = [tiny_model, shutil.copytree(tiny_model, tmp_path / "run" / "checkpoint-3")]
    command.main(words(models, problems, tmp_path, **twice))
    assert not (tmp_path / "model" / "parts").exists()
    capsys.readouterr()
    monkeypatch.setattr(engines, "transformers_engine", None)
    command.main(words(models, problems, tmp_path, **twice))
    output = capsys.readouterr().out
    assert "24 problems, 2 completions each" in output and "pass@2" in output and "accuracy (95 % interval)" in output
    assert re.search("┃ +model +┃ +run-checkpoint-3 +┃", output)


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


@pytest.mark.parametrize(
    ("processes", "number"),
    [
        pytest.param(1, signal.SIGINT, id="Ctrl-C"),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow, id="SIGTERM with two processes"),
    ],
)
def test_interrupted_and_resumed_is_as_if_uninterrupted(
    begin, processes, number, tiny_model, problems, tmp_path, monkeypatch
):
    (tmp_path / "holding.py").write_text(HOLDING)
    (tmp_path / "hold").touch()
    data = shutil.copy(problems, tmp_path / "test.parquet")
    launcher = accelerate(tmp_path, "ddp", processes) if processes > 1 else [sys.executable]
    started = begin([*launcher, "-m", "r1zero.evaluate", *words([tiny_model], data, tmp_path, **EIGHT)])
    parts = tmp_path / "model" / "parts"
    started.await_(lambda: len(list(parts.glob("*.parquet"))) == 2 * processes)
    os.killpg(started.process.pid, number)  # as a terminal does
    assert started.process.wait(timeout=PATIENCE) == 1
    output = started.text()
    assert output.count("stopped; what is done stays: the same command goes on from there") == 1, output[-4000:]
    assert processes > 1 or "Traceback" not in output, "a launcher has its own"
    assert not (tmp_path / "model" / "completions.parquet").exists()

    (tmp_path / "hold").unlink()
    scored, score = [], command.score
    monkeypatch.setattr(command, "score", lambda *batch: scored.append(batch) or score(*batch))
    run(tiny_model, data, tmp_path, **EIGHT)
    assert len(scored) == 8 - 2 * processes, "nothing is done twice"
    run(tiny_model, data, tmp_path / "whole", **EIGHT)
    assert table(tmp_path / "model").equals(table(tmp_path / "whole" / "model"))


def test_engine_that_has_ended_ends_the_evaluation_with_a_line(tiny_model, problems, tmp_path, monkeypatch):
    def engine(*_):
        raise ChildProcessError("vLLM's process ended with status -9")

    monkeypatch.setattr(engines, "transformers_engine", engine)
    with pytest.raises(SystemExit, match="^r1zero.evaluate: vLLM's process ended with status -9; what is done stays"):
        run(tiny_model, problems, tmp_path)


class TestRefusals:
    @pytest.fixture
    def refused(self, tiny_model, problems, tmp_path, monkeypatch):
        """What is said, before any weight is loaded."""
        monkeypatch.setattr(engines, "load", None)

        def refused(models=(tiny_model,), data=problems, **flags):
            before = sorted((tmp_path / "out").rglob("*"))
            with pytest.raises(SystemExit) as stopped:
                command.main(words(models, data, tmp_path / "out", **flags))
            assert sorted((tmp_path / "out").rglob("*")) == before
            head, *lines = stopped.value.code.split("\n  - ")
            assert head == "r1zero.evaluate:" and len(lines) == 1 and "\n" not in lines[0]
            return lines[0]

        return refused

    @each_case("refused_evaluations.tsv")
    def test_what_cannot_be_evaluated_is_refused_in_one_line(self, refused, case, tiny_model, problems, tmp_path):
        (tmp_path / "own.py").write_text(OWN_REWARDS)
        flags = {"model": tiny_model, "data": shutil.copy(problems, tmp_path / "data.parquet")}
        if case["adapter"]:
            (tmp_path / "adapter_config.json").write_text(case["adapter"])
            flags["model"] = tmp_path
        if case["data"]:
            pq.write_table(pa.table(json.loads(case["data"])), flags["data"])
        flags |= json.loads(case["flags"] or "{}")
        assert case["said"] in refused([flags.pop("model")], **flags)

    def test_two_models_whose_folders_have_one_name(self, refused, tiny_model, tmp_path):
        models = [shutil.copytree(tiny_model, tmp_path / folder / "model") for folder in ("a", "b")]
        assert refused(models).endswith("b/model would write to one folder: give each its own --output_dir")

    @pytest.mark.parametrize(
        "flags", [{"temperature": -1}, {"temperature": "inf"}, {"n": 4, "temperature": 0}], ids=str
    )
    def test_temperature_that_cannot_be_sampled_at(self, tiny_model, problems, tmp_path, capsys, flags):
        with pytest.raises(SystemExit):
            command.main(words([tiny_model], problems, tmp_path / "out", **flags))
        assert "wanted above 0, such as 0.6, or 0 with --n 1" in capsys.readouterr().err

    def test_card_that_torch_does_not_see_unless_the_cpu_is_asked_for(
        self, refused, saying, tiny_model, problems, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(checks, "why_unseen", lambda otherwise: f"found a Tesla T4; {otherwise}")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert refused().endswith("; --use_cpu evaluates on the CPU")
        saying(itertools.repeat(""))
        command.main([*words([tiny_model], problems, tmp_path / "out"), "--use_cpu"])
        assert "transformers in float32 on 1 x cpu" in capsys.readouterr().out

    def test_other_settings_in_the_same_folder(self, refused, saying, tiny_model, problems, tmp_path):
        saying(itertools.repeat(""))
        model = shutil.copytree(tiny_model, tmp_path / "model")
        flags = {"data": shutil.copy(problems, tmp_path / "test.parquet"), "reward_funcs": "own:spelling"}
        (tmp_path / "own.py").write_text(OWN_REWARDS)
        run(model, output_dir=tmp_path / "out", **flags)
        changed = refused([model], **flags, limit=25, temperature=0.5)
        assert "out/model holds an evaluation with limit 24, now 25; temperature 0.0, now 0.5: remove it" in changed
        (tmp_path / "own.py").write_text(OWN_REWARDS.replace('"a"', '"e"'))
        assert "holds an evaluation with own:spelling sha256" in refused([model], **flags)
        (tmp_path / "own.py").write_text(OWN_REWARDS)
        os.utime(model / "model.safetensors")  # as if it had been trained on
        assert "holds an evaluation with weights_written 20" in refused([model], **flags)


def test_interval_of_several_completions_is_as_wide_as_the_problems_differ():
    rng = np.random.default_rng(0)
    right = rng.binomial(8, rng.beta(1, 1, 500))  # (problems,)
    resampled = rng.choice(right, (4000, 500)).mean(1) / 8
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert accuracy_interval(right, 8) == pytest.approx((low, high), abs=0.004)
    alone = right > 4
    assert accuracy_interval(alone, 1) == pytest.approx(wilson(alone.mean(), 500))

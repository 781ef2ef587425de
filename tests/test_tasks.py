"""Every task from its data to two training steps, on fixtures written by hand in the real sets' columns.

bash tests/run.sh tests/test_tasks.py
"""

import doctest
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import words
from test_training import ENVIRONMENT, ROOT, run_to_end
from trl import GRPOConfig, ModelConfig, TrlParser

import preflight
import preprocess
import sandbox
from train_countdown import ScriptArguments

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {  # what a recipe's own values are overridden with: 4 completions of 2 prompts a step, on a CPU
    "use_cpu": True,
    "bf16": False,
    "use_vllm": False,
    "max_steps": 2,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 12,
    "per_device_eval_batch_size": 1,
    "eval_steps": 2,
    "save_strategy": "no",
}


def prepare(task, folder, *flags):
    """preprocess.py on a task; returns the rows of train and test."""
    preprocess.main([task, "--local_dir", str(folder), *map(str, flags)])
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


@pytest.fixture(scope="module")
def data(tmp_path_factory, long_model):
    """Folder with the data of every task."""
    folder = tmp_path_factory.mktemp("data")
    prepare("countdown", folder / "countdown", "--train_size", 16, "--test_size", 4)
    prepare("multiply", folder / "multiply", "--train_size", 16, "--test_size", 4)
    for task in ("x_r1_750", "gsm8k"):
        prepare(task, folder / task, "--source", FIXTURES / f"{task}.jsonl")
    prepare("eurus", folder / "eurus", "--source", FIXTURES / "eurus.jsonl", "--tokenizer", long_model)
    preprocess.main(
        ["mixture", str(folder / "countdown"), str(folder / "x_r1_750"), "--local_dir", f"{folder}/mixture"]
    )
    return folder


def rows_of(folder):
    return [row for split in ("train", "test") for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


class TestPreprocess:
    def test_boxed_golds_are_extracted_with_balanced_braces(self, data):
        golds = {row["solution"] for row in rows_of(data / "x_r1_750")}
        assert golds == {
            "42",
            r"\frac{1}{2}",
            r"\left\{-2, 2\right\}",
            "x^2+2x+1",
            "8",
            r"2\sqrt{2}",
            r"9\pi",
            r"\text{east}",
            "0.25",
        }

    def test_rows_without_a_gold_and_repeated_problems_are_dropped_and_counted(self, tmp_path, capsys):
        train, test = prepare("math", tmp_path, "--source", FIXTURES / "x_r1_750.jsonl", "--test_size", 2)
        assert len(train) == 7 and len(test) == 2
        output = capsys.readouterr().out
        assert "test.parquet: 2 of the 12 rows of train; dropped 2 without a box that has content; " in output
        assert "train.parquet: 7 of the 12 rows" in output and "dropped 3 that came before or stand in test" in output

    def test_numbers_after_the_hashes_are_the_golds_of_gsm8k(self, data):
        assert {row["solution"] for row in rows_of(data / "gsm8k")} == {"31", "25000", "-5", "4.5", "28"}

    def test_eurus_keeps_what_can_be_scored_and_counts_the_rest(self, tmp_path, long_model, capsys):
        flags = ("--source", FIXTURES / "eurus.jsonl", "--tokenizer", long_model, "--test_size", 1)
        train, test = prepare("eurus", tmp_path, *flags)
        rows = sorted(train + test, key=lambda row: str(row["solution"]))
        assert [row["solution"] for row in rows] == ["2x+2", "32", "540", None, None]
        for row in rows:
            assert (row["tests"] is None) == (row["ability"] == "math")
            assert row["reward_model"]["ground_truth"] == (row["solution"] or row["tests"])
        assert {row["data_source"] for row in rows if row["tests"]} == {"taco", "apps"}
        output = capsys.readouterr().out
        for reason in (
            "2 math rows with a unit in the gold",
            "1 math rows with a box in the gold",
            "1 math rows with an empty gold",
            "2 code rows with empty or unreadable tests",
            "1 prompts over 1,000 tokens",
        ):
            assert reason in output

    def test_rows_without_a_problem_are_dropped(self, tmp_path, capsys):
        rows = [{"problem": text, "solution": r"\boxed{1}"} for text in ("a", "b", "c", "", None)]
        (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train, test = prepare("math", tmp_path, "--source", tmp_path / "set.jsonl")
        assert len(train + test) == 3 and "dropped 2 without a problem" in capsys.readouterr().out

    def test_examples_in_docstrings_hold(self):
        assert doctest.testmod(preprocess).failed == 0

    def test_prompts_are_plain_text_that_the_completion_goes_on_from(self, data):
        for task, end in (
            ("x_r1_750", "\nAssistant: Let me solve this step by step. <think>"),
            ("gsm8k", "\nAssistant: Let me solve this step by step. <think>"),
            ("eurus", "\nAssistant: Let me solve this step by step. <think>"),
            ("multiply", "\nAssistant: Let me solve this step by step.\n<think>"),
        ):
            for row in rows_of(data / task):
                assert row["prompt"].startswith("A conversation between User and Assistant.")
                assert "\nUser: " in row["prompt"] and row["prompt"].endswith(end)
        assert all(r"The answer is \boxed{your answer}." in row["prompt"] for row in rows_of(data / "gsm8k"))

    def test_chat_prompt_is_chatml_and_keeps_the_problems_braces(self, tmp_path):
        flags = ("--source", FIXTURES / "x_r1_750.jsonl", "--template", "chat")
        rows = [row for split in prepare("math", tmp_path, *flags) for row in split]
        (row,) = [row for row in rows if "sqrt" in row["prompt"]]
        assert row["prompt"].startswith("<|im_start|>system\n") and r"\boxed{your answer}" in row["prompt"]
        assert "<|im_start|>user\nWhat is $\\sqrt{8}$ in simplest form?<|im_end|>" in row["prompt"]
        assert row["prompt"].endswith("<|im_start|>assistant\nLet me solve this step by step. <think>")

    def test_own_test_split_is_used_and_kept_out_of_train(self, tmp_path):
        lines = (FIXTURES / "gsm8k.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "train.jsonl").write_text("".join(lines))
        (tmp_path / "set" / "test.jsonl").write_text("".join(lines[:2]))
        train, test = prepare("gsm8k", tmp_path / "data", "--source", tmp_path / "set")
        assert {row["solution"] for row in test} == {"31", "25000"}
        assert {row["solution"] for row in train} == {"-5", "4.5", "28"}

    def test_products_are_right_different_and_disjoint(self, tmp_path):
        flags = ("--digits", 2, 2, "--train_size", 3000, "--test_size", 1000)
        train, test = prepare("multiply", tmp_path, *flags)
        pairs = []
        for row in train + test:
            left, right = row["prompt"].split("equation: ")[1].split(" =")[0].split(" * ")
            assert len(left) == len(right) == 2 and row["product"] == str(int(left) * int(right))
            pairs.append(tuple(sorted((left, right))))
        assert (len(train), len(test)) == (3000, 1000) and len(set(pairs)) == 4000
        assert [train, test] == prepare("multiply", tmp_path / "again", *flags), "the seed decides"
        assert [train, test] != prepare("multiply", tmp_path / "other", *flags, "--seed", 1)

    def test_products_may_be_longer_than_a_machine_word(self, tmp_path):
        (row,) = prepare("multiply", tmp_path, "--digits", 18, 17, "--train_size", 1, "--test_size", 1)[0]
        left, right = row["prompt"].split("equation: ")[1].split(" =")[0].split(" * ")
        assert (len(left), len(right)) == (18, 17) and int(row["product"]) == int(left) * int(right)

    def test_mixture_has_equal_parts_and_none_in_the_columns_of_other_tasks(self, data):
        rows = rows_of(data / "mixture")
        sources = [row["data_source"] for row in rows]
        assert sources.count("countdown") == sources.count("x_r1_750") == len(rows) / 2 > 4
        for row in rows:
            assert (row["nums"] is None) == (row["target"] is None) == (row["solution"] is not None)
        assert sources != sorted(sources), "shuffled"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["gsm8k", "--source", "{}/x_r1_750.jsonl"], r"\['problem', 'solution'\]; wanted question and answer"),
            (["math", "--source", "nowhere.jsonl"], "nowhere.jsonl does not exist; give a parquet or json file"),
            (["math", "--source", "{}/../conftest.py"], "is no parquet, json or jsonl file"),
            (["multiply", "--digits", "1", "1"], "45 different products of 1 x 1 digits exist, wanted 33,792"),
            (["mixture", "nowhere"], "nowhere/train.parquet does not exist: write it first"),
            (["eurus", "--source", "{}/eurus.jsonl", "--tokenizer", "./nowhere"], "tokenizer ./nowhere cannot be had"),
        ],
        ids=["other columns", "no file", "no data", "too few products", "a folder missing", "no tokenizer"],
    )
    def test_wrong_input_ends_in_a_line_that_says_what_was_wanted(self, tmp_path, arguments, message):
        arguments = [argument.format(FIXTURES) for argument in arguments]
        with pytest.raises(SystemExit, match=f"preprocess.py: .*{message}"):
            preprocess.main([*arguments, "--local_dir", str(tmp_path / "data")])
        assert not list(tmp_path.glob("data/*"))


def columns_of_the_last_step(folder):
    return pq.read_table(sorted(folder.glob("completions/*.parquet"))[-1]).to_pydict()


@pytest.mark.parametrize(
    ("recipe", "task", "columns"),
    [
        ("x_r1_750", "x_r1_750", {"boxed_math_reward", "gold", "boxed", "boxed_verdict"}),
        ("multiply", "multiply", {"multiplication_reward", "product", "stated_product", "product_verdict"}),
        ("mixture", "mixture", {"countdown_reward", "boxed_math_reward", "equation", "verdict", "boxed_verdict"}),
        ("eurus_r1_distill_1.5b", "eurus", {"boxed_math_reward", "code_reward", "program", "tests_passed"}),
    ],
)
def test_recipe_trains_two_steps(tmp_path, long_model, data, recipe, task, columns):
    if task == "eurus" and sandbox.why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(sandbox.why_unavailable())
    flags = SMALL | {"model_name_or_path": long_model, "data_dir": data / task, "output_dir": tmp_path}
    run_to_end([sys.executable, "train_countdown.py", "--config", f"configs/{recipe}.yaml", *words(flags)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 2 and metrics["before"]["accuracy"] == metrics["after"]["accuracy"] == 0
    table = columns_of_the_last_step(tmp_path)
    assert columns <= set(table) and len(table["completion"]) == 4
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any(entry.get("reward") is not None for entry in history)


def test_rewards_work_in_trls_own_script(tmp_path, long_model, data):
    """The functions unchanged, by their dotted names, on a set that TRL loads itself."""
    flags = SMALL | {
        "model_name_or_path": long_model,
        "dataset_name": data / "x_r1_750",
        "reward_funcs": "rewards.boxed_math_reward",
        "output_dir": tmp_path,
        "report_to": "none",
        "log_completions": True,
        "logging_steps": 1,
    }
    run_to_end([sys.executable, "-m", "trl.scripts.grpo", *words(flags)], env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})
    assert {"boxed_math_reward", "gold", "boxed"} <= set(columns_of_the_last_step(tmp_path))


class TestPreflight:
    @pytest.fixture
    def refused(self, long_model, data, tmp_path):
        def refused(task, *flags):
            paths = SMALL | {"model_name_or_path": long_model, "data_dir": data / task, "output_dir": tmp_path / "out"}
            parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
            with pytest.raises(SystemExit) as stopped:
                preflight.parse(parser, ["--config", str(ROOT / "configs" / "mixture.yaml"), *words(paths), *flags])
            return str(stopped.value)

        return refused

    def test_lack_of_the_rewards_columns_is_named(self, refused):
        output = refused("multiply", "--reward_funcs", "countdown_reward", "--reward_weights", "1")
        assert "multiply/train.parquet has the columns ['product'" in output
        assert "countdown_reward cannot work (countdown_reward() missing 2 required positional" in output

    def test_rows_that_no_reward_scores_are_counted(self, refused):
        output = refused("mixture", "--reward_funcs", "countdown_reward", "--reward_weights", "1")
        assert "get no reward from any of reward_funcs" in output and "is of x_r1_750" in output

    def test_unknown_reward_and_number_of_weights_are_named(self, refused):
        output = refused("mixture", "--reward_funcs", "countdown")
        assert "reward_funcs names countdown; rewards.py has countdown_reward, multiplication_reward" in output
        assert "reward_weights has 2 numbers and reward_funcs 1 names" in output

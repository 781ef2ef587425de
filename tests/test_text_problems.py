"""Readers of problems in words, on fixtures written by hand in the real sets' columns."""

import json

import pyarrow.parquet as pq
import pytest
from conftest import FIXTURES

import preprocess
from r1zero.tasks.word_problems import TEXT_TASKS, TextProblem, Unusable


def prepare(task, folder, *flags):
    """preprocess.py on a task; returns the rows of train and test."""
    preprocess.main([task, "--local_dir", str(folder), *map(str, flags)])
    return rows_of(folder)


def rows_of(folder):
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


GOLDS = {
    "x_r1_750": r"42|\frac{1}{2}|\left\{-2, 2\right\}|x^2+2x+1|8|2\sqrt{2}|9\pi|\text{east}|0.25",
    "gsm8k": "31|25000|-5|4.5|28",  # the numbers after the hashes
}


@pytest.mark.parametrize("task", GOLDS)
def test_golds_are_extracted_and_prompts_are_text_that_the_completion_goes_on_from(data, task):
    rows = sum(rows_of(data / task), [])
    assert {row["solution"] for row in rows} == set(GOLDS[task].split("|"))
    for row in rows:
        assert row["prompt"].startswith("A conversation between User and Assistant.") and "\nUser: " in row["prompt"]
        assert row["prompt"].endswith("\nAssistant: Let me solve this step by step. <think>")


def test_rows_without_a_gold_are_unusable():
    for text in (r"it is \boxed{ }", None):
        with pytest.raises(Unusable, match="without a box that has content"):
            TEXT_TASKS["math"].read({"problem": "a", "solution": text})
    for text in ("31", "#### ", None):
        with pytest.raises(Unusable, match="without an answer after ####"):
            TEXT_TASKS["gsm8k"].read({"question": "a", "answer": text})


def test_eurus_may_give_its_prompt_as_a_chat():
    row = {"ability": "math", "data_source": "numina", "reward_model": {"ground_truth": "5"}}
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 2+3?"}]
    for prompt in ("What is 2+3?", chat):
        assert TEXT_TASKS["eurus"].read(row | {"prompt": prompt}) == TextProblem("What is 2+3?", "5", "math", "numina")
    with pytest.raises(Unusable, match="neither math nor code"):
        TEXT_TASKS["eurus"].read(row | {"prompt": chat, "ability": "poetry"})


def test_unusable_rows_and_repeated_problems_are_dropped_and_counted(tmp_path, capsys):
    train, test = prepare("math", tmp_path / "a", "--source", FIXTURES / "x_r1_750.jsonl", "--test_size", 2)
    assert len(train) == 7 and len(test) == 2
    output = capsys.readouterr().out
    assert "test.parquet: 2 of the 12 rows of train; dropped 2 without a box that has content; " in output
    assert "train.parquet: 7 of the 12 rows" in output and "dropped 3 that came before or stand in test" in output
    rows = [{"problem": text, "solution": r"\boxed{1}"} for text in ("a", "b", "c", "", None)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = prepare("math", tmp_path / "b", "--source", tmp_path / "set.jsonl")
    assert len(train + test) == 3 and "dropped 2 without a problem" in capsys.readouterr().out


def test_eurus_keeps_what_can_be_scored_and_counts_the_rest(tmp_path, long_model, capsys):
    flags = ("--source", FIXTURES / "eurus.jsonl", "--tokenizer", long_model, "--test_size", 1)
    rows = sorted(sum(prepare("eurus", tmp_path, *flags), []), key=lambda row: str(row["solution"]))
    assert [row["solution"] for row in rows] == ["2x+2", "32", "540", None, None]
    for row in rows:
        assert (row["tests"] is None) == (row["ability"] == "math")
        assert row["reward_model"]["ground_truth"] == (row["solution"] or row["tests"])
        assert ("```python" in row["prompt"]) == (row["ability"] == "code")
    assert {row["data_source"] for row in rows if row["tests"]} == {"taco", "apps"}
    output = capsys.readouterr().out
    for what in ("a unit in the gold", "a box in the gold", "an empty gold", "empty or unreadable tests"):
        assert f"rows with {what}" in output
    assert "1 prompts over 1,000 tokens" in output


def test_chat_prompt_keeps_the_problems_braces(tmp_path):
    train, test = prepare("math", tmp_path, "--source", FIXTURES / "x_r1_750.jsonl", "--template", "chat")
    (row,) = [row for row in train + test if "sqrt" in row["prompt"]]
    assert row["prompt"].startswith("<|im_start|>system\n") and r"\boxed{your answer}" in row["prompt"]
    assert "<|im_start|>user\nWhat is $\\sqrt{8}$ in simplest form?<|im_end|>" in row["prompt"]
    assert row["prompt"].endswith("<|im_start|>assistant\nLet me solve this step by step. <think>")


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_own_test_split_is_used_and_kept_out_of_train(tmp_path, held_out):
    lines = (FIXTURES / "gsm8k.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / f"{held_out}.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(SystemExit, match=rf"has the splits \['{held_out}'\], wanted train"):
        prepare("gsm8k", tmp_path / "data", "--source", tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(lines))
    train, test = prepare("gsm8k", tmp_path / "data", "--source", tmp_path)
    assert {row["solution"] for row in test} == {"31", "25000"}
    assert {row["solution"] for row in train} == {"-5", "4.5", "28"}

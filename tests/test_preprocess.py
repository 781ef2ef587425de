"""preprocess.py's commands on small sizes: the files, what is printed, what is refused.

Problems in words are fixtures written by hand in the real sets' columns.
"""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FIXTURES, each_case

import preprocess
from r1zero.tasks.word_problems import TEXT_TASKS, TextProblem, Unusable


def read(folder):
    """Return the rows of train and test."""
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


def prepare(task, folder, *flags):
    """Run preprocess.py on a task; return the rows of train and test."""
    preprocess.main([task, "--local_dir", str(folder), *map(str, flags)])
    return read(folder)


def test_rows_have_tinyzeros_schema_and_counts_and_a_whole_prompt_are_printed(tmp_path, capsys):
    tinyzeros = ("--num_samples", 21, "--template_type=qwen-instruct")
    made = prepare("countdown", tmp_path, *tinyzeros, "--test_size", 4)
    assert [len(rows) for rows in made] == [21, 4]
    for split, rows in zip(("train", "test"), made, strict=True):
        for index, row in enumerate(rows):
            assert " ".join(row) == "nums target data_source prompt ability reward_model extra_info"
            assert row["data_source"] == "countdown" and row["ability"] == "math"
            truth = {"target": row["target"], "numbers": row["nums"]}
            assert row["reward_model"] == {"style": "rule", "ground_truth": truth}
            assert row["extra_info"] == {"split": split, "index": index}
            question = f"Using the numbers {row['nums']}, create an equation that equals {row['target']}."
            assert question in row["prompt"] and row["prompt"].startswith("<|im_start|>system")
    output, row = capsys.readouterr().out, made[1][0]
    assert f"{tmp_path}/train.parquet: 21 problems, 11 of 3 numbers (" in output and "% need * or /)" in output
    assert f"One example of {tmp_path}/test.parquet:\n  nums: {row['nums']}" in output
    assert f"  prompt:\n{row['prompt']}\n" in output


# Drawn, all that exist, and longer than a machine word
@pytest.mark.parametrize(("digits", "sizes"), [((2, 2), (3000, 1000)), ((1, 1), (44, 1)), ((18, 17), (1, 1))])
def test_products_are_right_different_and_disjoint(tmp_path, digits, sizes):
    flags = ("--digits", *digits, "--train_size", sizes[0], "--test_size", sizes[1])
    train, test = prepare("multiply", tmp_path, *flags)
    pairs = set()
    for row in train + test:
        assert row["prompt"].endswith("\nAssistant: Let me solve this step by step.\n<think>")
        left, right = row["prompt"].split("equation: ")[1].split(" =")[0].split(" * ")
        assert (len(left), len(right)) == digits and row["product"] == str(int(left) * int(right))
        pairs.add(frozenset((left, right)))
    assert (len(train), len(test)) == sizes and len(pairs) == sum(sizes)
    assert [train, test] == prepare("multiply", tmp_path / "again", *flags), "the seed decides"
    assert [train, test] != prepare("multiply", tmp_path / "other", *flags, "--seed", 1)


def test_mixture_has_equal_parts_and_none_in_the_columns_of_other_tasks(data):
    rows = sum(read(data / "mixture"), [])
    sources = [row["data_source"] for row in rows]
    assert sources.count("countdown") == sources.count("x_r1_750") == len(rows) / 2 > 4
    for row in rows:
        assert (row["nums"] is None) == (row["target"] is None) == (row["solution"] is not None)
    assert sources != sorted(sources), "shuffled"


def test_problem_that_one_part_of_a_mixture_holds_out_is_in_no_train(tmp_path):
    for seed in (0, 1):  # of few numbers, so that they share problems
        words = f"--train_size 400 --test_size 60 --max_number 9 --num_operands 3 --seed {seed}"
        prepare("countdown", tmp_path / str(seed), *words.split())
    preprocess.main(["mixture", *(str(tmp_path / name) for name in "01"), "--local_dir", str(tmp_path / "both")])
    train, test = ({row["prompt"] for row in rows} for rows in read(tmp_path / "both"))
    assert len(train) > 200 and not train & test


@each_case("refused_preprocess.tsv", "arguments")
def test_wrong_input_ends_in_a_line_that_says_what_was_wanted(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    for name, text in {"x.txt": "x", "empty.jsonl": "", "types.jsonl": '{"problem": "x", "solution": 7}\n'}.items():
        (tmp_path / name).write_text(text)
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    pq.write_table(pa.table({"nums": [[1, 2, 30], []], "target": [33, 43]}), "bare.parquet")
    pq.write_table(pa.table({"nums": [[1, 2, 30], [1, 2, 40]], "target": [33, 43]}), "two.parquet")
    arguments = case["arguments"].replace("{fixtures}", str(FIXTURES)).split()
    with pytest.raises(SystemExit) as stopped:
        preprocess.main([*arguments, "--local_dir", "data"])
    said = capsys.readouterr().err.splitlines()[-1] if stopped.value.code == 2 else stopped.value.code
    assert re.search(rf"^\w+.py: .*{case['said']}", said) and "\n" not in said
    assert not list(tmp_path.glob("data/*"))


# Problems in words

GOLDS = {
    "x_r1_750": r"42|\frac{1}{2}|\left\{-2, 2\right\}|x^2+2x+1|8|2\sqrt{2}|9\pi|\text{east}|0.25",
    "gsm8k": "31|25000|-5|4.5|28",  # the numbers after the hashes
}


@pytest.mark.parametrize("task", GOLDS)
def test_golds_are_extracted_and_prompts_are_text_that_the_completion_goes_on_from(data, task):
    rows = sum(read(data / task), [])
    assert {row["solution"] for row in rows} == set(GOLDS[task].split("|"))
    for row in rows:
        assert row["prompt"].startswith("A conversation between User and Assistant.") and "\nUser: " in row["prompt"]
        assert row["prompt"].endswith("\nAssistant: Let me solve this step by step. <think>")


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

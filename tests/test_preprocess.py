"""preprocess.py's commands on small sizes: the files, what is printed, what is refused."""

import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ENVIRONMENT, FIXTURES, each_case, run_to_end

import preprocess

SCHEMA = ["nums", "target", "data_source", "prompt", "ability", "reward_model", "extra_info"]
TWO = [([1, 2, 30], 33), ([1, 2, 40], 43)]


def prepare(task, folder, *flags):
    """preprocess.py on a task; returns the rows of train and test."""
    preprocess.main([task, "--local_dir", str(folder), *map(str, flags)])
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


def write_source(path, problems):
    pq.write_table(pa.table({"target": [t for _, t in problems], "nums": [n for n, _ in problems]}), path)
    return path


class TestCountdown:
    def test_rows_have_tinyzeros_schema_and_counts_and_a_whole_prompt_are_printed(self, tmp_path, capsys):
        tinyzeros = ("--num_samples", 21, "--template_type=qwen-instruct")
        made = prepare("countdown", tmp_path, *tinyzeros, "--test_size", 4)
        assert [len(rows) for rows in made] == [21, 4]
        for split, rows in zip(("train", "test"), made, strict=True):
            for index, row in enumerate(rows):
                assert list(row) == SCHEMA
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

    @pytest.mark.parametrize("split", ["unique", "tinyzero"])
    def test_source_is_split_as_asked(self, tmp_path, split):
        problems = [([a, a + 1, 5], 2 * a + 6) for a in range(10, 20)]
        source = write_source(tmp_path / "set.parquet", problems)
        flags = ("--source", source, "--split", split, "--train_size", 8, "--test_size", 2)
        made = prepare("countdown", tmp_path, *flags)
        train, test = ([(row["nums"], row["target"]) for row in rows] for rows in made)
        assert sorted(train + test) == problems and (len(train), len(test)) == (8, 2)
        assert (train + test == problems) == (split == "tinyzero")


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
    tables = [pq.read_table(data / "mixture" / f"{split}.parquet") for split in ("train", "test")]
    rows = [row for table in tables for row in table.to_pylist()]
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
    prompts = [pq.read_table(tmp_path / f"both/{split}.parquet")["prompt"].to_pylist() for split in ("train", "test")]
    assert len(prompts[0]) > 200 and not set(prompts[0]) & set(prompts[1])


@each_case("refused_preprocess.tsv", "arguments")
def test_wrong_input_ends_in_a_line_that_says_what_was_wanted(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    for name, text in {"x.txt": "x", "empty.jsonl": "", "types.jsonl": '{"problem": "x", "solution": 7}\n'}.items():
        (tmp_path / name).write_text(text)
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    write_source("bare.parquet", [TWO[0], ([], 43)])
    write_source("two.parquet", TWO)
    arguments = case["arguments"].replace("{fixtures}", str(FIXTURES)).split()
    with pytest.raises(SystemExit) as stopped:
        preprocess.main([*arguments, "--local_dir", "data"])
    said = capsys.readouterr().err.splitlines()[-1] if stopped.value.code == 2 else stopped.value.code
    assert re.search(rf"^\w+.py: .*{case['said']}", said) and "\n" not in said
    assert not list(tmp_path.glob("data/*"))


def test_characters_that_the_output_lacks_are_printed_as_python_writes_them(tmp_path):
    """An output that knows Latin alone loses neither the files nor the example."""
    problems = [json.dumps({"question": f"\u4e00 + {n}?", "answer": f"#### {n}"}) for n in range(9)]
    (tmp_path / "own.jsonl").write_text("\n".join(problems))
    command = [sys.executable, "preprocess.py", "gsm8k", "--source", tmp_path / "own.jsonl", "--local_dir", tmp_path]
    output = run_to_end(command, ENVIRONMENT | {"PYTHONIOENCODING": "latin-1"})
    assert r"\u4e00 + " in output and (tmp_path / "test.parquet").is_file()

"""preprocess.py's commands on small sizes: the files, what is printed, what is refused.

bash tests/run.sh tests/test_preprocess.py
"""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import preprocess
from r1zero import ROOT

SCHEMA = ["nums", "target", "data_source", "prompt", "ability", "reward_model", "extra_info"]


def prepare(task, folder, *flags):
    """preprocess.py on a task; returns the rows of train and test."""
    preprocess.main([task, "--local_dir", str(folder), *map(str, flags)])
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


def write_source(path, problems):
    pq.write_table(pa.table({"target": [t for _, t in problems], "nums": [n for n, _ in problems]}), path)
    return path


def test_nothing_heavy_is_imported_before_a_task_needs_it():
    heavy = {"torch", "transformers", "datasets"}
    command = f"import sys, preprocess; print(*({heavy!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.split() == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepare("countdown", tmp_path_factory.mktemp("made"), "--train_size", 101, "--test_size", 11)


class TestCountdown:
    def test_rows_have_tinyzeros_schema(self, made):
        assert [len(rows) for rows in made] == [101, 11]
        for split, rows in zip(("train", "test"), made, strict=True):
            for index, row in enumerate(rows):
                assert list(row) == SCHEMA
                assert row["data_source"] == "countdown" and row["ability"] == "math"
                truth = {"target": row["target"], "numbers": row["nums"]}
                assert row["reward_model"] == {"style": "rule", "ground_truth": truth}
                assert row["extra_info"] == {"split": split, "index": index}

    def test_prompt_asks_for_the_rows_own_numbers_and_target(self, made):
        for row in made[0]:
            question = f"Using the numbers {row['nums']}, create an equation that equals {row['target']}."
            assert question in row["prompt"]

    def test_counts_and_a_whole_prompt_are_printed(self, tmp_path, capsys):
        _, test = prepare("countdown", tmp_path, "--train_size", 20, "--test_size", 4, "--num_operands", 3)
        output = capsys.readouterr().out
        assert f"{tmp_path}/train.parquet: 20 problems, 20 of 3 numbers (" in output and "% need * or /)" in output
        assert f"One example of {tmp_path}/test.parquet:\n  nums: {test[0]['nums']}" in output
        assert f"  prompt:\n{test[0]['prompt']}\n" in output

    def test_long_prompts_are_dropped_and_counted(self, tmp_path, tiny_model, capsys):
        # The tiny tokenizer needs 9 tokens for three numbers and 11 for four
        flags = ("--train_size", 20, "--test_size", 4, "--tokenizer", tiny_model, "--max_prompt_length", 10)
        train, test = prepare("countdown", tmp_path, *flags)
        assert {len(row["nums"]) for row in train + test} == {3}
        assert "dropped 10 prompts over 10 tokens" in capsys.readouterr().out

    def test_chat_is_rendered_by_the_tokenizer_that_is_given(self, tmp_path, tiny_model):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        flags = ("--template", "qwen-instruct", "--tokenizer", tmp_path / "tokenizer")
        _, (row,) = prepare("countdown", tmp_path, "--train_size", 1, "--test_size", 1, *flags)
        assert f"[end][user]Using the numbers {row['nums']}" in row["prompt"]

    @pytest.mark.parametrize("split", ["unique", "tinyzero"])
    def test_source_is_split_as_asked(self, tmp_path, split):
        problems = [([a, a + 1, 5], 2 * a + 6) for a in range(10, 20)]
        source = write_source(tmp_path / "set.parquet", problems)
        flags = ("--source", source, "--split", split, "--train_size", 8, "--test_size", 2)
        train, test = (
            [(row["nums"], row["target"]) for row in rows] for rows in prepare("countdown", tmp_path, *flags)
        )
        assert sorted(train + test) == problems and (len(train), len(test)) == (8, 2)
        assert (train + test == problems) == (split == "tinyzero")

    def test_source_may_be_json_lines(self, tmp_path):
        source = tmp_path / "set.jsonl"
        source.write_text('{"nums": [1, 2, 30], "target": 33}\n{"nums": [1, 2, 40], "target": 43}\n')
        train, test = prepare("countdown", tmp_path, "--source", source, "--train_size", 1, "--test_size", 1)
        assert {row["target"] for row in train + test} == {33, 43}


class TestMultiply:
    def test_products_are_right_different_and_disjoint(self, tmp_path):
        flags = ("--digits", 2, 2, "--train_size", 3000, "--test_size", 1000)
        train, test = prepare("multiply", tmp_path, *flags)
        pairs = []
        for row in train + test:
            assert row["prompt"].endswith("\nAssistant: Let me solve this step by step.\n<think>")
            left, right = row["prompt"].split("equation: ")[1].split(" =")[0].split(" * ")
            assert len(left) == len(right) == 2 and row["product"] == str(int(left) * int(right))
            pairs.append(tuple(sorted((left, right))))
        assert (len(train), len(test)) == (3000, 1000) and len(set(pairs)) == 4000
        assert [train, test] == prepare("multiply", tmp_path / "again", *flags), "the seed decides"
        assert [train, test] != prepare("multiply", tmp_path / "other", *flags, "--seed", 1)

    def test_every_product_that_exists_can_be_asked_for(self, tmp_path):
        train, test = prepare("multiply", tmp_path, "--digits", 1, 1, "--train_size", 44, "--test_size", 1)
        assert len({row["prompt"] for row in train + test}) == 45

    def test_products_may_be_longer_than_a_machine_word(self, tmp_path):
        flags = ("--digits", 18, 17, "--train_size", 1, "--test_size", 1)
        (row,), _ = prepare("multiply", tmp_path, *flags)
        left, right = row["prompt"].split("equation: ")[1].split(" =")[0].split(" * ")
        assert (len(left), len(right)) == (18, 17) and int(row["product"]) == int(left) * int(right)


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
        words = f"countdown --train_size 400 --test_size 60 --max_number 9 --num_operands 3 --seed {seed}"
        preprocess.main([*words.split(), "--local_dir", str(tmp_path / str(seed))])
    preprocess.main(["mixture", *(str(tmp_path / name) for name in "01"), "--local_dir", str(tmp_path / "both")])
    prompts = [pq.read_table(tmp_path / f"both/{split}.parquet")["prompt"].to_pylist() for split in ("train", "test")]
    assert len(prompts[0]) > 200 and not set(prompts[0]) & set(prompts[1])


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has no rows"), ('{"problem": "x", "solution": 7}\n', "cannot be read as problems (TypeError: ")],
)
def test_source_that_holds_no_problems_is_told_in_one_line(tmp_path, text, said):
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        preprocess.main(["math", "--source", str(tmp_path / "own.jsonl"), "--local_dir", str(tmp_path / "out")])
    line = str(stopped.value)
    assert f"--source {tmp_path}/own.jsonl {said}" in line and "\n" not in line

"""preprocess.py on small sizes and on fixtures.   bash tests/run.sh tests/test_preprocess.py"""

from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocess
from preprocess import problem_id

SCHEMA = ["nums", "target", "data_source", "prompt", "ability", "reward_model", "extra_info"]


def make(folder, *flags):
    preprocess.main(["countdown", "--local_dir", str(folder), *map(str, flags)])
    return [pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")]


def reachable(values):
    """Every value that some expression in all of these numbers has, by brute force."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if i != j:
                rest = [value for k, value in enumerate(values) if k not in (i, j)]
                for value in (a + b, a - b, a * b, *([a / b] if b else [])):
                    found |= reachable([*rest, value])
    return found


def write_source(path, problems):
    pq.write_table(pa.table({"target": [t for _, t in problems], "nums": [n for n, _ in problems]}), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"), "--train_size", 1001, "--test_size", 100)


def test_rows_have_tinyzeros_schema(made):
    for split, rows in zip(("train", "test"), made, strict=True):
        for index, row in enumerate(rows):
            assert list(row) == SCHEMA
            assert row["data_source"] == "countdown" and row["ability"] == "math"
            assert row["reward_model"] == {
                "style": "rule",
                "ground_truth": {"target": row["target"], "numbers": row["nums"]},
            }
            assert row["extra_info"] == {"split": split, "index": index}


def test_sizes_ranges_and_halves_are_as_asked(made):
    train, test = made
    assert (len(train), len(test)) == (1001, 100)
    assert sorted(len(row["nums"]) for row in train) == [3] * 501 + [4] * 500
    assert sorted(len(row["nums"]) for row in test) == [3] * 50 + [4] * 50
    assert all(1 <= number <= 99 for row in train + test for number in row["nums"])
    assert all(10 <= row["target"] <= 100 for row in train + test)


def test_every_problem_is_solvable_with_each_number_once(made):
    for row in made[0][:150] + made[1]:
        assert row["target"] in reachable([Fraction(number) for number in row["nums"]]), row


def test_no_problem_comes_twice_and_no_test_problem_is_in_train(made):
    train, test = ([problem_id(row["nums"], row["target"]) for row in rows] for rows in made)
    assert len(set(train + test)) == len(train) + len(test)


def test_products_and_quotients_are_needed_in_a_fair_share(made):
    """Checked by brute force over the signs, of which a right answer by + and - alone must be one."""

    def by_sums(row):
        sums = {0}
        for number in row["nums"]:
            sums = {value + sign * number for value in sums for sign in (1, -1)}
        return row["target"] in sums

    share = sum(not by_sums(row) for row in made[0]) / len(made[0])
    assert 0.4 < share < 0.6


def test_seed_decides_the_problems(tmp_path):
    first, again, other = (
        make(tmp_path / name, "--train_size", 50, "--test_size", 5, "--seed", seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again and first != other


def test_base_prompt_ends_in_the_prefilled_turn(made):
    row = made[0][0]
    assert row["prompt"].startswith("A conversation between User and Assistant.")
    assert f"Using the numbers {row['nums']}, create an equation that equals {row['target']}." in row["prompt"]
    assert row["prompt"].endswith("\nAssistant: Let me solve this step by step.\n<think>")


def test_instruct_prompt_is_chatml_with_the_turn_left_open(tmp_path):
    (row,) = make(tmp_path, "--train_size", 1, "--test_size", 1, "--template", "qwen-instruct")[1]
    assert row["prompt"].startswith("<|im_start|>system\nYou are a helpful assistant.")
    assert row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\nLet me solve this step by step.\n<think>")


def test_instruct_prompt_uses_the_models_own_chat_template(tmp_path, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '{}' }}[end]{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (row,) = make(
        tmp_path,
        *("--train_size", 1, "--test_size", 1, "--template", "qwen-instruct", "--tokenizer", tmp_path / "tokenizer"),
    )[1]
    assert row["prompt"].startswith("[system]You are") and f"[user]Using the numbers {row['nums']}" in row["prompt"]
    assert row["prompt"].endswith("[assistant]Let me solve this step by step.\n<think>")


def test_long_prompts_are_dropped_and_counted(tmp_path, tiny_model, capsys):
    # The tiny tokenizer needs 9 tokens for three numbers and 11 for four
    flags = ("--train_size", 20, "--test_size", 4, "--tokenizer", tiny_model, "--max_prompt_length", 10)
    train, test = make(tmp_path, *flags)
    assert {len(row["nums"]) for row in train + test} == {3}
    assert "dropped 10 prompts over 10 tokens" in capsys.readouterr().out


def test_source_is_deduplicated_and_split_without_leakage(tmp_path, capsys):
    problems = [([a, a + 1, 5], 2 * a + 6) for a in range(10, 40)]
    reordered = [([5, *nums[:2]], target) for nums, target in problems[:10]]
    source = write_source(tmp_path / "set.parquet", problems + reordered)
    train, test = make(tmp_path, "--source", source, "--train_size", 25, "--test_size", 5)
    assert "40 rows, 10 of them duplicates, 30 different problems" in capsys.readouterr().out
    ids = [problem_id(row["nums"], row["target"]) for row in train + test]
    assert len(set(ids)) == len(ids) == 30


def test_tinyzero_split_takes_the_first_rows_and_counts_leaks(tmp_path, capsys):
    problems = [([a, a + 1, 5], 2 * a + 6) for a in range(10, 20)]
    source = write_source(tmp_path / "set.parquet", [*problems, ([5, 11, 10], 26), ([90, 3, 4], 97)])
    train, test = make(tmp_path, "--source", source, "--split", "tinyzero", "--train_size", 10, "--test_size", 2)
    assert [(row["nums"], row["target"]) for row in train] == problems
    assert [row["target"] for row in test] == [26, 97]
    assert "leaks: 1 of 2 test rows (50.0%)" in capsys.readouterr().out


def test_source_may_be_json_lines(tmp_path):
    source = tmp_path / "set.jsonl"
    source.write_text('{"nums": [1, 2, 30], "target": 33}\n{"nums": [1, 2, 40], "target": 43}\n')
    train, test = make(tmp_path, "--source", source, "--train_size", 1, "--test_size", 1)
    assert {row["target"] for row in train + test} == {33, 43}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(("--num_operands", 3, "--max_number", 4), "different problems of 3 numbers 1..4", id="too few"),
        pytest.param(("--source", "nowhere.parquet"), "nowhere.parquet does not exist", id="no such source"),
        pytest.param(("--source", "x.txt"), "no parquet, json or jsonl", id="a source of another format"),
        pytest.param(("--source", "other.parquet"), r"columns \['a'\]; wanted nums and target", id="wrong columns"),
        pytest.param(("--source", "two.parquet"), "has 2 problems, --train_size 327,680", id="too small a source"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    write_source("two.parquet", [([1, 2, 30], 33), ([1, 2, 40], 43)])
    with pytest.raises(SystemExit, match=message):
        make(tmp_path / "out", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(("--max_prompt_length", 9), "needs --tokenizer", id="a token limit without tokenizer"),
        pytest.param(("--source", "x", "--max_number", 9), "cannot go with --source", id="numbers for a source"),
        pytest.param(("--split", "tinyzero"), "give it with --source", id="a split without source"),
        pytest.param(("--max_target", 5), "--max_target of at least 10", id="targets out of range"),
        pytest.param(("--num_operands", 1), "--num_operands of at least 2", id="one number"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        make(tmp_path, *flags)
    assert message in capsys.readouterr().err

"""What is read of a file of problems, and of a damaged one; its faults are in tests/test_preflight.py."""

import math
import pkgutil
import random
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trl

from r1zero import tiny_model as tiny
from r1zero.preflight import data as of_data

COUNTDOWN = {"prompt": ["a", "bb", "ccc"], "nums": [[1, 2], [3, 4, 5], [6, 7, 8, 9]], "target": [3, 12, 30]}
TYPES = {"nums": pa.large_list(pa.int16()), "target": pa.uint8(), "prompt": pa.large_string()}
TYPED = {name: pa.array(COUNTDOWN[name], kind) for name, kind in TYPES.items()}
MIXED = {"nums": [[1, 2], None], "target": [3, None], "solution": [None, "5"]}
CHAT = [{"role": "user", "content": "1 + 1?"}]


@pytest.fixture
def examine(tmp_path):
    """What is found in a file with these columns, which a function of rewards.py is to score."""

    def run(columns, *names, row_group_size=None):
        pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=row_group_size)
        file, errors = of_data.examine(tmp_path / "train.parquet", names, "type this", first_rows=2)
        assert (file is None) == bool(errors)
        assert all("train.parquet" in error and "type this" in error and "\n" not in error for error in errors)
        return file, errors

    return run


OF_TASKS = {"countdown": "countdown.PROMPT", "mixture": "word_problems.MATHS", "eurus": "word_problems.CODE"}


@pytest.mark.parametrize(("task", "name"), OF_TASKS.items())
def test_prompts_that_would_be_written_otherwise_now_are_said(data, monkeypatch, task, name):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    values = SimpleNamespace(data_dir=data / task, reward_funcs=["mine:reward"], prepare="x.py --template base")

    def notices():
        files, errors = of_data.read(values)
        assert errors == []
        return of_data.template_notices(files, values, tokenizer)

    assert notices() == []
    values.prepare = "x.py --template chat"
    assert len(notices()) == 1
    values.prepare = None
    assert notices() == []
    edited = pkgutil.resolve_name(f"r1zero.tasks.{name}")._replace(beginning="Well. <think>")
    monkeypatch.setattr(f"r1zero.tasks.{name}", edited)
    (notice,) = notices()
    assert f"{data / task}/train.parquet has other prompts than {name} of" in notice


@pytest.mark.parametrize(
    ("chat", "is_text"),
    [
        ([{"role": "user", "content": "1 + 1?\n<think>\n"}], True),
        ([{"role": "user", "content": "Write in <think> </think> tags."}], False),
        ([{"role": "assistant", "content": "<think>"}], False),
        ([*CHAT, {"role": "user", "content": "<think>"}], False),
    ],
)
def test_prompt_of_one_user_message_that_opens_a_think_is_its_text(examine, chat, is_text):
    file, _ = examine({"prompt": [chat, chat]}, "mine:reward")
    assert file.first["prompt"] == file.prompts == [chat[0]["content"] if is_text else chat] * 2
    assert len(file.notices) == is_text
    assert examine({"prompt": [chat, CHAT]}, "mine:reward")[0].notices == [], "all rows or none"


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("countdown_reward", TYPED),
        ("multiplication_reward", {"product": ["-12"]}),
        ("multiplication_reward", {"product": [12]}),
        ("boxed_math_reward", {"ground_truth": ["1"]}),
        ("countdown_reward boxed_math_reward", MIXED),  # with nulls in the rows of another task
        # of a user, with any other columns
        ("mine:reward", {"nums": [None, "two"], "target": [math.nan, 1.5]}),
        ("countdown_reward mine:reward", {"nums": [[1, 2], None], "target": [3, None]}),
    ],
)
def test_of_other_types_and_with_other_rows_that_serve_as_well_are_taken(examine, names, columns):
    rows = max(map(len, columns.values()))
    assert examine({"prompt": ["a"] * rows} | columns, *names.split())[1] == []


def test_longest_prompts_are_found_wherever_they_stand(examine, monkeypatch):
    monkeypatch.setattr(of_data, "ROWS_AT_A_TIME", 7)
    lengths = list(range(1, 101))
    random.Random(0).shuffle(lengths)
    file, _ = examine({"prompt": ["é" * length for length in lengths]}, "mine:reward", row_group_size=10)
    assert [len(prompt) for prompt in file.prompts] == list(range(85, 101)) and file.rows == 100


def test_rows_are_counted_in_the_file_and_not_in_its_parts(examine, monkeypatch):
    monkeypatch.setattr(of_data, "ROWS_AT_A_TIME", 10)
    prompts = ["" if row in (37, 81) else "a" for row in range(95)]
    (error,) = examine({"prompt": prompts}, "mine:reward", row_group_size=25)[1]
    assert "row 37 is ''" in error and "(2 such of 95 rows)" in error


@pytest.mark.parametrize("last", ["Solve: <think>", "Solve:"])
def test_chats_are_taken_as_texts_if_all_of_the_file_are_rendered(examine, monkeypatch, last):
    monkeypatch.setattr(of_data, "ROWS_AT_A_TIME", 2)
    chats = [[{"role": "user", "content": text}] for text in ("1 + 1? <think>", "1 + 2? <think>", last)]
    file, _ = examine({"prompt": chats}, "mine:reward")
    are_texts = last.endswith("<think>")
    assert len(file.notices) == are_texts and isinstance(file.first["prompt"][0], str) == are_texts

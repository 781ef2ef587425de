"""Each fault of a file of problems, with its line: file, column, row.   bash tests/run.sh tests/test_data.py"""

import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1zero.preflight import data

COUNTDOWN = {"prompt": ["a", "bb", "ccc"], "nums": [[1, 2], [3, 4, 5], [6, 7, 8, 9]], "target": [3, 12, 30]}
CHAT = [{"role": "user", "content": "1 + 1?"}]


@pytest.fixture
def examine(tmp_path):
    """What is found in a file with these columns, which a function of rewards.py is to score."""

    def run(columns, *names, row_group_size=None):
        pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=row_group_size)
        file, errors = data.examine(tmp_path / "train.parquet", names, "type this", first_rows=2)
        assert (file is None) == bool(errors)
        assert all("train.parquet" in error and "type this" in error and "\n" not in error for error in errors)
        return file, errors

    return run


@pytest.fixture
def line(examine):
    """The one line that is said of a file of Countdown, with some columns in place of the right ones."""

    def run(**columns):
        kept = {name: column for name, column in (COUNTDOWN | columns).items() if column is not None}
        (error,) = examine(kept, "countdown_reward")[1]
        return error

    return run


class TestRightFiles:
    def test_of_countdown_are_known_by_rows_longest_prompts_and_first_values(self, examine):
        file, _ = examine(COUNTDOWN, "countdown_reward")
        assert (file.rows, file.prompts) == (3, ["a", "bb", "ccc"])
        assert file.first == {name: column[:2] for name, column in COUNTDOWN.items()}

    def test_of_other_types_that_serve_as_well_are_taken(self, examine):
        types = {"prompt": pa.large_string(), "nums": pa.large_list(pa.int16()), "target": pa.uint8()}
        columns = {name: pa.array(COUNTDOWN[name], kind) for name, kind in types.items()}
        assert examine(columns, "countdown_reward")[1] == []
        assert examine({"prompt": ["a"], "product": ["-12"]}, "multiplication_reward")[1] == []
        assert examine({"prompt": ["a"], "product": [12]}, "multiplication_reward")[1] == []
        assert examine({"prompt": ["a"], "ground_truth": ["1"]}, "boxed_math_reward")[1] == []

    def test_of_a_mixture_have_nulls_in_rows_of_another_task(self, examine):
        columns = {"prompt": ["a", "b"], "nums": [[1, 2], None], "target": [3, None], "solution": [None, "5"]}
        assert examine(columns, "countdown_reward", "boxed_math_reward")[1] == []
        columns = {"prompt": ["a"], "nums": [None], "target": [None], "solution": ["5"]}
        assert examine(columns, "countdown_reward", "boxed_math_reward")[1] == []

    def test_of_a_user_may_have_any_other_columns(self, examine):
        columns = {"prompt": ["a", "b"], "nums": [None, "two"], "target": [math.nan, 1.5]}
        assert examine(columns, "mine:reward")[1] == []
        columns = {"prompt": ["a", "b"], "nums": [[1, 2], None], "target": [3, None]}
        assert examine(columns, "countdown_reward", "mine:reward")[1] == []

    def test_of_chats_are_as_long_as_their_messages(self, examine):
        long = [{"role": "system", "content": "be short"}, {"role": "user", "content": ""}]
        file, errors = examine({"prompt": [long, CHAT]}, "mine:reward")
        assert errors == [] and file.prompts == [CHAT, long]

    def test_longest_prompts_are_found_wherever_they_stand(self, examine, monkeypatch):
        monkeypatch.setattr(data, "ROWS_AT_A_TIME", 7)
        lengths = list(range(1, 101))
        random.Random(0).shuffle(lengths)
        file, _ = examine({"prompt": ["é" * length for length in lengths]}, "mine:reward", row_group_size=10)
        assert [len(prompt) for prompt in file.prompts] == list(range(85, 101)) and file.rows == 100


class TestFiles:
    def test_that_are_no_parquet_or_are_cut_short_are_named(self, tmp_path):
        path = tmp_path / "train.parquet"
        for content in (b"", b"PAR1", b'{"prompt": "a"}'):
            path.write_bytes(content)
            (error,) = data.examine(path, ["countdown_reward"], "type this")[1]
            assert error.startswith(f"{path} is no readable parquet file (") and error.endswith("): type this")

    @pytest.mark.parametrize("column", ["prompt", "nums", "note"])
    def test_with_a_damaged_page_are_named_whichever_column_it_is_in(self, tmp_path, column):
        path = tmp_path / "train.parquet"
        rows = 2000
        columns = {"prompt": [f"{i} ?" for i in range(rows)], "nums": [[i, 1] for i in range(rows)]}
        columns |= {"target": [i + 1 for i in range(rows)], "note": [f"{i} !" for i in range(rows)]}
        pq.write_table(pa.table(columns), path)
        chunks = pq.ParquetFile(path).metadata.row_group(0)
        (start,) = [
            chunk.data_page_offset
            for chunk in (chunks.column(i) for i in range(chunks.num_columns))
            if chunk.path_in_schema.split(".")[0] == column
        ]
        content = bytearray(path.read_bytes())
        content[start : start + 40] = bytes(40)
        path.write_bytes(content)
        (error,) = data.examine(path, ["countdown_reward"], "type this")[1]
        assert "is no readable parquet file" in error and "\n" not in error

    def test_without_rows_or_columns_are_named(self, examine):
        empty = {name: pa.array([], kind) for name, kind in (("prompt", pa.string()), ("product", pa.string()))}
        assert "has no rows: type this" in examine(empty, "multiplication_reward")[1][0]
        (error,) = examine({"prompt": ["a"], "target": [1]}, "countdown_reward", "boxed_math_reward")[1]
        assert "has the columns ['prompt', 'target'] and lacks nums and solution: type this" in error


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            pytest.param({"prompt": [1, 2, 3]}, "column prompt: its type is int64 (row 0 is 1), wanted", id="int"),
            pytest.param({"prompt": [b"a"] * 3}, "column prompt: its type is binary (row 0 is b'a')", id="bytes"),
            pytest.param({"prompt": [None] * 3}, "column prompt: its type is null (row 0 is None)", id="nulls"),
            pytest.param({"prompt": [["a"]] * 3}, "(row 0 is ['a']), wanted text, or chat", id="a list of texts"),
            pytest.param({"prompt": [[{"role": "user"}]] * 3}, "messages with role and content", id="no content"),
            pytest.param({"target": [3, math.nan, 30]}, "type is double (row 1 is nan), wanted a whole", id="NaN"),
            pytest.param({"target": [3.0, None, 30.0]}, "target: its type is double (row 0 is 3.0)", id="float"),
            pytest.param({"target": ["3", "4", "5"]}, "column target: its type is string (row 0 is '3')", id="text"),
            pytest.param({"nums": [[1.0], [2.0], [3.0]]}, "column nums: its type is list<", id="numbers as floats"),
            pytest.param({"nums": ["1 2"] * 3}, "type is string (row 0 is '1 2'), wanted a list", id="one text"),
        ],
    )
    def test_of_another_type_are_named_with_a_row(self, line, columns, said):
        assert said in line(**columns)


class TestRows:
    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            pytest.param(
                {"prompt": ["a", None, ""]}, "column prompt: row 1 is None, wanted text, or chat", id="prompt null"
            ),
            pytest.param({"prompt": ["a", "b", ""]}, "column prompt: row 2 is '', wanted text", id="prompt empty"),
            pytest.param({"prompt": [CHAT, [], CHAT]}, "column prompt: row 1 is [], wanted text", id="chat empty"),
            pytest.param({"prompt": [CHAT, None, CHAT]}, "column prompt: row 1 is None, wanted text", id="chat null"),
            pytest.param(
                {"prompt": [CHAT, CHAT, [*CHAT, {"role": "user", "content": None}]]},
                "column prompt: row 2 is [{",
                id="message without content",
            ),
            pytest.param({"nums": [[1, 2], None, [6, 7, 8, 9]]}, "column nums: row 1 is None", id="nums null"),
            pytest.param({"nums": [[1, 2], [], []]}, "column nums: row 1 is [], wanted at least one", id="no numbers"),
            pytest.param({"nums": [[1, 2], [3, None, 5], [6, 7, 8, 9]]}, "row 1 is [3, None, 5]", id="a number null"),
            pytest.param({"nums": [None] * 3}, "column nums: row 0 is None", id="all numbers null"),
            pytest.param(
                {"target": [3, None, 30]},
                "column target: row 1 is None, wanted a value in target, or the name of a function for such rows",
                id="no target",
            ),
            pytest.param(
                {"target": [3, None, 30], "data_source": ["countdown", "gsm8k", "countdown"]},
                "row 1 is None (in a row of gsm8k), wanted a value in target, or the name of a function",
                id="a row of another task",
            ),
        ],
    )
    def test_of_countdown_that_cannot_be_trained_on_are_named(self, line, columns, said):
        assert said in line(**columns)

    @pytest.mark.parametrize(
        ("column", "values", "said"),
        [
            ("product", ["12", "1_2", ""], "column product: row 1 is '1_2', wanted a whole number, or its digits (2 "),
            ("solution", ["12", "x", ""], "column solution: row 2 is '', wanted an answer as text"),
            ("tests", ["{}", "", ""], "column tests: row 1 is '', wanted tests as text in JSON (2 such of 3 rows)"),
        ],
    )
    def test_of_other_tasks_that_have_no_answer_are_named(self, examine, column, values, said):
        names = {"product": "multiplication_reward", "solution": "boxed_math_reward", "tests": "code_reward"}
        (error,) = examine({"prompt": ["a"] * 3, column: values}, names[column])[1]
        assert said in error

    def test_are_counted_in_the_file_and_not_in_its_parts(self, examine, monkeypatch):
        monkeypatch.setattr(data, "ROWS_AT_A_TIME", 10)
        prompts = ["a" for _ in range(95)]
        prompts[37] = prompts[81] = ""
        chats = [CHAT if prompt else [] for prompt in prompts]
        nums = [[1, 2] if prompt else [1, None] for prompt in prompts]
        for columns, names, row in (
            ({"prompt": prompts}, ["mine:reward"], "row 37 is ''"),
            ({"prompt": chats}, ["mine:reward"], "row 37 is []"),
            ({"prompt": ["a"] * 95, "nums": nums, "target": [3] * 95}, ["countdown_reward"], "row 37 is [1, None]"),
        ):
            (error,) = examine(columns, *names, row_group_size=25)[1]
            assert row in error and "(2 such of 95 rows)" in error

    def test_long_values_are_cut(self, line):
        long = [{"role": "user", "content": "x" * 10_000}, {"role": "user", "content": None}]
        assert len(line(prompt=[CHAT, long, CHAT])) < 500

    def test_with_several_faults_have_a_line_for_each_column(self, examine):
        columns = COUNTDOWN | {"prompt": ["", "b", "c"], "nums": [[1, 2], [], [6, 7, 8, 9]], "target": [4, 12, None]}
        assert [error.split("column ")[1].split(":")[0] for error in examine(columns, "countdown_reward")[1]] == [
            "prompt",
            "nums",
            "target",
        ]

"""Files that are written whole or not at all, also on a full disk.   bash tests/run.sh tests/test_files.py

A file may hold a megabyte at most here (RLIMIT_FSIZE), which the writers see as they see a full disk.
"""

import os
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FIXTURES

import preprocess
from r1zero import files
from r1zero.report import page

MEGABYTE = 2**20


@pytest.fixture
def full():
    """As if the disk were full as soon as a file has a megabyte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    return path


def is_alone(path):
    """Whether there is only the old file, and nothing half written."""
    return os.listdir(path.parent) == [path.name] and path.read_text() == "old"


def test_file_takes_the_place_of_the_old_one_at_the_end(old):
    with files.replaced(old) as part:
        part.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and os.listdir(old.parent) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), FileNotFoundError(2, "of what is read")])
def test_error_or_ctrl_c_leaves_the_old_one(old, error):
    with pytest.raises(type(error)) as raised, files.replaced(old) as part:
        part.write_text("half")
        raise error
    assert raised.value is error and is_alone(old)


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(2 * MEGABYTE)),
    "parquet": lambda path: pq.write_table(pa.table({"a": [os.urandom(2 * MEGABYTE)]}), path),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_full_disk_leaves_the_old_one_and_is_one_line(old, full, write):
    with pytest.raises(files.NotWritten) as stopped, files.replaced(old) as part:
        write(part)
    line = str(stopped.value)
    assert f"{old.parent} cannot be written to (File too large)" in line and "\n" not in line
    assert "what was there is whole: free some space, or name another folder" in line
    assert is_alone(old)


def test_full_disk_leaves_the_old_page(old, full):
    with pytest.raises(files.NotWritten, match="cannot be written to"):
        page.render(old, title="", about="", tables=[], charts=[], reader=None, configs={"x": "long" * MEGABYTE})
    assert is_alone(old)


def test_folder_that_cannot_be_written_to_is_one_line(old):
    with pytest.raises(files.NotWritten, match=r"file cannot be written to \(.*\), .*: make its folder"):
        with files.replaced(old / "file"):
            pytest.fail("there is nothing to write to")
    assert is_alone(old)


def test_full_shared_memory_of_nccl_is_no_full_disk():
    said = "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888): No space left on device (28)"
    assert not files.is_full(RuntimeError(said)) and files.is_full(RuntimeError("No space left on device"))


class TestPreprocess:
    """Both files are replaced at the end: a new one beside an old one could hold its problems."""

    @pytest.fixture(autouse=True)
    def both_are_as_before(self, tmp_path):
        preprocess.main(["multiply", "--local_dir", str(tmp_path), "--train_size", "5", "--test_size", "3"])
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert before.keys() == {"train.parquet", "test.parquet"}
        yield
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_full_disk(self, tmp_path, both_are_as_before, full):
        flags = ["--local_dir", str(tmp_path), "--train_size", "60000", "--digits", "9", "9", "--test_size", "2"]
        with pytest.raises(SystemExit, match=r"^preprocess.py: .* cannot be written to \(File too large\)"):
            preprocess.main(["multiply", *flags])

    def test_ctrl_c_between_the_files(self, tmp_path, monkeypatch):
        write_rows = preprocess.write_rows

        def once(path, split, *rest):
            if split == "test":
                raise KeyboardInterrupt
            return write_rows(path, split, *rest)

        monkeypatch.setattr(preprocess, "write_rows", once)
        with pytest.raises(SystemExit, match="^preprocess.py: stopped; what was there before is whole"):
            preprocess.main(["multiply", "--local_dir", str(tmp_path), "--train_size", "9", "--test_size", "2"])

    def test_source_that_is_used_up_too_soon(self, tmp_path):
        source = str(FIXTURES / "x_r1_750.jsonl")
        with pytest.raises(SystemExit, match="wanted question and answer"):
            preprocess.main(["gsm8k", "--local_dir", str(tmp_path), "--source", source])

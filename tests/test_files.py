"""Files that are written whole or not at all, also on a full disk.   bash tests/run.sh tests/test_files.py

A file may hold a megabyte at most here (RLIMIT_FSIZE), which the writers see as they see a full disk.
"""

import os
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import preprocess
from r1zero import files

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


def is_alone(path, text="old"):
    """Whether there is only one file, and nothing half written."""
    return os.listdir(path.parent) == [path.name] and path.read_text() == text


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), FileNotFoundError(2, "of what is read")])
def test_file_takes_the_place_of_the_old_one_at_the_end_and_not_after_an_error_or_ctrl_c(old, error):
    try:
        with files.replaced(old) as part:
            part.write_text("new")
            assert old.read_text() == "old"
            if error:
                raise error
    except (KeyboardInterrupt, FileNotFoundError) as raised:
        assert raised is error
    assert is_alone(old, "old" if error else "new")


def test_full_disk_leaves_the_old_one_and_is_one_line(old, full):
    with pytest.raises(files.NotWritten) as stopped, files.replaced(old) as part:
        pq.write_table(pa.table({"a": [os.urandom(2 * MEGABYTE)]}), part)
    line = str(stopped.value)
    assert f"{old.parent} cannot be written to (File too large)" in line and "\n" not in line
    assert "what was there is whole: free some space, or name another folder" in line and is_alone(old)


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_full_disk_is_recognised_in_what_libraries_say(tmp_path, full, write):
    with pytest.raises((OSError, RuntimeError, SafetensorError)) as error:
        write({"numbers": torch.rand(MEGABYTE)}, tmp_path / "file")
    assert files.is_full(error.value) and not files.is_full(RuntimeError("another"))
    of_nccl = "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888): No space left on device (28)"
    assert not files.is_full(RuntimeError(of_nccl)) and files.is_full(RuntimeError("No space left on device"))


def test_both_files_of_a_task_are_replaced_at_the_end(tmp_path, monkeypatch):
    """A new one beside an old one could hold its problems."""
    flags = ["multiply", "--local_dir", str(tmp_path), "--train_size", "9", "--test_size", "3"]
    write_rows = preprocess.write_rows

    def interrupted(path, split, *rest):
        if split == "test":
            raise KeyboardInterrupt
        return write_rows(path, split, *rest)

    preprocess.main(flags)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(preprocess, "write_rows", interrupted)
    with pytest.raises(SystemExit, match="^preprocess.py: stopped; what was there before is whole"):
        preprocess.main([*flags, "--seed", "1"])
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

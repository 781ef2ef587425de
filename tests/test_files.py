"""Files that are written whole or not at all, also on a full disk.   bash tests/run.sh tests/test_files.py

A file may hold a megabyte at most here (RLIMIT_FSIZE), which the writers see as they see a full disk.
"""

import os
import resource

import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FIXTURES

import preprocess
from r1zero import files
from r1zero.report import page as report

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


def only_the_old(path):
    """Whether there is only the old file, and nothing half written."""
    return os.listdir(path.parent) == [path.name] and path.read_text() == "old"


class TestReplaced:
    def test_file_takes_the_place_of_the_old_one_at_the_end(self, old):
        with files.replaced(old) as part:
            part.write_text("new")
            assert old.read_text() == "old"
        assert old.read_text() == "new" and os.listdir(old.parent) == ["file"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, FileNotFoundError(2, "of what is read")])
    def test_error_or_ctrl_c_leaves_the_old_one(self, old, error):
        with pytest.raises(error if isinstance(error, type) else type(error)), files.replaced(old) as part:
            part.write_text("half")
            raise error
        assert only_the_old(old)

    @pytest.mark.parametrize(
        "write",
        [
            pytest.param(lambda path: path.write_bytes(bytes(2 * MEGABYTE)), id="python"),
            pytest.param(lambda path: pq.write_table(pa.table({"a": [os.urandom(2 * MEGABYTE)]}), path), id="parquet"),
        ],
    )
    def test_full_disk_leaves_the_old_one_and_is_one_line(self, old, full, write):
        with pytest.raises(files.NotWritten) as stopped, files.replaced(old) as part:
            write(part)
        line = str(stopped.value)
        assert f"{old.parent} cannot be written to (File too large)" in line and "\n" not in line
        assert "what was there is whole: free some space, or name another folder" in line
        assert only_the_old(old)

    def test_folder_that_cannot_be_written_to_is_one_line(self, old):
        with pytest.raises(files.NotWritten, match=r"file cannot be written to \(.*\), .*: make its folder"):
            with files.replaced(old / "file"):
                pytest.fail("there is nothing to write to")
        assert only_the_old(old)


class TestPreprocess:
    """Both files are replaced at the end: a new one beside an old one could hold its problems."""

    @pytest.fixture
    def before(self, tmp_path):
        """The flags that write to a folder with data, and what that held before."""
        preprocess.main(["multiply", "--local_dir", str(tmp_path), "--train_size", "5", "--test_size", "3"])
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def now(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_full_disk_leaves_both_files(self, tmp_path, before, full):
        flags = ["--local_dir", str(tmp_path), "--train_size", "60000", "--digits", "9", "9", "--test_size", "2"]
        with pytest.raises(SystemExit, match=r"^preprocess.py: .* cannot be written to \(File too large\)"):
            preprocess.main(["multiply", *flags])
        assert self.now(tmp_path) == before

    def test_ctrl_c_between_the_files_leaves_both(self, tmp_path, before, monkeypatch):
        write_rows = preprocess.write_rows

        def once(path, split, *rest):
            if split == "test":
                raise KeyboardInterrupt
            return write_rows(path, split, *rest)

        monkeypatch.setattr(preprocess, "write_rows", once)
        with pytest.raises(SystemExit, match="^preprocess.py: stopped; what was there before is whole"):
            preprocess.main(["multiply", "--local_dir", str(tmp_path), "--train_size", "9", "--test_size", "2"])
        assert self.now(tmp_path) == before

    def test_source_that_is_used_up_too_soon_leaves_both(self, tmp_path, before):
        source = str(FIXTURES / "x_r1_750.jsonl")
        with pytest.raises(SystemExit, match="wanted question and answer"):
            preprocess.main(["gsm8k", "--local_dir", str(tmp_path), "--source", source])
        assert self.now(tmp_path) == before


def test_picture_and_page_of_a_report_are_whole_or_the_old_ones(tmp_path, full):
    for name in ("report.png", "report.html"):
        (tmp_path / name).write_text("old")
    page = {"about": "", "tables": [], "charts": [], "reader": None, "configs": {"x": "long" * MEGABYTE}}
    with pytest.raises(files.NotWritten, match="cannot be written to"):
        report.render(tmp_path / "report.html", title="", **page)
    figure, axes = plt.subplots(figsize=(40, 40))
    axes.imshow([[0, 1], [1, 0]])
    axes.figure.figimage([[int(byte) for byte in os.urandom(2000)] for _ in range(2000)])
    with (
        pytest.raises(files.NotWritten, match="cannot be written to"),
        files.replaced(tmp_path / "report.png") as part,
    ):
        figure.savefig(part, format="png")
    plt.close(figure)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.png"]
    assert (tmp_path / "report.html").read_text() == (tmp_path / "report.png").read_text() == "old"


def test_full_shared_memory_of_nccl_is_no_full_disk():
    said = "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888): No space left on device (28)"
    assert not files.is_full(RuntimeError(said)) and files.is_full(RuntimeError("No space left on device"))

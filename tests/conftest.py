import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client reads it: no test waits for a network

import pytest  # noqa: E402

import tiny_model as tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with train.parquet and test.parquet of the embedded default."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), steps=0)[1]


@pytest.fixture(scope="session")
def long_model(tmp_path_factory):
    """Folder of the embedded default's model with random weights and a context for every task's prompts."""
    folder = make_tiny_model(tmp_path_factory.mktemp("long"), steps=0, max_position_embeddings=2048)[0]
    return folder.rename(folder.with_name("long"))


@pytest.fixture(scope="session")
def tiny_model(tiny_data):
    """Folder of the embedded default's model with random weights."""
    return tiny_data.parent / "model"


def words(flags):
    """A dict of flags as the words of a command."""
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def make_tiny_model(folder, **flags):
    """Runs tiny_model.py, with so many warm-up `steps`; returns the folders of the model and of its data."""
    tiny.main(words({"output_dir": folder / "model", "data_dir": folder / "data"} | flags))
    return folder / "model", folder / "data"

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client reads it: no test waits for a network

import pytest  # noqa: E402

import tiny_model as tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with train.parquet and test.parquet of the embedded default."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), steps=0)[1]


@pytest.fixture(scope="session")
def tiny_model(tiny_data):
    """Folder of the embedded default's model with random weights."""
    return tiny_data.parent / "model"


def make_tiny_model(folder, steps):
    """Runs tiny_model.py for a number of warm-up steps; returns the folders of the model and of its data."""
    tiny.main(["--steps", str(steps), "--output_dir", str(folder / "model"), "--data_dir", str(folder / "data")])
    return folder / "model", folder / "data"

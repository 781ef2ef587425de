"""A run of the commit 60e86ac8773d goes on and has a page.   bash tests/run.sh tests/test_older_run.py

It was stopped after 2 of its 4 steps. tests/fixtures/older_run holds its folder, base model and problems, and what
came of the same run if nobody stopped it.
"""

import json
import re
import shutil

import pytest
import torch
from conftest import FIXTURES, train_here
from safetensors.torch import load_file

from r1zero.report import page
from r1zero.training import generation


@pytest.fixture
def older(tmp_path, monkeypatch):
    """The current folder, with the run in it."""
    shutil.copytree(FIXTURES / "older_run", tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older"


def test_it_resumes_to_what_it_would_have_been(older, monkeypatch):
    monkeypatch.setattr(generation, "draw", lambda chances: torch.multinomial(chances, 1).squeeze(1))  # as it did
    train_here("run/config.yaml", resume_from_checkpoint="auto")
    found, expected = load_file("run/model.safetensors"), load_file("after_4_steps.safetensors")
    for name, tensor in expected.items():  # to the bit on one machine; processors round differently
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    found, expected = (json.loads((older / name).read_text()) for name in ("run/metrics.json", "after_4_steps.json"))
    assert (
        found.pop("phases")
        and found.pop("extremes")
        and {**found, "train_seconds": 0} == {**expected, "train_seconds": 0}
    )


def test_its_page_shows_answers_and_verdicts(older):
    page.write(older / "run")
    text = (older / "run" / "report.html").read_text()
    reader = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert reader["steps"] == [0, 2] and len(reader["problems"]) == 8
    for problem in reader["problems"]:
        assert set(problem["about"]) == {"numbers", "target"}
        assert problem["at"]["0"]["verdict"] in ("no answer", "wrong")

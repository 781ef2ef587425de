"""A user's own reward functions: where they are found, what is refused, and what training logs of any of them."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import each_case

import rewards
from r1zero.grading.behaviours import BEHAVIOURS
from r1zero.grading.sandbox import why_unavailable
from r1zero.training.reward_functions import Scorer, resolve, score

OWN = '''
def spelling(completions, word, log_extra=None, log_metric=None, **kwargs):
    """1 for the word itself; rows without a word are another task's."""
    right = [text == own for text, own in zip(completions, word)]
    verdicts = [None if own is None else "correct" if ok else "wrong" for own, ok in zip(word, right)]
    log_extra("verdict", verdicts)
    log_extra("answer", list(completions))
    log_extra("shape", [len(text) for text in completions])
    log_metric("letters", sum(map(len, completions)) / len(completions))
    return [None if own is None else float(ok) for own, ok in zip(word, right)]

def countdown_reward(completions, **kwargs):
    return [0.0 for _ in completions]
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty, with a folder of data beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def logged_by(function, completions, **columns):
    """What training logs of a batch: the rewards, dict of a metric to its values, and the table's columns."""
    metrics, table = {}, {}
    given = Scorer(function)(
        prompts=["p"] * len(completions),
        completions=completions,
        log_metric=lambda name, value: metrics.setdefault(name, []).append(value),
        log_extra=table.__setitem__,
        **columns,
    )
    return given, metrics, table


class TestResolve:
    # Beside the data, in a folder of the current one, a path, and a file that has the name of ours
    @pytest.mark.parametrize(
        ("place", "name"),
        [("data/mine", "mine"), ("here/lib/mine", "lib.mine"), ("here/mine", "mine.py"), ("data/rewards", "rewards")],
    )
    def test_own_function_is_found(self, folder, place, name):
        path = folder / f"{place}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(OWN)
        (function,) = resolve([f"{name}:spelling"], folder / "data")
        given, metrics, table = logged_by(function, completions=["a", "b", "c"], word=["a", "x", None])
        assert given == [1.0, 0.0, None] and metrics["letters"] == [1.0]
        columns = Scorer(function).table
        assert table[columns.verdict] == ["correct", "wrong", None] and table[columns.answer] == ["a", "b", "c"]
        assert table["shape"] == [1, 1, 1] and len(table) == 3

    def test_installed_package_and_async_function_whose_file_imports_its_neighbours_are_found(self, folder):
        (folder / "data" / "a_neighbour.py").write_text("WORTH = 7.0")
        text = "from a_neighbour import WORTH\nasync def mine(completions, **kwargs):\n    return [WORTH]"
        (folder / "data" / "worth.py").write_text(text)
        installed, mine = resolve(["trl.rewards:think_format_reward", "worth:mine"], folder / "data")
        assert installed.__name__ == "think_format_reward" and score(mine, ["p"], ["c"], {}) == ([7.0], [None])

    @each_case("refused_rewards.tsv", "given")
    def test_what_cannot_be_used_is_named_in_one_line(self, folder, case):
        for name in ("mine", "other"):
            (folder / "data" / f"{name}.py").write_text(OWN)
        (folder / "data" / "broken.py").write_text("1 / 0")
        logs, gives = (case["given"], [0.0, 0.0]) if case["kind"] == "logs" else ("pass", case["given"])
        text = f"def odd(completions, log_extra, log_metric, **_):\n    {logs}\n    return {gives}\n"
        (folder / "data" / "odd.py").write_text(text)
        names = case["given"].split() if case["kind"] == "names" else ["odd:odd"]
        with pytest.raises(ValueError) as refused:
            score(resolve(names, folder / "data")[0], ["p"] * 2, ["c"] * 2, {})
        assert case["said"] in str(refused.value) and "\n" not in str(refused.value)


def test_code_is_worth_the_share_of_its_tests_that_it_passes():
    if why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(why_unavailable())
    programs = ["print(int(input()) + 1)", "print(2)", None, "print(2)"]
    completions = [f"```python\n{program}\n```" if program else "no program" for program in programs]
    tests = [json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["2\n", "3\n"]})] * 3 + [None]
    given, _, table = logged_by(rewards.code_reward, completions, tests=tests)
    assert given == [1.0, 0.5, 0.0, None] == table["tests_passed"]
    assert table["code_verdict"] == ["correct", "wrong", "no answer", ""]


def test_code_without_bubblewrap_is_refused_unless_plain_processes_are_allowed(no_bubblewrap):
    with pytest.raises(RuntimeError, match="bubblewrap .bwrap. is not installed.*--allow_unsandboxed_code"):
        resolve(["code_reward"], "data")
    assert len(resolve(["code_reward"], "data", allow_unsandboxed_code=True)) == 1


def test_verdicts_of_a_users_function_become_accuracy_unless_it_logs_that_itself():
    def spelling(completions, log_extra, log_metric, is_own=False, **kwargs):
        log_extra("verdict", ["correct", "wrong", None])
        if is_own:
            log_metric("accuracy", 0.5)
        return [1.0, 0.0, None]

    given, metrics, _ = logged_by(spelling, completions=["wait", "b", "c"])
    assert given == [1.0, 0.0, None]
    assert metrics["accuracy"] == [1.0, 0.0] and metrics["format_rate"] == [1.0, 1.0]
    assert metrics["accuracy/spelling"] == [1.0, 0.0], "another task has a row of the batch"
    assert metrics["behaviours/restarts"] == [1, 0] and metrics["behaviours_correct/restarts"] == [1]
    metrics = logged_by(spelling, completions=["wait", "b", "c"], is_own=True)[1]
    assert metrics["accuracy"] == [0.5] and "format_rate" not in metrics
    metrics = logged_by(lambda completions, **_: [1.0, None, 0.5], completions=["wait", "wait", "c"])[1]
    assert metrics["behaviours/restarts"] == [1, 0] and len(metrics) == len(BEHAVIOURS), "it gives no verdicts"


def test_behaviours_and_cells_of_right_and_wrong_completions_are_logged():
    chat = [{"role": "assistant", "content": "wait, wait"}]
    batch = {
        "completions": ["wait 3*7 = 21 <answer>3*7-5</answer>", "<answer>1+2+3+5</answer>", chat, "Wait."],
        "nums": [[3, 7, 5], [1, 2, 3, 5], [4, 5, 6], None],
        "target": [16, 11, 120, None],
    }
    ids = [[0] * 200, [0], [0] * 201, [0] * 999]
    given, found, table = logged_by(rewards.countdown_reward, **batch, completion_ids=ids)
    assert given == rewards.countdown_reward(**batch) == [1.0, 1.0, 0.0, None]
    assert table["verdict"] == ["correct", "correct", "no answer", ""]
    assert found["accuracy"] == [1.0, 1.0, 0.0] and found["times_divide_rate"] == [1.0, 0.0]
    assert found["behaviours/over_200_tokens"] == [False, False, True]
    assert found["behaviours_correct/over_200_tokens"] == [False, False]
    assert found["behaviours_incorrect/over_200_tokens"] == [True]
    assert found["behaviours/restarts"] == [1, 0, 2]
    assert found["behaviours_correct/restarts"] == [1, 0] and found["behaviours_incorrect/restarts"] == [2]
    assert found["behaviours_correct/true_equations"] == [1, 0]
    assert found["cells/3_numbers_needs_times_divide"] == [True, False]
    assert found["cells/4_numbers_sums_suffice"] == [True]
    counted = {name.split("/")[1] for name in found if name.startswith("behaviours")}
    assert counted == {*BEHAVIOURS, "over_200_tokens"}


def test_numbers_of_every_kind_and_none_are_taken():
    given = (1, True, None, np.float32(0.5), torch.tensor(2.0))
    assert score(lambda completions, **_: (each for each in given), ["p"] * 5, ["c"] * 5, {})[0] == list(given)

r"""Maths answers are equal or different; and the helper process with computer algebra survives bombs and kills.

The pairs stand in tests/cases/boxed_maths.tsv, with whether text (with exact numbers) or algebra decides them.
bash tests/run.sh tests/test_algebra.py
"""

import math
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from conftest import PATIENCE, each_case, rows_of
from test_hostile_text import ATTACKS

from r1zero.grading import algebra
from r1zero.grading.algebra import CLIENT, Pool, ask_helper, judge
from r1zero.grading.latex import equal, equal_exactly


@each_case("boxed_maths.tsv")
def test_pair_has_its_verdict_by_text_or_by_algebra(patient, case):
    expected = {"equal": True, "different": False}[case["verdict"]]
    assert equal_exactly(case["gold"], case["answer"]) is (expected if case["decided by"] == "text" else None)
    assert equal([case["gold"]], [case["answer"]]) == [expected]


@pytest.mark.parametrize("answer", ["1" * 2_000, r"\frac{" * 140 + "1", r"\frac{" * 70 + "1" + "}{1}" * 70])
def test_text_decides_a_long_or_deep_answer(answer):
    assert equal_exactly("0.5", answer) is False


# What only computer algebra finds equal
GOOD = [(row["gold"], row["answer"]) for row in rows_of("boxed_maths.tsv") if row["decided by"] == "algebra"][:8]
BOMBS = list(ATTACKS["bomb"].values())  # what overruns or kills a worker, in tests/cases/hostile_texts.tsv
NEVER = math.inf


@pytest.fixture
def simulated(monkeypatch):
    """Workers on a made-up clock: a pair is the seconds that it takes and its verdict. Nothing waits for real time."""
    clock = SimpleNamespace(now=0.0)

    class SimulatedWorker:
        def __init__(self):
            self.pipe = self
            self.position = None

        def send(self, pair):
            seconds, self.verdict = pair
            self.ends = clock.now + seconds

        def recv(self):
            if self.verdict == "dies":
                raise EOFError
            return self.verdict

        def kill(self):
            pass

    def wait(pipes, timeout):
        clock.now = min([clock.now + timeout] + [pipe.ends for pipe in pipes])
        return [pipe for pipe in pipes if pipe.ends <= clock.now]

    monkeypatch.setattr(algebra, "Worker", SimulatedWorker)
    monkeypatch.setattr(algebra, "connection", SimpleNamespace(wait=wait))
    monkeypatch.setattr(algebra, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


BATCHES = {  # {what: (pairs, each as its seconds and its verdict; what a batch of 6 seconds finds)}
    "quick ones": ([(0.01, True), (0.01, False)] * 32, [True, False] * 32),
    "hanging ones first": ([(NEVER, True)] * 24 + [(0.01, True)] * 8, [None] * 24 + [True] * 8),
    "a slow one gets a second try": ([(1.0, True), (0.01, False)], [True, False]),
    "a slow one beside a hanging one": ([(NEVER, True), (2.5, True)], [None, True]),
    "one slower than the batch": ([(NEVER, True), (9.0, True)], [None, None]),
    "some that kill their worker": ([(0.1, "dies"), (0.01, True)] * 9, [False, True] * 9),
    "one that kills its worker in its second try": ([(1.0, "dies"), (0.3, True)], [False, True]),
    "more than can be begun": ([(NEVER, True)] * 1000, [None] * 1000),
    "none": ([], []),
}


@pytest.mark.parametrize("workers", [1, 2, 8, 100])
@pytest.mark.parametrize(("pairs", "expected"), BATCHES.values(), ids=BATCHES)
def test_each_pair_gets_a_short_try_and_those_that_overran_share_what_is_left(simulated, workers, pairs, expected):
    pool = Pool(workers)
    assert judge(pairs, 6.0, pool, listening=lambda: None) == expected
    assert simulated.now <= 6.01
    assert judge([(0.01, True)] * 9, 6.0, pool, listening=lambda: None) == [True] * 9, "the pool is whole"


@pytest.fixture
def patient(monkeypatch):
    """A batch of good pairs ends as soon as they are decided: only a hang meets this bound."""
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 60)


def test_batch_of_bombs_is_ended_and_the_helper_works_on_for_any_thread(monkeypatch):
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 2)
    verdicts = ask_helper([("2x", bomb) for bomb in BOMBS])
    assert len(verdicts) == len(BOMBS) and True not in verdicts
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 60)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask_helper, GOOD).result(120) == [True] * len(GOOD)


def test_helper_and_worker_that_were_killed_are_replaced(monkeypatch, patient):
    assert ask_helper([("2x", "x+x")]) == [True]
    first = CLIENT.process.pid
    os.killpg(first, signal.SIGKILL)
    CLIENT.process.wait()
    monkeypatch.setattr(CLIENT.process, "poll", lambda: None)  # it died after it was last looked at
    assert ask_helper([("3x", "x+2x")]) == [True]
    second = CLIENT.process.pid
    assert second != first
    for worker in psutil.Process(second).children():
        worker.kill()
    ask_helper([("4x", "x+3x")])  # costs one verdict at most
    assert ask_helper(GOOD) == [True] * len(GOOD)


def test_helper_is_ours_in_a_folder_with_files_of_the_same_names(monkeypatch, tmp_path, patient):
    """The current folder is a user's: neither its json.py nor its r1zero is taken for the real one."""
    CLIENT.stop()
    (tmp_path / "r1zero/grading").mkdir(parents=True)
    for name in ("json.py", "r1zero/__init__.py", "r1zero/grading/algebra.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert ask_helper([("2x", "x+x")]) == [True]


SCRIPT = """
from r1zero.grading import algebra
algebra.BATCH_SECONDS = 600
algebra.ask_helper([("2x", "x+x")])
print(f"\\nhelper {algebra.CLIENT.process.pid}", flush=True)
algebra.ask_helper([("2x", f"9^{{9^{{9^9}}}}+{i}") for i in range(64)])
"""


def test_no_process_is_left_behind_by_a_parent_that_is_killed_in_a_batch_of_bombs(begin):
    run = begin([sys.executable, "-c", SCRIPT])
    helper = psutil.Process(int(run.await_(lambda: re.search(r"\nhelper (\d+)\n", run.text()))[1]))
    time.sleep(0.5)  # into the bombs
    workers = helper.children()
    assert workers
    run.end()
    assert psutil.wait_procs([helper, *workers], timeout=PATIENCE)[1] == []

"""Equality of maths answers case by case, and the helper process against bombs and kills.

bash tests/run.sh tests/test_math_answers.py
"""

import doctest
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import math_answers
from math_answers import equal, equal_exactly

ROOT = Path(__file__).parent.parent
GOOD = [  # what only computer algebra finds equal
    ("x^2-1", "(x-1)(x+1)"),
    (r"2\pi", r"\pi+\pi"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"e^{x+y}", r"e^xe^y"),
    (r"\frac{x}{2}", "0.5x"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"2\ln 2", r"\ln 4"),
    (r"\frac{1}{1+x}", r"(1+x)^{-1}"),
]
BOMBS = [
    "9^{9^{9^9}}",
    "(10^9)!",
    "99999999!",
    r"2^{2^{2^{2^{2^2}}}}",
    r"\binom{10^9}{5\cdot10^8}",
    r"(x+y+z)^{5000}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^x}",
    r"\prod_{k=1}^{10^9} k",
    "(" * 300 + "x" + ")" * 300,
    r"\frac{" * 120 + "x" + "}{2}" * 120,
    "x^{" * 300 + "2" + "}" * 300,
    "{" * 20_000 + "x" + "}" * 20_000,
    r"\frac{" * 20_000 + "1",
    "x+" * 500_000 + "x",
]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("42", "42", id="the same text"),
        pytest.param("42", "042", id="a leading zero"),
        pytest.param("1234", "1,234", id="thousands with a comma"),
        pytest.param("1234", "1{,}234", id="thousands with a LaTeX comma"),
        pytest.param("10000", r"10\,000", id="thousands with a thin space"),
        pytest.param("5", "5.0", id="a decimal that is whole"),
        pytest.param("0.5", r"\frac{1}{2}", id="a decimal and a fraction"),
        pytest.param(r"\frac{1}{2}", r"\dfrac12", id="a fraction without braces"),
        pytest.param(r"\frac{1}{2}", r"\frac{2}{4}", id="a fraction not in lowest terms"),
        pytest.param(r"\frac{1}{2}", "1/2", id="a slash"),
        pytest.param(r"-\frac{3}{2}", "-1.5", id="a negative fraction"),
        pytest.param("3.5", r"3\frac{1}{2}", id="a mixed number"),
        pytest.param("4.5e33", r"4.5 \times 10^{33}", id="scientific notation"),
        pytest.param("3e8", r"3\cdot10^8", id="scientific notation without braces"),
        pytest.param("18", r"\$18", id="a dollar sign"),
        pytest.param("18", "$18$", id="math mode inside the box"),
        pytest.param("5", r"5\text{ cm}", id="a unit"),
        pytest.param("5", r"5\ \mathrm{m/s^2}", id="a unit with a power"),
        pytest.param("5", "x=5", id="a left-hand side"),
        pytest.param("41.8", r"41.8^\circ", id="degrees"),
        pytest.param("16", "16.", id="a final stop"),
        pytest.param(r"\text{east}", "East", id="a word, in whatever case"),
        pytest.param(r"\text{(A)}", "A", id="a letter of choice"),
        pytest.param(r"\left( 1, 2 \right)", "(1,2)", id="left and right"),
        pytest.param("-5", "\N{MINUS SIGN}5", id="a typographic minus"),
        pytest.param("np.arcsin(10/13)", "np.arcsin(10/13)", id="a gold that no parser reads"),
    ],
)
def test_text_or_numbers_find_equal(gold, answer):
    assert equal_exactly(gold, answer) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        pytest.param("42", "43", id="another integer"),
        pytest.param(r"\frac{1}{3}", "0.333333", id="a rounded decimal"),
        pytest.param("12", "1 2", id="two numbers side by side"),
        pytest.param("6", r"2\cdot 3", id="a product not worked out"),
        pytest.param("5", "2+3", id="a sum not worked out"),
        pytest.param("5", r"\frac{10}{2}", id="a division not carried out"),
        pytest.param("5", "10/2", id="a division with a slash not carried out"),
        pytest.param("4", r"\sqrt{16}", id="a root not taken"),
        pytest.param("1024", "2^{10}", id="a power not worked out"),
        pytest.param("120", "5!", id="a factorial not worked out"),
        pytest.param("10", r"\binom{5}{2}", id="a binomial not worked out"),
        pytest.param("6", "2(3)", id="a product without a sign not worked out"),
        pytest.param("5", "x=2+3", id="arithmetic after a left-hand side"),
        pytest.param("0.5", r"\frac{1+0}{2}", id="arithmetic in a fraction"),
        pytest.param("3", r"\log_2 8", id="a logarithm not worked out"),
        pytest.param(r"\text{east}", "seat", id="the same letters in another order"),
        pytest.param("", "", id="an empty gold"),
        pytest.param(" ", r"\,", id="a blank gold"),
        pytest.param("", "5", id="an empty gold and a number"),
        pytest.param("1", "1" * 2_000, id="two thousand digits"),
        pytest.param("2", r"\frac{2}{0}", id="a division by zero"),
        pytest.param("1e999", "9e999", id="a huge exponent"),
    ],
)
def test_text_or_numbers_find_different(gold, answer):
    assert equal_exactly(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        *[pytest.param(gold, answer, True, id=f"{gold} is {answer}") for gold, answer in GOOD],
        pytest.param("5", "5 cm", True, id="a unit without text"),
        pytest.param(r"50\%", "0.5", True, id="a percentage"),
        pytest.param("x=2,y=3", "y=3", False, id="half of an answer"),
        pytest.param(r"2\pi", "2", False, id="a bare gold with pi is not cut to its number"),
        pytest.param(r"\sqrt{2}", "2", False, id="a bare root is not cut to its number"),
        pytest.param("5", "5x^2", False, id="a term that begins with the number"),
        pytest.param("(1,2)", "(2,1)", False, id="a pair the other way round"),
        pytest.param("[0,1)", "[0,1]", False, id="an interval that is closed"),
        pytest.param("5", r"5\text{ or }600", False, id="two numbers with a word between them"),
        pytest.param("MR=SRMC", "SRAC=LRAC", False, id="equations of names"),
        pytest.param(r"\unknown{", "5", False, id="a gold that no parser reads accepts nothing"),
        pytest.param(r"\unknown{", "x", False, id="nor a letter"),
        pytest.param("x", "__import__('os').system('touch /tmp/x')", False, id="code"),
    ],
)
def test_computer_algebra_decides_the_rest(gold, answer, expected):
    assert equal_exactly(gold, answer) is None
    assert equal([gold], [answer]) == [expected]


def test_examples_in_docstrings_hold():
    assert doctest.testmod(math_answers).failed == 0


def processes(of=None):
    """Process ids of helpers and their workers, of all processes or of those below one."""
    listed = subprocess.run(["ps", "-Aww", "-o", "pid=,sid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines() if "math_answers.py" in line]
    return [int(pid) for pid, session, _ in found if of is None or int(session) == of]


def gone(pids, seconds=20):
    """Whether all of these processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while set(pids) & set(processes()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def bombed_batch():
    """64 pairs, 48 of them bombs, as golds and answers; the positions of the 16 good ones."""
    pairs = [GOOD[i // 4 % 8] if i % 4 == 0 else ("2x", f"{BOMBS[i % len(BOMBS)]}+{i}") for i in range(64)]
    return *zip(*pairs, strict=True), range(0, 64, 4)


def test_batch_of_bombs_ends_and_its_good_ones_are_right(monkeypatch):
    monkeypatch.setattr(math_answers, "BATCH_SECONDS", 30)  # on a machine that is busy with other things, too
    golds, answers, good = bombed_batch()
    verdicts = equal(golds, answers)
    assert [i for i, verdict in enumerate(verdicts) if verdict] == list(good)


def test_works_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(equal(*zip(*GOOD, strict=True))))
    thread.start()
    thread.join(60)
    assert found == [[True] * len(GOOD)]


def test_helper_that_was_killed_is_started_again():
    assert equal(["2x"], ["x+x"]) == [True]
    first = math_answers.helper.pid
    os.killpg(first, signal.SIGKILL)
    assert equal(["3x"], ["x+2x"]) == [True]
    assert math_answers.helper.pid != first


def test_worker_that_was_killed_costs_one_verdict_at_most():
    assert equal(["2x"], ["x+x"]) == [True]
    for pid in set(processes(of=math_answers.helper.pid)) - {math_answers.helper.pid}:
        os.kill(pid, signal.SIGKILL)
    equal(["4x"], ["x+3x"])
    assert equal(*zip(*GOOD, strict=True)) == [True] * len(GOOD)


def test_helper_that_cannot_start_is_an_error(monkeypatch):
    math_answers.stop_helper()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="helper process of math_answers.py does not work"):
        equal(["2x"], ["x+x"])


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_behind_by_a_parent_that_ends_in_a_batch_of_bombs(tmp_path, signal_number):
    script = (
        "import math_answers, pathlib, sys\n"
        "math_answers.equal(['2x'], ['x+x'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(math_answers.helper.pid))\n"
        "math_answers.equal(['2x'] * 64, [f'9^{{9^{{9^9}}}}+{i}' for i in range(64)])\n"
    )
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (path.is_file() and path.read_text()) and parent.poll() is None:
        time.sleep(0.1)
    time.sleep(0.5)  # into the bombs
    family = processes(of=int(path.read_text()))
    assert len(family) >= 2, "the helper and a worker"
    parent.send_signal(signal_number)
    assert parent.wait(20) != 0
    assert gone(family)

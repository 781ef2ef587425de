"""Text that a model wrote is hostile: none breaks a reward, a count, the console or the page.

The attacks stand in tests/hostile_texts.py.   bash tests/run.sh tests/test_hostile_text.py
With --all, texts are as long as a megabyte, computer algebra takes part, and hypothesis makes up 20,000 more.
"""

import doctest
import html.parser
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import PATIENCE
from hostile_texts import EXPRESSIONS, PIECES, TESTS, WHOLE, attacks, in_every_task, nothing_decided, rewarded, scored
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero import ROOT
from r1zero.grading import algebra as symbolic_helper
from r1zero.grading import sandbox
from r1zero.grading.behaviours import BEHAVIOURS, MISTAKES
from r1zero.grading.sandbox import Sandbox, why_unavailable
from r1zero.report import completions as completions_reader
from r1zero.report import console
from r1zero.report import page as report
from r1zero.report.completions import LONGEST, visible
from r1zero.report.run_folder import TABLES_BEFORE
from rewards import code_reward

VALUES = {  # of each reward, as they are documented
    "countdown": {0.0, 0.1, 1.0},
    "multiplication": {0.0, 0.1, 1.0},
    "boxed number": {0.0, 0.1, 1.1},
    "boxed formula": {0.0, 0.1, 1.1},
    "boxed equation": {0.0, 0.1, 1.1},
    "code": {0.0, 0.5},  # which is what NoSandbox gives
}
LARGE, LARGER = 10**4, 10**6  # characters


@pytest.fixture(autouse=True)
def no_algebra(monkeypatch):
    """Computer algebra decides nothing. It works in bounded time: see test_symbolic_helper.py."""
    monkeypatch.setattr(symbolic_helper, "ask_helper", nothing_decided)


def check(found):
    """Asserts that all values that scored() has returned are among those that are documented."""
    for name, values in VALUES.items():
        assert set(found[name]) <= values, name
    for counts in found["behaviours"]:
        assert tuple(counts) == BEHAVIOURS
        assert all(type(count) is int and count >= 0 for count in counts.values())
        assert counts["true_equations"] <= counts["equations"] and counts["answer_multiplies"] <= 1
    assert set(found["mistakes"]) <= set(MISTAKES)
    for completion in found["page"]:
        assert is_harmless(completion["text"]) and is_harmless(completion["answer"] or "")
        json.dumps(completion, allow_nan=False)


def is_harmless(text, longest=LONGEST):
    """Whether a text is short and has no characters but those that print, line breaks and tabs."""
    escapes = len(r"\U00000000")
    return text.replace("\n", "").replace("\t", "").isprintable() and len(text) <= escapes * (longest + 100)


# Every attack, in every reader


@pytest.fixture(scope="module")
def texts():
    return list(attacks(LARGE).values())


@pytest.fixture(scope="module")
def found(texts):
    """What is made of each attack by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbolic_helper, "ask_helper", nothing_decided)
        return [scored([text]) for text in texts]


def in_one(found):
    """What scored() has returned for single texts as it would return it for all of them at once."""
    return {name: [each[name][0] for each in found] for name in found[0]}


def test_no_attack_is_right_raises_or_gets_a_value_that_is_not_documented(found):
    assert len(found) > 250
    check(in_one(found))
    assert max(max(in_one(found)[name]) for name in VALUES) < 1


def test_attacks_get_the_same_in_one_batch_as_one_by_one(texts, found):
    assert scored(texts) == in_one(found)


def test_attacks_get_the_same_in_chat_messages(texts):
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert rewarded(chats) == rewarded(texts)


def test_attacks_get_the_same_in_other_threads(texts, found):
    shares = [slice(0, None, 3), slice(1, None, 3), slice(2, None, 3), slice(0, None, 3)]
    with ThreadPoolExecutor(len(shares)) as pool:
        for share, other in zip(shares, pool.map(lambda share: scored(texts[share]), shares), strict=True):
            assert other == in_one(found[share])


def in_another_process(size, *flags):
    """What another process makes of all attacks, with other hashes, and what it writes to the terminal."""
    command = [sys.executable, "tests/hostile_texts.py", str(size), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, f"{run.returncode}: -24 is the end of its processor time\n{run.stderr[-4000:]}"
    return json.loads(run.stdout), run.stderr


def test_attacks_get_the_same_in_another_process(found):
    assert in_another_process(LARGE)[0] == in_one(found)


@pytest.mark.slow
def test_attacks_are_wrong_to_computer_algebra_too_and_nothing_of_them_reaches_the_terminal(found):
    """The rewards, that is: its columns tell apart what is wrong and what was not decided."""
    scores, written = in_another_process(LARGE, "--algebra")
    assert scores == in_one(found)
    assert is_harmless(written)


@pytest.mark.slow
def test_a_megabyte_of_anything_is_read_in_linear_time():
    """A pattern that were not linear would take the process's time many times over."""
    check(in_another_process(LARGER)[0])


# Work that is counted: what Python itself repeats, which no clock has to tell


def lines_run(function, *arguments):
    """How many lines of Python a call runs."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_work_grows_no_faster_than_the_text(piece):
    short, long = (in_every_task(piece * (size // len(piece))) for size in (2000, 4000))
    assert lines_run(scored, [long]) <= 2.2 * lines_run(scored, [short])


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_no_short_text_makes_much_work(expression):
    assert lines_run(scored, [in_every_task(expression)]) < 200_000  # mpmath's own lines with them


def test_count_of_lines_sees_work_that_is_not_linear():
    def quadratic(text):
        for _ in text:
            for _ in text:
                pass

    assert lines_run(quadratic, "9" * 200) > 3.9 * lines_run(quadratic, "9" * 100)


# Texts that hypothesis makes up

SNIPPETS = [
    *PIECES,
    *("Let me check: ", "3*7 = 21", "21-5 = 16 yes", "</think>", "Wait", "+", "*", "/", "^", "16", "391", "0", "10^{"),
    *("x^2", r"-\frac{1}{3}", "y=2x+7", r"\pi", r"\sin ", r"\cdot ", r"\log_", "[", "]", "|", ":", ";", "?", "%", "d"),
    *EXPRESSIONS.values(),
    *(text for text in WHOLE.values() if len(text) < 100),
]
hostile = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=5), max_size=12).map("".join)
framed = hostile | hostile.map(in_every_task) | hostile.map(lambda text: f"<answer>{text[:60]}</answer>")


def number_of_examples(few, many):
    """Runs a test with a few examples, and with many where slow tests are run."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


@number_of_examples(250, 14_000)
def test_any_text_gets_a_documented_value_the_same_in_any_batch(examples):
    @settings(max_examples=examples)
    @given(framed, framed)
    def holds(text, other):
        one, another = scored([text]), scored([other])
        check(one)
        assert scored([other, text, text]) == in_one([another, one, one])

    holds()


@number_of_examples(100, 6_000)
def test_any_text_can_be_shown_on_the_console(examples):
    @settings(max_examples=examples)
    @given(framed)
    def holds(text):
        lines = console.completion_lines({"completion": text, "equation": text})
        assert is_harmless(lines, 3 * console.LONGEST_SHOWN)
        if is_harmless(text) and len(text) <= console.LONGEST_SHOWN:
            assert text in lines

    holds()


# The terminal and the page


def test_examples_in_docstrings_hold():
    assert doctest.testmod(completions_reader).failed == 0


def test_nothing_of_an_attack_reaches_the_terminal_but_characters_that_print(texts):
    for text in [*texts, "\x1b[2J\u202e" * LARGER]:
        lines = console.completion_lines({"completion": text, "equation": text, "verdict": "wrong"})
        assert is_harmless(lines, 3 * console.LONGEST_SHOWN)
        lines.encode()  # without surrogates, which no terminal takes


def test_of_a_megabyte_the_middle_is_left_out_and_said_so():
    text = "begin" + "x" * LARGER + "end"
    shown = visible(text)
    assert shown.startswith("begin") and shown.endswith("end") and len(shown) < LONGEST + 100
    assert f"\n[{len(text) - LONGEST:,} characters are left out here]\n" in shown
    assert visible(text[:LONGEST]) == text[:LONGEST]


class Elements(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and the text in each."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, attributes))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def handle_comment(self, data):
        self.found.append(("a comment", []))
        self.texts.append(data)


def page_of(texts, path):
    """The page (str) of a run whose completions are these texts."""
    problems = []
    for text in texts:
        row = {"completion": text, "equation": text, "numbers": "[9]", "target": 9, "verdict": "wrong"}
        about, completion = completions_reader.read_completion(row, TABLES_BEFORE)
        problems.append({"prompt": "3*3 = ", "about": about, "at": {0: completion}})
    reader = {"steps": [0], "problems": problems, "of": len(problems)}
    report.render(path, title="a run", about="", tables=[], charts=[], reader=reader, configs={})
    return path.read_text(encoding="utf-8")


def test_page_has_the_same_elements_whatever_the_completions_are(texts, tmp_path):
    page = Elements(page_of(texts, tmp_path / "page.html"))
    assert page.found == Elements(page_of(["harmless"], tmp_path / "page.html")).found
    data = page.texts[[dict(attributes).get("id") for _, attributes in page.found].index("data")]
    problems = json.loads(data)["problems"]
    assert [problem["at"]["0"]["text"] for problem in problems] == [visible(text) for text in texts]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here: apt-get install chromium")
def test_browser_shows_attacks_and_runs_none(tmp_path):
    attack = "\n".join([*WHOLE.values(), *map(in_every_task, EXPRESSIONS.values())])
    path = tmp_path / "page.html"

    def opened(text):
        page_of([text], path)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
        run = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=PATIENCE)
        return Elements(run.stdout)

    hostile, harmless = opened(attack), opened("harmless")
    assert hostile.found == harmless.found
    title = [tag for tag, _ in harmless.found].index("title")
    assert hostile.texts[title] == harmless.texts[title] == "a run\n"
    assert visible(attack).strip() in "".join(hostile.texts)


# Programs


def test_hostile_programs_score_zero_beside_a_right_one(monkeypatch):
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_CPU", 1)
    if why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(why_unavailable())
    programs = [*EXPRESSIONS.values()][:12] + ["print(2)\ud800", "print(2)\0", "\u202eprint(2)", "print(" * 10**4]
    programs += ["#" * LARGER + "\nprint(3)", "print('\\x1b[2J2')", "print('2\\b\\b2')"]
    completions = [f"```python\n{program}\n```" for program in programs]
    right = "```python\nprint(2)\n```"
    box = Sandbox(seconds=PATIENCE, batch_seconds=100 * PATIENCE)
    assert code_reward([*completions, right], [TESTS] * (len(programs) + 1), box) == [0.0] * len(programs) + [1.0]

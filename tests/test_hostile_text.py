"""Text that a model wrote is hostile: none breaks a reward, a count, the console or the page.

The attacks stand in tests/cases/hostile_texts.tsv: what is made of each is as documented, and depends on it alone.
bash tests/run.sh tests/test_hostile_text.py
With --all, texts are as long as a megabyte, computer algebra takes part, and hypothesis makes up 14,000 more.
"""

import json
import time
from types import SimpleNamespace

import pytest
from conftest import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.grading import algebra, sandbox
from r1zero.grading.behaviours import BEHAVIOURS, MISTAKES, count_behaviours, name_mistake
from r1zero.grading.extract import extract_answer
from r1zero.report import console
from r1zero.report.completions import LONGEST, read_completion, visible
from rewards import boxed_math_reward, code_reward, countdown_reward, multiplication_reward

# Of each reward: its own columns, and the values that are documented
GRADED, BOXED = {0.0, 0.1, 1.0}, {0.0, 0.1, 1.1}
REWARDS = {
    "countdown": (countdown_reward, {"nums": [9, 9, 9], "target": 9}, GRADED),
    "multiplication": (multiplication_reward, {"product": "391"}, GRADED),
    "boxed number": (boxed_math_reward, {"solution": "391"}, BOXED),
    "boxed formula": (boxed_math_reward, {"solution": r"x^2-\frac{1}{3}"}, BOXED),
    "boxed equation": (boxed_math_reward, {"solution": "y=2x+7"}, BOXED),
    "code": (code_reward, {"tests": '{"inputs": ["1"], "outputs": ["2"]}'}, {0.0, 0.5}),  # see stand_ins
}
TABLES = {reward.__name__: reward.task.table for reward, *_ in REWARDS.values()}

ATTACKS = {}  # {kind: {name: text}}
for row in rows_of("hostile_texts.tsv"):
    content = json.loads(row["text"])  # a text, or pieces with how often each repeats
    text = content if isinstance(content, str) else "".join(piece * times for piece, times in content)
    ATTACKS.setdefault(row["kind"], {})[row["name"]] = text
PIECES = list(ATTACKS["piece"].values())


def in_every_task(text):
    """A completion in which a text is an equation's side, a Countdown answer, a boxed answer and a program."""
    return f"1+1 = {text}\n```python\n{text}\n```\n\\boxed{{{text}}} <answer>{text}</answer>"


def attacks(size):
    """All attacks as completions. size: of a text that is made of a repeated piece, in characters."""
    texts = [*ATTACKS["completion"].values(), *map(in_every_task, ATTACKS["answer"].values())]
    for piece in PIECES:
        repeated = piece * (size // len(piece))
        # Boxed answers of more than 1,000 characters are compared as text only
        texts += [repeated, in_every_task(repeated[:900]), in_every_task(repeated[: size // 4])]
    return texts


def rewarded(completions):
    """What every reward makes of some completions: {name: a value for each}."""
    found = {}
    for name, (reward, row, _) in REWARDS.items():
        found[name] = reward(completions, **{column: [value] * len(completions) for column, value in row.items()})
    return found


def scored(texts):
    """What the rewards, the counts, the console and the page make of some texts: {name: a value for each}."""
    return rewarded(texts) | {
        "behaviours": [count_behaviours(text) for text in texts],
        "mistakes": [name_mistake(text, 9) for text in texts],
        "console": [console.completion_lines(row_of(text)) for text in texts],
        "page": [read_completion(row_of(text), TABLES)[1] for text in texts],
    }


def row_of(text):
    """A row of the table of completions."""
    return {"completion": text, "equation": extract_answer(text), "target": 9, "numbers": "[9]", "verdict": "wrong"}


def check(found):
    """Asserts that all that scored() has returned is as documented."""
    for name, (_, _, documented) in REWARDS.items():
        assert set(found[name]) <= documented, name
    for counts in found["behaviours"]:
        assert tuple(counts) == BEHAVIOURS
        assert all(type(count) is int and count >= 0 for count in counts.values())
        assert counts["true_equations"] <= counts["equations"] and counts["answer_multiplies"] <= 1
    assert set(found["mistakes"]) <= set(MISTAKES)
    for lines in found["console"]:
        assert is_harmless(lines, 3 * console.LONGEST_SHOWN)
        lines.encode()  # without surrogates, which no terminal takes
    for completion in found["page"]:
        assert is_harmless(completion["text"]) and is_harmless(completion["answer"] or "")
        json.dumps(completion, allow_nan=False)


def is_harmless(text, longest=LONGEST):
    """Whether a text is short and has no characters but those that print, line breaks and tabs."""
    escapes = len(r"\U00000000")
    return text.replace("\n", "").replace("\t", "").isprintable() and len(text) <= escapes * (longest + 100)


ASK_HELPER = algebra.ask_helper  # the real one


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Computer algebra that decides nothing, and no sandbox. Their time is bounded: see their own tests."""
    box = SimpleNamespace(share_passed=lambda programs, _: [0.0 if program is None else 0.5 for program in programs])
    monkeypatch.setattr(algebra, "ask_helper", lambda pairs: [None] * len(pairs))
    monkeypatch.setattr(sandbox, "SHARED", [box])


def test_no_attack_is_right_raises_or_gets_a_value_that_is_not_documented():
    texts = attacks(10**4)
    found = scored(texts)
    check(found)
    assert len(texts) > 250 and max(max(found[name]) for name in REWARDS) < 1
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert rewarded(chats).items() <= found.items(), "the same in chat messages"


@pytest.mark.parametrize("examples", [250, pytest.param(14_000, marks=pytest.mark.slow)])
def test_any_text_gets_a_documented_value_the_same_in_any_batch(examples):
    answers, completions = ATTACKS["answer"].values(), ATTACKS["completion"].values()
    near_answers = ["Let me check: ", "3*7 = 21", "21-5 = 16 yes", "+", "/", "16", "391", "0", "10^{", "x^2", "|", "%"]
    near_answers += [r"-\frac{1}{3}", "y=2x+7", r"\pi", r"\sin ", r"\cdot ", r"\log_", "[", "]", ":", ";", "?", "d"]
    snippets = [*PIECES, *near_answers, *answers, *(text for text in completions if len(text) < 100)]
    hostile = st.lists(st.sampled_from(snippets) | st.text(max_size=5), max_size=12).map("".join)
    framed = hostile | hostile.map(in_every_task) | hostile.map(lambda text: f"<answer>{text[:60]}</answer>")

    @settings(max_examples=examples)
    @given(framed, framed)
    def holds(text, other):
        one, another = scored([text]), scored([other])
        check(one)
        expected = {name: [*another[name], *one[name], *one[name]] for name in one}
        assert scored([other, text, text]) == expected

    holds()


@pytest.mark.slow
def test_attacks_are_wrong_to_computer_algebra_too_and_nothing_of_them_reaches_the_terminal(monkeypatch, capfd):
    texts = attacks(10**4)
    expected = rewarded(texts)
    algebra.CLIENT.stop()  # the next helper writes to the terminal of this test
    monkeypatch.setattr(algebra, "ask_helper", ASK_HELPER)
    monkeypatch.setattr(algebra, "BATCH_SECONDS", 3)
    assert rewarded(texts) == expected
    written = capfd.readouterr().err
    assert is_harmless(written) and "Traceback" not in written


@pytest.mark.slow
def test_a_megabyte_of_anything_is_read_in_linear_time():
    """A pattern that is not linear would take the time many times over."""
    began = time.process_time()
    check(scored(attacks(10**6)))
    assert time.process_time() - began < 300


def test_of_a_megabyte_the_middle_is_left_out_and_said_so():
    text = "begin" + "x" * 10**6 + "end"
    shown = visible(text)
    assert shown.startswith("begin") and shown.endswith("end") and len(shown) < LONGEST + 100
    assert f"\n[{len(text) - LONGEST:,} characters are left out here]\n" in shown

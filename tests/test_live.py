"""The warnings that save a run, each from the readings that call for it.   bash tests/run.sh tests/test_live.py"""

import pytest

import live

HEALTHY = {
    "reward": 0.3,
    "accuracy": 0.25,
    "completions/clipped_ratio": 0.1,
    "entropy": 0.5,
    "frac_reward_zero_std": 0.4,
    "times_divide_rate": 0.6,
}


def warned(course, every=1, steps=60):
    """(step, warning) of a run whose metrics at a step are HEALTHY with what course(step) changes."""
    seen, warnings = [], live.Warnings()
    for step in range(every, steps + 1, every):
        seen += [(step, text) for text in warnings.see(step, HEALTHY | course(step))]
    return seen


def test_healthy_run_is_left_in_peace():
    assert warned(lambda step: {"reward": 0.3 + step / 100, "accuracy": 0.25 + step / 100}) == []


@pytest.mark.parametrize("every", [1, 4], ids=["logged every step", "logged every fourth"])
@pytest.mark.parametrize(
    ("course", "found"),
    [
        pytest.param(
            lambda step: {"frac_reward_zero_std": 1.0 if step > 20 else 0.9},
            "no group had two different rewards for 20 steps",
            id="no signal",
        ),
        pytest.param(
            lambda step: {"reward": 0.1, "accuracy": 0.0}, "the reward stands at 0.100, which the format", id="format"
        ),
        pytest.param(
            lambda step: {"entropy": 0.5 if step < 10 else 0.01}, "entropy fell from 0.50 to 0.0", id="entropy"
        ),
        pytest.param(
            lambda step: {"completions/clipped_ratio": 0.75}, "75% of the completions are cut off", id="truncation"
        ),
        pytest.param(
            lambda step: {"reward": 0.3 + step / 200, "accuracy": 0.25 - step / 300},
            "while the reward rose to",
            id="a reward that is hacked",
        ),
        pytest.param(
            lambda step: {"times_divide_rate": 0.6 if step < 10 else 0.1},
            "answers with * or / fell from 60% to 1",
            id="* and / dying out",
        ),
    ],
)
def test_what_ruins_a_run_is_said_once_with_the_reading_and_what_to_try(course, found, every):
    ((step, text),) = warned(course, every)
    assert found in text and step > live.WINDOW
    assert ": " in text and any(word in text for word in ("try", "raise", "read"))


def test_one_bad_step_is_no_reason_to_warn():
    for bad in ({"frac_reward_zero_std": 1.0}, {"completions/clipped_ratio": 1.0}, {"entropy": 0.001}):
        assert warned(lambda step, bad=bad: bad if step == 30 else {}) == []


def test_metrics_that_a_task_does_not_log_are_not_missed():
    warnings = live.Warnings()
    for step in range(1, 61):
        assert list(warnings.see(step, {"reward": 0.5, "accuracy": None})) == []


@pytest.mark.parametrize(("seconds", "text"), [(0, "0m00s"), (245, "4m05s"), (20_220, "5h37m"), (3599.6, "1h00m")])
def test_time_left_is_short_to_read(seconds, text):
    assert live.clock(seconds) == text


def test_completion_is_shown_with_its_problem_and_verdict():
    row = {"step": 3, "prompt": "p", "completion": "1+2 is 3", "countdown_reward": 1.0, "target": 3, "gold": None}
    assert live.show(row).splitlines()[1:-1] == ["countdown_reward: 1.0", "target: 3", "completion:", "1+2 is 3"]


@pytest.mark.parametrize("completion", ["so 16", [{"role": "assistant", "content": "so 16"}]], ids=["text", "chat"])
def test_a_whole_completion_is_shown_with_its_problem(completion):
    shown = live.show({"step": 1, "prompt": "p", "completion": completion, "target": 16, "verdict": None})
    assert shown.strip("-").strip("\n").splitlines() == ["target: 16", "completion:", "so 16"]

"""Which charts a run gets, and what is drawn in them.   bash tests/run.sh tests/test_figures.py"""

from statistics import stdev

import pytest

from r1zero.report import charts as figures

TRAINED = [{"step": step, "reward": 0.1 * step, "accuracy": 0.1, "frac_reward_zero_std": 0.5} for step in (1, 2, 3)]
EVALUATED = [
    {"step": 0, "eval_reward": 0.1, "eval_frac_reward_zero_std": 1.0, "eval_edit_distance": 5.0},
    {"step": 3, "eval_reward": 0.2, "eval_frac_reward_zero_std": 1.0, "eval_edit_distance": -1.0},
]
HISTORY = [*TRAINED, *EVALUATED]


def titles(panels, groups):
    return [chart.title for chart in figures.choose_charts(panels, groups)]


def drawn(panels, groups, columns=2):
    """The visible axes of a figure."""
    figure = figures.draw_charts(figures.choose_charts(panels, groups), columns)
    return [axis for axis in figure.axes if axis.get_visible()]


def test_only_what_was_logged_has_a_chart():
    assert titles(figures.COURSE, {"run": [HISTORY]}) == ["Reward and accuracy", "Share of groups without signal"]
    assert titles(figures.COURSE, {"run": [[]]}) == []
    assert figures.draw_charts([]) is None and figures.svg(None) is None


def test_line_stands_for_training_and_dots_for_the_held_out_set():
    rewards, signal = drawn(figures.COURSE, {"run": [HISTORY]})
    assert [(list(line.get_xdata()), line.get_marker()) for line in rewards.lines] == [
        ([1, 2, 3], "None"),
        ([0, 3], "o"),
        ([1, 2, 3], "None"),
    ]
    assert [text.get_text() for text in rewards.get_legend().get_texts()] == ["reward", "accuracy"]
    assert len(signal.lines) == 1, "an evaluation has one completion a group"
    assert signal.get_ylim() == (0, 1.02) and rewards.get_ylim()[0] == 0 and rewards.get_ylim()[1] != 1.02


def test_groups_of_runs_have_a_colour_each_and_seeds_a_band():
    other = [{**entry, "step": entry["step"] + 1} for entry in TRAINED]
    (axis,) = drawn(figures.COURSE[:1], {"base": [HISTORY, other], "faster": [[TRAINED[0]]]})
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["base", "faster"] * 2
    assert len({line.get_color() for line in axis.lines}) == 4, "accuracy beside the reward"
    (base, faster, *_) = axis.lines
    assert list(base.get_xdata()) == [2, 3] and list(faster.get_xdata()) == [1]


def test_mean_is_over_the_steps_that_all_seeds_have():
    histories = [[{"step": 1, "reward": 0.0}, {"step": 2, "reward": 1.0}], [{"step": 1, "reward": 1.0}, {"step": 2}]]
    assert figures.curve(histories, "reward") == figures.Curve([1], [0.5], [stdev([0.0, 1.0])])


def test_what_a_users_reward_logs_has_a_panel_of_its_own():
    history = [*HISTORY, {"step": 1, "accuracy/spelling": 0.5, "accuracy/countdown": 0.25}]
    panels = figures.own_panels(["edit_distance"])
    assert [panel.title for panel in panels] == ["edit_distance"]
    (axis,) = drawn(panels, {"run": [history]})
    assert axis.get_ylim()[0] < -1, "what is below zero is seen"
    by_task = figures.learned_panels([history])[0]
    assert [metric.label for metric in by_task.metrics] == ["countdown", "spelling"]


@pytest.mark.parametrize("name", ["cost_in_$_per_$^", "<b>&amp;</b>"], ids=["a formula", "HTML"])
def test_any_name_of_a_metric_can_be_drawn(name):
    history = [{"step": 1, name: 2.0}]
    charts = figures.choose_charts(figures.own_panels([name]), {"run": [history]})
    text = figures.svg(figures.draw_charts(charts))
    assert text.startswith("<svg") and "<b>" not in text

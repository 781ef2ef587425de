"""Which charts a run gets, and what is drawn in them.   bash tests/run.sh tests/test_figures.py"""

from r1zero.report import charts

TRAINED = [{"step": step, "reward": 0.1 * step, "accuracy": 0.1, "frac_reward_zero_std": 0.5} for step in (1, 2, 3)]
EVALUATED = [
    {"step": 0, "eval_reward": 0.1, "eval_frac_reward_zero_std": 1.0, "eval_edit_distance": 5.0},
    {"step": 3, "eval_reward": 0.2, "eval_frac_reward_zero_std": 1.0, "eval_edit_distance": -1.0},
]
HISTORY = [*TRAINED, *EVALUATED]


def drawn(panels, groups):
    """The visible axes of a figure."""
    figure = charts.draw_charts(panels, groups)
    return [axis for axis in figure.axes if axis.get_visible()]


def test_line_stands_for_training_and_dots_for_the_held_out_set_of_what_was_logged():
    rewards, signal = drawn(charts.COURSE, {"run": [HISTORY]})
    assert (rewards.get_title(), signal.get_title()) == ("Reward and accuracy", "Share of groups without signal")
    lines = [(list(line.get_xdata()), line.get_marker()) for line in rewards.lines]
    assert lines == [([1, 2, 3], "None"), ([0, 3], "o"), ([1, 2, 3], "None")]
    assert [text.get_text() for text in rewards.get_legend().get_texts()] == ["reward", "accuracy"]
    assert len(signal.lines) == 1, "an evaluation has one completion a group"
    assert signal.get_ylim() == (0, 1.02) and rewards.get_ylim()[0] == 0 and rewards.get_ylim()[1] != 1.02
    nothing = charts.draw_charts(charts.COURSE, {"run": [[]]})
    assert nothing is None and charts.svg(nothing) is None


def test_groups_of_runs_have_a_colour_each_and_the_mean_of_the_steps_that_all_seeds_have():
    other = [{**entry, "step": entry["step"] + 1} for entry in TRAINED]
    (axis,) = drawn(charts.COURSE[:1], {"base": [HISTORY, other], "faster": [[TRAINED[0]]]})
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["base", "faster"] * 2
    assert len({line.get_color() for line in axis.lines}) == 4, "accuracy beside the reward"
    base, faster, *_ = axis.lines
    assert list(base.get_xdata()) == [2, 3] and list(faster.get_xdata()) == [1]
    assert list(base.get_ydata()) == [0.15000000000000002, 0.25]
    (band, *_) = axis.collections
    assert band.get_paths()[0].vertices[:, 1].max() > 0.28, "one deviation of 0.1 and 0.2 above 0.25"


def test_any_name_of_a_metric_can_be_drawn():
    for name in ("cost_in_$_per_$^", "<b>&amp;</b>"):  # a formula to matplotlib, HTML to a browser
        history = [{"step": 1, name: 2.0}]
        text = charts.svg(charts.draw_charts(charts.own_panels([name]), {"run": [history]}))
        assert text.startswith("<svg") and "<b>" not in text

"""Draw the charts of a page: a panel for each group of metrics of which a run has logged something."""

import io
import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from r1zero.grading.behaviours import PHRASES
from r1zero.intervals import deviation
from r1zero.tasks.countdown import CELL_METRICS

NUMBER, SHARE, OWN = "{:.2f}", "{:.1%}", "{:.4g}"  # forms of values in tables; a share lies between 0 and 1
TRAINING_ALONE = "frac_reward_zero_std"  # an evaluation has one completion a group


@dataclass
class Panel:
    """Holds metrics that share a chart: {name without `eval_`: label}. form: of their values in tables."""

    title: str
    metrics: dict[str, str]
    form: str = NUMBER


COURSE = [
    Panel("Reward and accuracy", {"reward": "reward", "accuracy": "accuracy", "format_rate": "with an answer"}),
    Panel("Completion length (tokens)", {"completions/mean_length": "completion length"}),
    Panel("Entropy (nats a token)", {"entropy": "entropy"}),
    Panel("Share of groups without signal", {TRAINING_ALONE: "groups without signal"}, SHARE),
]
LEARNED = [
    Panel(
        "Countdown's cells",
        {
            f"cells/{numbers}_numbers_{name}": f"accuracy, {numbers} numbers, {kind}"
            for numbers in range(2, 7)
            for kind, name in CELL_METRICS.items()
        },
        SHARE,
    ),
    Panel(
        "Shares of completions",
        {
            "completions/clipped_ratio": "cut off",
            "behaviours/over_200_tokens": "over 200 tokens",
            "behaviours/answer_multiplies": "answer has * or /",
        },
        SHARE,
    ),
    Panel(
        "Different equations a completion",
        {"behaviours/equations": "equations", "behaviours/true_equations": "true equations"},
    ),
    Panel("Behaviours a completion", {f"behaviours/{name}": name.replace("_", " ") for name in PHRASES}),
]


def logged_names(histories):
    """Return the set of logged names, without eval_. histories: lists of entries (dicts), one for each run."""
    return {name.removeprefix("eval_") for history in histories for entry in history for name in entry}


def learned_panels(histories):
    """Return LEARNED for some runs, with the accuracy of each task if tasks share a run, and the seconds of a step."""
    names = sorted(logged_names(histories))
    by_task = {name: name.removeprefix("accuracy/") for name in names if name.startswith("accuracy/")}
    phases = {name: name.removeprefix("profiling/") for name in names if name.startswith("profiling/")}
    return [Panel("Accuracy by task", by_task, SHARE), *LEARNED, Panel("Seconds of a step", phases)]


def own_panels(names):
    """Return a panel for each metric (str) that a user's rewards have logged."""
    return [Panel(name, {name: name}, OWN) for name in names]


def curve(histories, name):
    """Return a metric's steps, means and standard deviations over runs, at the steps that all of them have logged.

    histories: lists of entries, one for each run; name: with eval_ if it is of evaluations.
    """
    logged = []
    for history in histories:
        logged.append({entry["step"]: entry[name] for entry in history if entry.get(name) is not None})
    steps = sorted(set.intersection(*map(set, logged)))
    values = [[of_run[step] for of_run in logged] for step in steps]
    return steps, [fmean(at_step) for at_step in values], [deviation(at_step) for at_step in values]


def draw_charts(panels, groups, columns=2):
    """Return a matplotlib figure with a chart for each panel that has logged metrics, or None if no panel has.

    groups: dict of a label to the histories of its runs. Colours distinguish the metrics of a panel, and also the
    groups if there are several.
    """
    logged = logged_names([history for histories in groups.values() for history in histories])
    drawn = []
    for panel in panels:
        metrics = {name: label for name, label in panel.metrics.items() if name in logged}
        if metrics:
            drawn.append(Panel(panel.title, metrics, panel.form))
    if not drawn:
        return None
    from matplotlib.figure import Figure  # here, as training imports this module and draws at its end

    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(5 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, drawn, strict=False):
        draw_panel(axis, panel, groups)
        axis.xaxis.get_major_locator().set_params(integer=True)  # no half step
    axes[0, 0].get_legend().set_title("lines: training, dots: held out", {"size": 8})
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    return figure


def draw_panel(axis, panel, groups):
    """Draw a line in training and dots on the held-out set for each metric and group, from 0 or below upwards."""
    pairs = [(name, group) for name in panel.metrics for group in groups]
    for place, (name, group) in enumerate(pairs):
        training = curve(groups[group], name)
        held_out = ([], [], []) if name == TRAINING_ALONE else curve(groups[group], f"eval_{name}")
        color, label = f"C{place % 10}", group if len(groups) > 1 else panel.metrics[name]
        if training[0]:
            draw_curve(axis, training, color, label, "-", 1 if held_out[0] else 1.5)
            label = None  # once in the legend
        if held_out[0]:
            draw_curve(axis, held_out, color, label, "o-", 2)
    axis.set_title(panel.title)
    if all(min(line.get_ydata()) >= 0 for line in axis.lines):
        axis.set_ylim(0, 1.02 if panel.form == SHARE else None)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def draw_curve(axis, points, color, label, style, width):
    """Draw means with a band of one standard deviation. points: as `curve` returns them."""
    steps, means, deviations = points
    axis.plot(steps, means, style, color=color, label=label, linewidth=width, markersize=4)
    low, high = np.subtract(means, deviations), np.add(means, deviations)
    axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def svg(figure):
    """Return a matplotlib figure as an <svg> element (str)."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]

"""The charts of a page: which metrics share a panel, what a run has logged of them, and how a panel is drawn."""

import io
import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from r1zero.grading.behaviours import PHRASES
from r1zero.intervals import deviation
from r1zero.tasks.countdown import CELL_METRICS

NUMBER, SHARE = "{:.2f}", "{:.1%}"  # how a value of a metric reads; a share lies between 0 and 1
TRAINING_ALONE = "frac_reward_zero_std"  # an evaluation has one completion a group


@dataclass(frozen=True)
class Metric:
    """A logged metric. name: without `eval_`; label: in legends and tables; form: how its values read in tables."""

    name: str
    label: str
    form: str = NUMBER


@dataclass
class Panel:
    """Metrics that are drawn together."""

    title: str
    metrics: list[Metric]


@dataclass
class Curve:
    """A metric over runs: means and standard deviations at the steps that all of the runs have logged."""

    steps: list[int]
    means: list[float]
    deviations: list[float]


@dataclass
class Line:
    """A metric of a panel as it is drawn for some runs; color: of matplotlib's cycle."""

    label: str
    color: str
    training: Curve
    held_out: Curve


@dataclass
class Chart:
    """A panel with what is drawn in it; shares: whether all of it lies between 0 and 1."""

    title: str
    lines: list[Line]
    shares: bool


def cell_metrics():
    """The accuracy in each kind of Countdown problem."""
    metrics = []
    for numbers in range(2, 7):
        for kind, name in CELL_METRICS.items():
            metrics.append(Metric(f"cells/{numbers}_numbers_{name}", f"accuracy, {numbers} numbers, {kind}", SHARE))
    return metrics


COURSE = [
    Panel(
        "Reward and accuracy",
        [
            Metric("reward", "reward"),
            Metric("accuracy", "accuracy", SHARE),
            Metric("format_rate", "with an answer", SHARE),
        ],
    ),
    Panel("Completion length (tokens)", [Metric("completions/mean_length", "completion length")]),
    Panel("Entropy (nats a token)", [Metric("entropy", "entropy")]),
    Panel("Share of groups without signal", [Metric(TRAINING_ALONE, "groups without signal", SHARE)]),
]
LEARNED = [
    Panel("Countdown's cells", cell_metrics()),
    Panel(
        "Shares of completions",
        [
            Metric("completions/clipped_ratio", "cut off", SHARE),
            Metric("behaviours/over_200_tokens", "over 200 tokens", SHARE),
            Metric("behaviours/answer_multiplies", "answer has * or /", SHARE),
        ],
    ),
    Panel(
        "Different equations a completion",
        [Metric("behaviours/equations", "equations"), Metric("behaviours/true_equations", "true equations")],
    ),
    Panel(
        "Behaviours a completion",
        [Metric(f"behaviours/{name}", name.replace("_", " ")) for name in PHRASES],
    ),
]


def logged_names(histories):
    """The set of the names, without eval_, that the entries of some runs have. histories: lists of entries (dicts)."""
    names = set()
    for history in histories:
        for entry in history:
            names.update(name.removeprefix("eval_") for name in entry)
    return names


def learned_panels(histories):
    """Return LEARNED for some runs, after the accuracy of each task if tasks share a run."""
    by_task = []
    for name in sorted(logged_names(histories)):
        if name.startswith("accuracy/"):
            by_task.append(Metric(name, name.removeprefix("accuracy/"), SHARE))
    return [Panel("Accuracy by task", by_task), *LEARNED]


def own_panels(names):
    """Return a panel for each metric (str) that a user's rewards have logged."""
    return [Panel(name, [Metric(name, name, "{:.4g}")]) for name in names]


def curve(histories, name):
    """The Curve of a metric over runs, by its whole name; histories: their logged entries."""
    logged = []
    for history in histories:
        logged.append({entry["step"]: entry[name] for entry in history if entry.get(name) is not None})
    steps = sorted(set.intersection(*[set(values) for values in logged]))
    found = Curve(steps, [], [])
    for step in steps:
        values = [of_run[step] for of_run in logged]
        found.means.append(fmean(values))
        found.deviations.append(deviation(values))
    return found


def choose_lines(panel, groups, logged):
    """What a panel draws: a Line for each metric that some run has logged, and each group."""
    lines = []
    for metric in panel.metrics:
        if metric.name not in logged:
            continue
        for group, histories in groups.items():
            held_out = curve(histories, f"eval_{metric.name}")
            if metric.name == TRAINING_ALONE:
                held_out = Curve([], [], [])
            label = group if len(groups) > 1 else metric.label
            lines.append(Line(label, f"C{len(lines) % 10}", curve(histories, metric.name), held_out))
    return lines


def choose_charts(panels, groups):
    """The charts of those panels of which something was logged.

    groups: dict of a label to the histories of its runs. Colours tell the metrics of a panel apart, or the groups,
    where there are several.
    """
    logged = set()
    for histories in groups.values():
        logged |= logged_names(histories)
    charts = []
    for panel in panels:
        lines = choose_lines(panel, groups, logged)
        shares = all(metric.form == SHARE for metric in panel.metrics if metric.name in logged)
        if lines:
            charts.append(Chart(panel.title, lines, shares))
    return charts


def draw_charts(charts, columns=2):
    """A figure with a grid of charts, or None where there are none."""
    if not charts:
        return None
    from matplotlib.figure import Figure  # here, as only a page that is drawn needs it

    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(5 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, chart in zip(axes.flat, charts, strict=False):
        draw_chart(axis, chart)
    axes[0, 0].get_legend().set_title("lines: training, dots: held out", {"size": 8})
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    for axis in axes.flat[len(charts) :]:
        axis.set_visible(False)
    return figure


def draw_chart(axis, chart):
    """Draws a chart from 0 upwards, or from below where a reward or a metric of it is negative."""
    for line in chart.lines:
        draw_line(axis, line)
    lowest = min([0, *(value for line in chart.lines for value in (*line.training.means, *line.held_out.means))])
    axis.set_title(as_text(chart.title))
    if lowest == 0:
        axis.set_ylim(0, 1.02 if chart.shares else None)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def draw_line(axis, line):
    """Draws a line in training, dots on the held-out set, and bands of one deviation over runs."""
    label = as_text(line.label)
    if line.training.steps:
        width = 1 if line.held_out.steps else 1.5
        draw_curve(axis, line.training, line.color, label, "-", width)
        label = None  # once in the legend
    if line.held_out.steps:
        draw_curve(axis, line.held_out, line.color, label, "o-", 2)


def draw_curve(axis, of_metric, color, label, style, width):
    axis.plot(of_metric.steps, of_metric.means, style, color=color, label=label, linewidth=width, markersize=4)
    low = np.subtract(of_metric.means, of_metric.deviations)
    high = np.add(of_metric.means, of_metric.deviations)
    axis.fill_between(of_metric.steps, low, high, color=color, alpha=0.2, linewidth=0)


def as_text(name):
    """A name that a user gave to a metric or a run. matplotlib would take what stands between two $ for a formula."""
    return name.replace("$", r"\$")


def svg(figure):
    """The figure as an <svg> element, or None for None."""
    if figure is None:
        return None
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]

"""The pages of runs: report.html of one, with its curves and a reader of completions, and a comparison of several.

    python report.py outputs/RUN                  # the page, report.png and the table, also while the run goes on
    python report.py outputs/RUN outputs/RUN-1    # compares runs; those that differ in their seed alone are averaged

A page is one file that needs no network: the charts are matplotlib's, and page_template.html is the rest.
"""

import argparse
import io
import json
import math
import re
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, FileSystemLoader
from rich.console import Console
from rich.table import Table

import record
from behaviours import METRIC_NAMES, PHRASES, behaviours, value
from rewards import completion_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PROBLEMS, EVALUATIONS = 100, 12  # in the reader of completions, at most
COURSE = {  # title of a panel: its metrics and their names
    "Reward and accuracy": {"reward": "reward", "accuracy": "accuracy", "format_rate": "with an answer"},
    "Completion length (tokens)": {"completions/mean_length": "completion length"},
    "Entropy (nats a token)": {"entropy": "entropy"},
    "Share of groups without signal": {"frac_reward_zero_std": "groups without signal"},
}
LEARNED = {
    "Accuracy by task": {f"accuracy/{task}": task for task in ("countdown", "multiplication", "boxed_math", "code")},
    "Countdown's cells": {
        f"cells/{numbers}_numbers_{metric}": f"accuracy, {numbers} numbers, {kind}"
        for numbers in range(2, 7)
        for kind, metric in METRIC_NAMES.items()
    },
    "Shares of completions": {
        "completions/clipped_ratio": "cut off",
        "behaviours/over_200_tokens": "over 200 tokens",
        "behaviours/answer_multiplies": "answer has * or /",
    },
    "Different equations a completion": {
        "behaviours/equations": "equations",
        "behaviours/true_equations": "true equations",
    },
    "Behaviours a completion": {f"behaviours/{name}": name.replace("_", " ") for name in PHRASES},
}
# Metrics between 0 and 1
SHARES = re.compile("cells/|format_rate|clipped_ratio|answer_multiplies|over_200|zero_std|^accuracy")
TRAINING_ALONE = "frac_reward_zero_std"  # an evaluation has one completion a group
ANSWERS = {  # columns of the table of completions that a reward writes: its verdict, the answer, the problem
    "verdict": ("equation", ("numbers", "target")),
    "product_verdict": ("stated_product", ("product",)),
    "boxed_verdict": ("boxed", ("gold",)),
    "tests_passed": ("program", ()),
}
# Settings in which two seeds of one recipe may differ
OF_A_SEED = ("seed", "data_seed", "output_dir", "run_name", "logging_dir", "prepare", "price_per_hour", "show_every")


@dataclass
class Run:
    """What a run's folder holds. history: the logged entries; config: the text of config.yaml."""

    folder: Path
    config: str
    settings: dict
    metrics: dict
    history: list
    max_steps: int


def read(folder):
    """The Run in a folder, which may still go on or have been cut off. ValueError where there is none."""
    try:
        config = (folder / "config.yaml").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())
        state = json.loads((folder / "trainer_state.json").read_text())
        return Run(folder, config, yaml.safe_load(config), metrics, state["log_history"], state["max_steps"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folder} is not the folder of a run that has logged a step ({error})") from None


def deviation(values):
    """The standard deviation of a sample, 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def curve(histories, key):
    """(steps, means, standard deviations) of a metric over runs, at the steps that all of them have logged."""
    logged = [{entry["step"]: entry[key] for entry in history if entry.get(key) is not None} for history in histories]
    steps = sorted(set.intersection(*map(set, logged)))
    values = [[of_run[step] for of_run in logged] for step in steps]
    return steps, [statistics.fmean(row) for row in values], [deviation(row) for row in values]


def draw(axis, histories, key, label, color):
    """A metric: a line in training, dots on the held-out set, a band of one deviation over runs."""
    training = curve(histories, key)
    held_out = curve(histories, f"eval_{key}") if key != TRAINING_ALONE else ((), (), ())
    for (steps, means, spread), style, width in ((training, "-", 1), (held_out, "o-", 2)):
        if steps:
            width = width if held_out[0] else 1.5
            axis.plot(steps, means, style, color=color, label=label, linewidth=width, markersize=4)
            low, high = np.subtract(means, spread), np.add(means, spread)
            axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            label = None  # once in the legend


def draw_panels(panels, groups, columns=2):
    """A figure with a grid of panels, or None where nothing of them was logged.

    panels: as COURSE; groups: dict of a label to the histories of its runs. Colours tell the metrics of a panel apart,
    or the groups, where there are several.
    """
    logged = {key for histories in groups.values() for history in histories for entry in history for key in entry}
    found = []
    for title, metrics in panels.items():
        lines = [
            (histories, key, name if len(groups) == 1 else label)
            for key, name in metrics.items()
            for label, histories in groups.items()
            if {key, f"eval_{key}"} & logged
        ]
        found += [(title, lines)] * bool(lines)
    if not found:
        return None
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes.flat, found, strict=False):
        for i, line in enumerate(lines):
            draw(axis, *line, f"C{i % 10}")
        axis.set_title(title)
        axis.set_ylim(0, 1.02 if all(SHARES.search(key) for _, key, _ in lines) else None)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    axes[0, 0].get_legend().set_title("lines: training, dots: held out", {"size": 8})
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    for axis in list(axes.flat)[len(found) :]:
        axis.set_visible(False)
    return figure


def svg(figure):
    """The figure as an <svg> element, or None for None."""
    if figure is None:
        return None
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def read_completion(row, reward_funcs):
    """A row of the table of completions for the reader: problem and completion as dicts of strs and numbers."""
    verdict, answer, about = "", None, {}
    for column, (answer_column, problem_columns) in ANSWERS.items():
        if row.get(column) not in (None, ""):
            verdict, answer = row[column], row[answer_column]
            about = {name: row[name] for name in problem_columns}
    if isinstance(verdict, float):  # the share of tests that a program passes
        verdict = "correct" if verdict == 1 else "no answer" if answer is None else "wrong"
    text = completion_text(row["completion"])
    counts = behaviours(text)
    worked_out = value(answer) if answer and "target" in about else None
    return about, {
        "text": text,
        "answer": answer,
        "value": None if worked_out is None else str(worked_out),
        "verdict": verdict,
        "reward": sum(row[name] or 0 for name in reward_funcs),
        "changed": counts["backtracking"] + counts["restarts"] > 0,
    }


def read_completions(run):
    """The same held-out problems at every evaluation, as {"steps": [...], "problems": [...]} for the page's reader."""
    problems, steps = {}, []
    evaluated = [evaluation["step"] for evaluation in record.evaluations(run.history)]
    tables = {step: run.folder / "completions" / f"completions_{step:05d}.parquet" for step in evaluated}
    tables = [(step, table) for step, table in tables.items() if table.is_file()]
    spaced = np.linspace(0, len(tables) - 1, min(len(tables), EVALUATIONS)).round().astype(int)
    for step, table in [tables[i] for i in spaced]:
        # The table ends with the evaluation; before it there may be rows of training
        rows = pq.read_table(table).to_pylist()
        rows = rows[-run.metrics["after"]["n"] * (run.settings.get("num_generations_eval") or 1) :]
        seen = Counter()
        for row in rows:
            prompt = completion_text(row["prompt"])
            seen[prompt] += 1  # one of several completions
            problems.setdefault((prompt, seen[prompt]), {})[len(steps)] = row
        steps.append(step)
    chosen = []
    for (prompt, _), rows in sorted(problems.items(), key=lambda problem: -len(problem[1]))[:PROBLEMS]:
        problem = {"prompt": prompt, "at": {}}
        for at, row in rows.items():
            problem["about"], problem["at"][at] = read_completion(row, run.settings["reward_funcs"])
        chosen.append(problem)
    return {"steps": steps, "problems": chosen, "of": len(problems)}


def wilson(share, size):
    """The 95 % interval (low, high) of a share of `size` independent cases, after Wilson."""
    squared = 1.959964**2 / size
    center, half = share + squared / 2, math.sqrt(squared * (share * (1 - share) + squared / 4))
    return (center - half) / (1 + squared), (center + half) / (1 + squared)


def results(metrics):
    """The held-out set before and after, as rows of (name, before, after) with the header first."""
    before, after = metrics["before"], metrics["after"]

    def accuracy(of):
        low, high = wilson(of["accuracy"], of["n"])
        return f"{of['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})"

    return [
        (f"{before['n']} held-out problems", f"before (step {before['step']})", f"after (step {after['step']})"),
        ("accuracy (95 % interval)", accuracy(before), accuracy(after)),
        ("with an answer", f"{before['format_rate']:.1%}", f"{after['format_rate']:.1%}"),
        ("tokens a completion", *(f"{of['mean_completion_tokens']:.1f}" for of in (before, after))),
    ]


def print_table(rows):
    """Rows with the header first, on the console."""
    (first, *columns), *rows = rows
    table = Table(first, *columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def complete_card(path, metrics, model):
    """Adds the results to the model card that TRL wrote at `path`, and names the local base model it cannot link."""
    card = path.read_text().replace("[None](https://huggingface.co/None)", f"`{model}`")
    card = card.replace('model="None"', f'model="{path.parent}"')
    if metrics["before"]:
        header, *rows = results(metrics)
        lines = [header, ("---",) * 3, *rows]
        card += "\n## Results\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        card += "\n\n![curves over training](report.png)\n\nSettings, versions and commit: `config.yaml`\n"
    path.write_text(card)


def render(path, **values):
    """Fills in page_template.html, and puts it at `path` (Path) in one go, for a browser may be open on it."""
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = page.get_template("page_template.html").render(**values)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def before_and_after(run):
    """Rows (name, before, after) of the held-out set, the header first, with (title,) rows; none where it lacks."""
    if not run.metrics["before"]:
        return []
    evaluated = [entry for entry in run.history if "eval_accuracy" in entry]
    rows = results(run.metrics)
    for title, metrics in LEARNED.items():
        rows.append((title,))
        for key, name in metrics.items():
            values = [entry.get(f"eval_{key}") for entry in (evaluated[0], evaluated[-1])]
            form = "{:.1%}" if SHARES.search(key) else "{:.2f}"
            if values != [None, None]:
                rows.append((name, *("-" if value is None else form.format(value) for value in values)))
        if rows[-1] == (title,):
            rows.pop()
    return rows


def write(folder):
    """Draws the page and the picture of the run in a folder (Path), and prints its table. Returns its metrics."""
    run = read(folder)
    metrics, price = run.metrics, run.settings.get("price_per_hour")
    seconds, tokens = metrics["train_seconds"], metrics["completion_tokens"]
    took = {
        "optimizer steps": f"{metrics['steps']:,} of {run.max_steps:,}",
        "time": f"{seconds / 60:,.1f} min",
        "seconds a step": f"{seconds / max(1, metrics['steps']):,.2f}",
        "completions": f"{metrics['completions']:,}",
        "completion tokens": f"{tokens:,}",
        "completion tokens a second": f"{tokens / max(1e-9, seconds):,.0f}",
        "cost": f"{seconds / 3600 * price:,.2f} at {price:g} an hour" if price else "give --price_per_hour to see it",
    }
    groups = {folder.name: [run.history]}
    drawn = draw_panels(COURSE, groups)
    if drawn:
        drawn.savefig(folder / "report.png", dpi=110)
    render(
        folder / "report.html",
        title=folder.resolve().name,
        about="{model_name_or_path} on {data_dir}".format(**run.settings),
        tables=[before_and_after(run), [("what it took", ""), *took.items()]],
        charts=[svg(drawn), svg(draw_panels(LEARNED, groups))],
        reader=read_completions(run),
        configs={"config.yaml": run.config},
    )
    if metrics["before"]:
        print_table(results(metrics))
    print(
        f"{metrics['completions']:,} completions, {tokens:,} completion tokens, {seconds:.0f} s; "
        f"curves and completions in {folder / 'report.html'}"
    )
    return metrics


def recipe(run):
    """A run's settings without what its seed changes: names that end in the seed are those of any seed."""
    ending = f"-{run.settings.get('seed')}"
    return {
        key: setting.removesuffix(ending) if isinstance(setting, str) else setting
        for key, setting in run.settings.items()
        if key not in OF_A_SEED
    }


def group(runs):
    """dict of a name to the runs of one recipe, that is, its seeds; the name is that of the first one's folder."""
    groups = {}
    for run in runs:
        own = next((own for own in groups.values() if recipe(own[0]) == recipe(run)), None)
        if own is None:
            name = run.folder.resolve().name.removesuffix(f"-{run.settings.get('seed')}")
            groups[str(run.folder) if name in groups else name] = [run]
        else:
            own.append(run)
    return groups


def spread(values, form):
    """The mean, with the standard deviation where there are several."""
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(deviation(values))}"


def compare(folders, path):
    """Writes the page that compares the runs in some folders (Paths) to `path`, and prints its table."""
    groups = group([read(folder) for folder in folders])
    rows = [("", "runs", "accuracy before", "after", "tokens a completion", "minutes")]
    for name, runs in groups.items():
        evaluated = [run.metrics for run in runs if run.metrics["before"]]

        def held_out(when, what, form, evaluated=evaluated):
            return spread([metrics[when][what] for metrics in evaluated], form) if evaluated else "-"

        rows.append(
            (
                name,
                str(len(runs)),
                held_out("before", "accuracy", "{:.1%}"),
                held_out("after", "accuracy", "{:.1%}"),
                held_out("after", "mean_completion_tokens", "{:.1f}"),
                spread([run.metrics["train_seconds"] / 60 for run in runs], "{:.1f}"),
            )
        )
    recipes = [recipe(runs[0]) for runs in groups.values()]
    keys = sorted({key for each in recipes for key in each})
    differ = [key for key in keys if any(each.get(key) != recipes[0].get(key) for each in recipes)]
    settings = [(key, *(each.get(key) for each in recipes)) for key in differ]
    # Colours tell several groups apart, so that each metric has a panel of its own
    panels = {**COURSE, **LEARNED}
    if len(groups) > 1:
        panels = {name: {key: name} for metrics in panels.values() for key, name in metrics.items()}
    histories = {name: [run.history for run in runs] for name, runs in groups.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    render(
        path,
        title="Comparison",
        about=", ".join(map(str, folders)),
        tables=[rows, settings and [("setting", *groups), *settings]],
        charts=[svg(draw_panels(panels, histories, columns=3))],
        reader=None,
        configs={str(run.folder / "config.yaml"): run.config for runs in groups.values() for run in runs},
    )
    print_table(rows)
    print(f"curves in {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, outputs/RUN")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison.html"), help="page that compares runs")
    args = parser.parse_args()
    try:
        if len(args.runs) == 1:
            write(args.runs[0])
        else:
            compare(args.runs, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"report.py: {error}")

"""Write the page of a run, report.html with curves and a reader of completions, or a comparison of several runs.

    python -m r1zero.report outputs/RUN                  # the page, report.png and the table
    python -m r1zero.report outputs/RUN outputs/RUN-1    # compares runs, and averages those of different seeds

The first also works during the run. A page is one file that needs no network: matplotlib draws the charts, and
template.html is the rest.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import rich.console
import rich.table
import yaml
from jinja2 import Environment, FileSystemLoader

from r1zero.files import one_line, replaced
from r1zero.intervals import accuracy_text, deviation, text_of, wilson
from r1zero.report import charts
from r1zero.report.completions import read_completions

# Settings that may differ between two seeds of one recipe
OF_A_SEED = ("seed", "data_seed", "output_dir", "run_name", "logging_dir", "prepare", "price_per_hour", "show_every")


@dataclass
class Run:
    """Holds the contents of a run's folder. config: the text of config.yaml; history: the logged entries."""

    folder: Path
    config: str
    settings: dict
    metrics: dict
    history: list
    max_steps: int


def read(folder):
    """Read the Run of a folder (Path), even an unfinished one. Raises ValueError if there is none."""
    try:
        config = (folder / "config.yaml").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())
        state = json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not the folder of a run that has logged a step ({one_line(error)})") from None
    return Run(folder, config, yaml.safe_load(config), metrics, state["log_history"], state["max_steps"])


# The tables


def results(metrics):
    """Return rows (name, before, after) of the held-out set, the header first."""
    before, after = metrics["before"], metrics["after"]

    def row(name, key, form):
        return (name, text_of(before[key], form), text_of(after[key], form))

    first = "first evaluation" if before["step"] else "before"
    accuracies = [accuracy_text(of["accuracy"], wilson(of["accuracy"] or 0, of["n"])) for of in (before, after)]
    rows = [
        (f"{before['n']} held-out problems", f"{first} (step {before['step']})", f"after (step {after['step']})"),
        ("accuracy (95 % interval)", *accuracies),
        row("with an answer", "format_rate", "{:.1%}"),
        row("tokens a completion", "mean_completion_tokens", "{:.1f}"),
    ]
    if before["accuracy"] is None:
        rows.append(row("mean reward", "reward", "{:.3f}"))
    return rows


def before_and_after(run):
    """Return rows (name, before, after) of the held-out set, the header first, with a (title,) row for each panel.

    Return [] for a run without an evaluation.
    """
    if not run.metrics["before"]:
        return []
    evaluated = {entry["step"]: entry for entry in run.history if "eval_reward" in entry}
    compared = [evaluated.get(run.metrics[when]["step"], {}) for when in ("before", "after")]
    own = charts.Panel("Logged by the rewards", {name: name for name in run.metrics["own_metrics"]}, charts.OWN)
    rows = results(run.metrics)
    for panel in [*charts.learned_panels([run.history]), own]:
        found = []
        for name, label in panel.metrics.items():
            values = [entry.get(f"eval_{name}") for entry in compared]
            if values != [None, None]:
                found.append((label, *(text_of(value, panel.form) for value in values)))
        if found:
            rows += [(panel.title,), *found]
    return rows


def memory_text(peaks):
    """Return the peaks of a run's memory, that of its card beside the estimate, "-" if none was logged."""
    parts = []
    if {"memory/card", "memory/estimated"} <= peaks.keys():
        parts.append(f"estimated {peaks['memory/estimated']:.1f} GiB on the card, took {peaks['memory/card']:.1f}")
    if "memory/process" in peaks:
        parts.append(f"the process took {peaks['memory/process']:.1f} GiB")
    return "; ".join(parts) or "-"


def what_it_took(run):
    """Return rows (name, value) of a run's steps, time, completions and cost, the header first."""
    metrics, extremes, price = run.metrics, run.metrics["extremes"], run.settings.get("price_per_hour")
    seconds, tokens = metrics["train_seconds"], metrics["completion_tokens"]
    cost = f"{seconds / 3600 * price:,.2f} at {price:g} an hour" if price else "give --price_per_hour to see it"
    phases = [(name, taken) for name, taken in metrics["phases"].items() if name != "step" and seconds]
    rewards = "{reward_min:.3g}, {reward_max:.3g}".format(**extremes) if "reward_min" in extremes else "-"
    return [
        ("what it took", ""),
        ("optimizer steps", f"{metrics['steps']:,} of {run.max_steps:,}"),
        ("time", f"{seconds / 60:,.1f} min"),
        ("seconds a step", f"{seconds / max(1, metrics['steps']):,.2f}"),
        ("where the time went", ", ".join(f"{name} {taken / seconds:.0%}" for name, taken in phases) or "-"),
        ("memory", memory_text(extremes)),
        ("MFU", text_of(extremes.get("mfu"), "{:.1%}")),
        ("longest prompt (tokens)", text_of(extremes.get("prompts/max_length"), "{:,.0f}")),
        ("least and greatest reward", rewards),
        ("completions", f"{metrics['completions']:,}"),
        ("completion tokens", f"{tokens:,}"),
        ("completion tokens a second", f"{tokens / max(1e-9, seconds):,.0f}"),
        ("cost", cost),
    ]


def print_table(rows):
    """Print rows on the console, the header first."""
    table = rich.table.Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    rich.console.Console().print(table)


# The page of a run


def render(path, **values):
    """Fill in template.html and write it to `path` (Path) in one go, as a browser may have it open."""
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = page.get_template("template.html").render(**values)
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def write(folder):
    """Write report.html and report.png of the run in a folder (Path) and print its table. Return its metrics."""
    run = read(folder)
    metrics, groups = run.metrics, {folder.name: [run.history]}
    panels = (charts.COURSE, charts.learned_panels([run.history]), charts.own_panels(metrics["own_metrics"]))
    figures = [charts.draw_charts(each, groups) for each in panels]
    if figures[0]:
        with replaced(folder / "report.png") as part:
            figures[0].savefig(part, dpi=110, format="png")
    render(
        folder / "report.html",
        title=folder.resolve().name,
        about="{model_name_or_path} on {data_dir}".format(**run.settings),
        tables=[before_and_after(run), what_it_took(run)],
        charts=[charts.svg(figure) for figure in figures if figure],
        reader=read_completions(run),
        configs={"config.yaml": run.config},
    )
    if metrics["before"]:
        print_table(results(metrics))
    print(
        f"{metrics['completions']:,} completions, {metrics['completion_tokens']:,} completion tokens, "
        f"{metrics['train_seconds']:.0f} s; curves and completions in {folder / 'report.html'}\n"
        f"memory: {memory_text(metrics['extremes'])}"
    )
    return metrics


def complete_card(path, metrics, model):
    """Add the results and the name of the base model to TRL's model card at `path`. It cannot link a local model."""
    card = path.read_text().replace("[None](https://huggingface.co/None)", f"`{model}`")
    card = card.replace('model="None"', f'model="{path.parent}"')
    if metrics["before"]:
        header, *rows = results(metrics)
        lines = [header, ("---",) * 3, *rows]
        card += "\n## Results\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        card += "\n\n![curves over training](report.png)\n\nSettings, versions and commit: `config.yaml`\n"
    with replaced(path) as part:
        part.write_text(card)


# The comparison of several


def settings_of_any_seed(run):
    """Return a run's settings (dict) without those of its seed, and without the seed at the end of names."""
    ending = f"-{run.settings.get('seed')}"
    found = {}
    for key, setting in run.settings.items():
        if key not in OF_A_SEED:
            found[key] = setting.removesuffix(ending) if isinstance(setting, str) else setting
    return found


def group_seeds(runs):
    """Return {name: the runs that differ in their seed alone}. The name is that of the folder without the seed."""
    groups = {}
    for run in runs:
        settings = settings_of_any_seed(run)
        name = next((name for name, seeds in groups.items() if settings_of_any_seed(seeds[0]) == settings), None)
        if name is None:
            name = run.folder.resolve().name.removesuffix(f"-{run.settings.get('seed')}")
            name = str(run.folder) if name in groups else name
        groups.setdefault(name, []).append(run)
    return groups


def mean_text(values, form):
    """Return the mean of the values that are not None, with the standard deviation of several, "-" if none is left."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean = form.format(fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(deviation(values))}"


def comparison_rows(groups):
    """Return a row for each group of runs, the header first."""
    evaluated = {name: [run.metrics for run in runs if run.metrics["before"]] for name, runs in groups.items()}
    metrics = [of_run for of_runs in evaluated.values() for of_run in of_runs]
    first = "at first" if any(of_run["before"]["step"] for of_run in metrics) else "before"
    # Header, moment, key, form
    columns = [(f"accuracy {first}", "before", "accuracy", "{:.1%}"), ("after", "after", "accuracy", "{:.1%}")]
    if any(of_run["after"]["accuracy"] is None for of_run in metrics):
        columns += [(f"reward {first}", "before", "reward", "{:.3f}"), ("after", "after", "reward", "{:.3f}")]
    columns.append(("tokens a completion", "after", "mean_completion_tokens", "{:.1f}"))
    rows = [("", "runs", *(header for header, *_ in columns), "minutes")]
    for name, runs in groups.items():
        cells = [mean_text([of[moment][key] for of in evaluated[name]], form) for _, moment, key, form in columns]
        minutes = mean_text([run.metrics["train_seconds"] / 60 for run in runs], "{:.1f}")
        rows.append((name, str(len(runs)), *cells, minutes))
    return rows


def setting_rows(groups):
    """Return a row for each setting that differs between groups, the header first. Return [] if none differs."""
    settings = [settings_of_any_seed(runs[0]) for runs in groups.values()]
    rows = []
    for key in sorted(set().union(*settings)):
        values = [each.get(key) for each in settings]
        if any(value != values[0] for value in values):
            rows.append((key, *values))
    return [("setting", *groups), *rows] if rows else []


def compare(folders, path):
    """Write the page that compares the runs in some folders (Paths) to `path`, and print its table."""
    runs = [read(folder) for folder in folders]
    groups = group_seeds(runs)
    own = sorted(set().union(*(run.metrics["own_metrics"] for run in runs)))
    panels = [*charts.COURSE, *charts.learned_panels([run.history for run in runs]), *charts.own_panels(own)]
    if len(groups) > 1:  # colours distinguish them, so each metric has its own panel
        metrics = [(name, label, panel.form) for panel in panels for name, label in panel.metrics.items()]
        panels = [charts.Panel(label, {name: label}, form) for name, label, form in metrics]
    histories = {name: [run.history for run in seeds] for name, seeds in groups.items()}
    figure = charts.draw_charts(panels, histories, columns=3)
    rows = comparison_rows(groups)
    render(
        path,
        title="Comparison",
        about=", ".join(map(str, folders)),
        tables=[rows, setting_rows(groups)],
        charts=[charts.svg(figure)] if figure else [],
        reader=None,
        configs={str(run.folder / "config.yaml"): run.config for run in runs},
    )
    print_table(rows)
    print(f"curves in {path}")


def main(argv=None):
    """Write the page of one run or the comparison of several."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m r1zero.report", description=__doc__, formatter_class=form)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, outputs/RUN")
    comparison = Path("outputs/comparison.html")
    parser.add_argument("--output", type=Path, default=comparison, help="page that compares runs (%(default)s)")
    args = parser.parse_args(argv)
    try:
        runs = list({folder.resolve(): folder for folder in args.runs}.values())  # each once
        if len(runs) == 1:
            write(runs[0])
        else:
            compare(runs, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"r1zero.report: {error}")
    except KeyboardInterrupt:
        sys.exit("r1zero.report: stopped; no file is left half written, and the same command starts again")

"""The pages of runs: report.html of one, with its curves and a reader of completions, and a comparison of several.

    python -m r1zero.report outputs/RUN                  # the page, report.png and the table
    python -m r1zero.report outputs/RUN outputs/RUN-1    # compares runs; where only the seed differs, it averages them

The first works while the run goes on too. A page is one file that needs no network: the charts are matplotlib's, and
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

from r1zero.files import replaced
from r1zero.intervals import deviation, wilson
from r1zero.report import charts
from r1zero.report.completions import read_completions

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

    @property
    def own_metrics(self):
        """The names that a user's reward functions have logged."""
        return self.metrics.get("own_metrics", [])


def read(folder):
    """The Run in a folder, which may still go on or have been cut off. ValueError where there is none."""
    try:
        config = (folder / "config.yaml").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())
        state = json.loads((folder / "trainer_state.json").read_text())
        settings = dict(yaml.safe_load(config))
        for name, group in (("steps", metrics), ("reward_funcs", settings)):  # without which there is no page
            if name not in group:
                raise KeyError(name)
        return Run(folder, config, settings, metrics, state["log_history"], state["max_steps"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} is not the folder of a run that has logged a step ({error})") from None


# The tables


def text_of(value, form):
    """A value as text, "-" where there is none."""
    return "-" if value is None else form.format(value)


def accuracy_text(evaluation):
    """The accuracy of an evaluation with its interval, "-" where its rewards say of nothing whether it is right."""
    if evaluation["accuracy"] is None:
        return "-"
    low, high = wilson(evaluation["accuracy"], evaluation["n"])
    return f"{evaluation['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def results(metrics):
    """The held-out set before and after, as rows of (name, before, after) with the header first."""
    before, after = metrics["before"], metrics["after"]

    def row(name, key, form):
        return (name, text_of(before[key], form), text_of(after[key], form))

    rows = [
        (f"{before['n']} held-out problems", f"before (step {before['step']})", f"after (step {after['step']})"),
        ("accuracy (95 % interval)", accuracy_text(before), accuracy_text(after)),
        row("with an answer", "format_rate", "{:.1%}"),
        row("tokens a completion", "mean_completion_tokens", "{:.1f}"),
    ]
    if before["accuracy"] is None:
        rows.append(row("mean reward", "reward", "{:.3f}"))
    return rows


def before_and_after(run):
    """Rows (name, before, after) of the held-out set, the header first, with (title,) rows; none where it lacks."""
    if not run.metrics["before"]:
        return []
    evaluated = [entry for entry in run.history if "eval_reward" in entry]
    own = [metric for panel in charts.own_panels(run.own_metrics) for metric in panel.metrics]
    panels = [*charts.learned_panels([run.history]), charts.Panel("Logged by the rewards", own)]
    rows = results(run.metrics)
    for panel in panels:
        found = []
        for metric in panel.metrics:
            before, after = (entry.get(f"eval_{metric.name}") for entry in (evaluated[0], evaluated[-1]))
            if before is not None or after is not None:
                found.append((metric.label, text_of(before, metric.form), text_of(after, metric.form)))
        if found:
            rows += [(panel.title,), *found]
    return rows


def what_it_took(run):
    """Rows (name, value) of a run's steps, time, completions and cost, with a header."""
    metrics, price = run.metrics, run.settings.get("price_per_hour")
    seconds, tokens = metrics["train_seconds"], metrics["completion_tokens"]
    cost = "give --price_per_hour to see it"
    if price:
        cost = f"{seconds / 3600 * price:,.2f} at {price:g} an hour"
    return [
        ("what it took", ""),
        ("optimizer steps", f"{metrics['steps']:,} of {run.max_steps:,}"),
        ("time", f"{seconds / 60:,.1f} min"),
        ("seconds a step", f"{seconds / max(1, metrics['steps']):,.2f}"),
        ("completions", f"{metrics['completions']:,}"),
        ("completion tokens", f"{tokens:,}"),
        ("completion tokens a second", f"{tokens / max(1e-9, seconds):,.0f}"),
        ("cost", cost),
    ]


def print_table(rows):
    """Rows with the header first, on the console."""
    (first, *columns), *rows = rows
    table = rich.table.Table(first, *columns)
    for row in rows:
        table.add_row(*row)
    rich.console.Console().print(table)


# The page of a run


def render(path, **values):
    """Fills in template.html, and puts it at `path` (Path) in one go, for a browser may be open on it."""
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = page.get_template("template.html").render(**values)
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def write(folder):
    """Draws the page and the picture of the run in a folder (Path), and prints its table. Returns its metrics."""
    run = read(folder)
    groups = {folder.name: [run.history]}
    drawn = []
    for panels in (charts.COURSE, charts.learned_panels([run.history]), charts.own_panels(run.own_metrics)):
        drawn.append(charts.draw_charts(charts.choose_charts(panels, groups)))
    if drawn[0]:
        with replaced(folder / "report.png") as part:
            drawn[0].savefig(part, dpi=110, format="png")
    render(
        folder / "report.html",
        title=folder.resolve().name,
        about="{model_name_or_path} on {data_dir}".format(**run.settings),
        tables=[before_and_after(run), what_it_took(run)],
        charts=[charts.svg(figure) for figure in drawn],
        reader=read_completions(run),
        configs={"config.yaml": run.config},
    )
    metrics = run.metrics
    if metrics["before"]:
        print_table(results(metrics))
    print(
        f"{metrics['completions']:,} completions, {metrics['completion_tokens']:,} completion tokens, "
        f"{metrics['train_seconds']:.0f} s; curves and completions in {folder / 'report.html'}"
    )
    return metrics


def complete_card(path, metrics, model):
    """Adds the results to the model card that TRL wrote at `path`, and names the local base model it cannot link."""
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
    """A run's settings without what its seed changes: names that end in the seed are those of any seed."""
    ending = f"-{run.settings.get('seed')}"
    kept = {}
    for key, setting in run.settings.items():
        if key not in OF_A_SEED:
            kept[key] = setting.removesuffix(ending) if isinstance(setting, str) else setting
    return kept


def group_of(run, groups):
    """The name of the group that a run belongs to. A new one has the name of the run's folder, without the seed."""
    for name, seeds in groups.items():
        if settings_of_any_seed(seeds[0]) == settings_of_any_seed(run):
            return name
    name = run.folder.resolve().name.removesuffix(f"-{run.settings.get('seed')}")
    return str(run.folder) if name in groups else name


def group_seeds(runs):
    """dict of a name to the runs of one recipe, that is, its seeds."""
    groups = {}
    for run in runs:
        groups.setdefault(group_of(run, groups), []).append(run)
    return groups


def mean_text(values, form):
    """The mean of those values that are there, with the standard deviation where there are several; "-" of none."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean = form.format(fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(deviation(values))}"


def comparison_rows(groups):
    """A row for each group of runs, the header first."""
    evaluated = {name: [run.metrics for run in runs if run.metrics["before"]] for name, runs in groups.items()}
    columns = [  # header, moment, key, form
        ("accuracy before", "before", "accuracy", "{:.1%}"),
        ("after", "after", "accuracy", "{:.1%}"),
    ]
    if any(metrics["after"]["accuracy"] is None for group in evaluated.values() for metrics in group):
        columns += [
            ("reward before", "before", "reward", "{:.3f}"),
            ("after", "after", "reward", "{:.3f}"),
        ]
    columns.append(("tokens a completion", "after", "mean_completion_tokens", "{:.1f}"))
    rows = [("", "runs", *(header for header, *_ in columns), "minutes")]
    for name, runs in groups.items():
        cells = [mean_text([of[moment].get(key) for of in evaluated[name]], form) for _, moment, key, form in columns]
        minutes = mean_text([run.metrics["train_seconds"] / 60 for run in runs], "{:.1f}")
        rows.append((name, str(len(runs)), *cells, minutes))
    return rows


def setting_rows(groups):
    """The settings in which the groups differ, a column each, the header first; none where they differ in none."""
    settings = [settings_of_any_seed(runs[0]) for runs in groups.values()]
    rows = []
    for key in sorted(set().union(*settings)):
        values = [each.get(key) for each in settings]
        if any(value != values[0] for value in values):
            rows.append((key, *values))
    if rows:
        rows.insert(0, ("setting", *groups))
    return rows


def comparison_panels(groups):
    """All panels. Where colours tell several groups apart, each metric has a panel of its own."""
    histories = [run.history for runs in groups.values() for run in runs]
    own = sorted({name for runs in groups.values() for run in runs for name in run.own_metrics})
    panels = [*charts.COURSE, *charts.learned_panels(histories), *charts.own_panels(own)]
    if len(groups) == 1:
        return panels
    return [charts.Panel(metric.label, [metric]) for panel in panels for metric in panel.metrics]


def compare(folders, path):
    """Writes the page that compares the runs in some folders (Paths) to `path`, and prints its table."""
    groups = group_seeds([read(folder) for folder in folders])
    rows = comparison_rows(groups)
    histories = {name: [run.history for run in runs] for name, runs in groups.items()}
    chosen = charts.choose_charts(comparison_panels(groups), histories)
    render(
        path,
        title="Comparison",
        about=", ".join(map(str, folders)),
        tables=[rows, setting_rows(groups)],
        charts=[charts.svg(charts.draw_charts(chosen, columns=3))],
        reader=None,
        configs={str(run.folder / "config.yaml"): run.config for runs in groups.values() for run in runs},
    )
    print_table(rows)
    print(f"curves in {path}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m r1zero.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, outputs/RUN")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/comparison.html"),
        help="where the page that compares runs is written (%(default)s)",
    )
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

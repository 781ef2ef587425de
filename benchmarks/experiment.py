"""Run an experiment of benchmarks/experiments: what is missing, one run after another, then a table and a figure.

    python benchmarks/experiment.py --list                # every experiment: what is missing, and its time
    python benchmarks/experiment.py kl                    # Ctrl-C stops it, and the same command resumes
    python benchmarks/experiment.py kl --settings 0 0.03 --seeds 0                    # a part of it
    python benchmarks/experiment.py kl --dry_run --base_recipe configs/qwen2.5-1.5b.yaml --gpus 1 --gpu_memory 80

docs/laboratory.md says what to write into a YAML, and what came out. Flags that are not known here go to every
training: --max_steps 2 tries an experiment out. Experiments with one parent folder share equal runs and base models.
"""

import argparse
import itertools
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import yaml
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from r1zero import ROOT  # noqa: E402
from r1zero.intervals import deviation  # noqa: E402
from r1zero.report import charts, page  # noqa: E402

EXPERIMENTS = ROOT / "benchmarks" / "experiments"
RESUME = "stopped: the same command resumes"
MARKS = (0.30, 0.50, 0.70, 0.85)  # held-out accuracies, for the seconds up to them
SHARES = ("accuracy", "share", "pass@")  # how the names of measures between 0 and 1 begin


def words(flags):
    """Return a dict of flags as words. A list becomes several words."""
    return [str(word) for name, value in flags.items() for word in (f"--{name}", *np.atleast_1d(value))]


def slug(text):
    """Return a text as the name of a folder."""
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def read_experiment(name, args):
    """Return the YAML of an experiment (dict) with the recipe, settings and seeds of the flags. Exit if one lacks."""
    experiment = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    if lacking := {"question", "answer", "base_recipe", "seeds", "settings", "measured"} - experiment.keys():
        sys.exit(f"{name}.yaml lacks {', '.join(sorted(lacking))}: docs/laboratory.md says what each key holds")
    path = args.base_recipe or experiment["base_recipe"]
    recipe = yaml.safe_load((ROOT / path).read_text())
    settings = {str(key): experiment.get("flags", {}) | flags for key, flags in experiment["settings"].items()}
    is_tiny = "r1zero.tiny_model" in recipe.get("prepare", "")
    if not is_tiny:  # it has a model and data of its own, for all seeds
        settings = {key: flags for key, flags in settings.items() if "warm_up" not in flags}
        experiment["minutes"] = {}
    if unknown := set(args.settings or ()) - settings.keys():
        sys.exit(f"found --settings {', '.join(sorted(unknown))}, wanted some of {', '.join(map(repr, settings))}")
    asked = {key: settings[key] for key in args.settings or settings}
    folder = name if path == experiment["base_recipe"] else f"{name}-{Path(path).stem}"
    folder = (args.output_dir or ROOT / "outputs" / "experiments" / folder).resolve()
    found = {"settings": asked, "seeds": args.seeds or experiment["seeds"], "path": path, "recipe": recipe}
    return experiment | found | {"is_tiny": is_tiny, "folder": folder}


def plan(experiment, more, bases):
    """Return the jobs of an experiment, {folder: job}, and its runs, tuples of a setting's name, folder, evaluations.

    A job is a command that fills a folder, after the jobs on which it rests. Its key has their commands, but not its
    folder: another experiment's run is taken. more: words for every training; bases: folder of the tiny base models.
    """
    jobs, runs, made, recipe = {}, [], {}, experiment["recipe"]
    for path in experiment["folder"].parent.glob("*/runs/*.json"):
        record, folder = json.loads(path.read_text()), Path(str(path).removesuffix(".json"))
        if record["seconds"] and folder.exists():
            made[record["key"]] = folder

    def add(kind, folder, command, key=""):
        command = [str(word) for word in command]
        key += shlex.join(word for word in command if word != str(folder)) + "\n"
        folder = made.get(key, folder)
        job = {"kind": kind, "folder": folder, "command": command, "key": key}
        jobs[folder] = job | {"record": Path(f"{folder}.json"), "console": Path(f"{folder}.txt")}
        return folder, key

    for seed, (name, flags) in itertools.product(experiment["seeds"], experiment["settings"].items()):
        flags = {"seed": seed} | {flag: value for flag, value in flags.items() if recipe.get(flag) != value}
        warm_up, trains = flags.pop("warm_up", {}), flags.pop("train", True)
        model, data, key = recipe["model_name_or_path"], recipe["data_dir"], ""
        if experiment["is_tiny"]:
            base = slug("-".join(["tiny", *(f"{flag}_{value}" for flag, value in warm_up.items())]))
            model, data = bases / f"{base}-{seed}", bases / f"{base}-problems-{seed}"
            of_base = {"seed": seed, "output_dir": model, "data_dir": data} | warm_up
            _, key = add("warm-up", model, ["-m", "r1zero.tiny_model", *words(of_base)])
            flags |= {"model_name_or_path": model, "data_dir": data}
        if trains:
            folder = experiment["folder"] / "runs" / f"{slug(name)}-{seed}"
            for flag, value in flags.items():
                if re.fullmatch(r"x\d+", str(value)):  # so many times what the recipe says
                    flags[flag] = recipe[flag] * int(value[1:])
            command = ["train_countdown.py", "--config", experiment["path"], *words(flags | {"output_dir": folder})]
            model, key = add("run", folder, [*command, *more], key)
        evaluations = {}
        for evaluation, asked in experiment.get("evaluate", {}).items():
            asked = {"max_completion_length": recipe["max_completion_length"], "seed": seed} | asked
            problems, needs = data, key
            if "problems" in asked:  # flags of preprocess.py countdown
                problems = experiment["folder"] / "problems" / f"{slug(evaluation)}-{seed}"
                command = ["preprocess.py", "countdown", "--local_dir", problems, "--seed", seed]
                needs += add("problems", problems, [*command, *shlex.split(asked.pop("problems"))])[1]
            into = experiment["folder"] / "evaluations" / slug(evaluation)
            of_model = {"model": model, "data": f"{problems}/test.parquet", "output_dir": into}
            folder = evaluations[evaluation] = into / Path(model).name  # where r1zero.evaluate writes
            add("evaluation", folder, ["-m", "r1zero.evaluate", *words(of_model | asked)], needs)
        runs.append((name, model if trains else None, evaluations))
    return jobs, runs


def seconds_of(job):
    """Return the seconds that a complete job took, 0 if it was begun, None if it was not, or with another command."""
    there = job["folder"].exists() and job["record"].exists()
    record = json.loads(job["record"].read_text()) if there else {}
    return record["seconds"] if record.get("key") == job["key"] else None


def minutes_of(some, experiment, jobs):
    """Return the minutes that some jobs will take, as text: as many as their kind took here, or else the YAML's."""
    minutes = {"problems": 0.1} | experiment.get("minutes", {})
    for kind in {job["kind"] for job in some}:
        took = [seconds_of(job) for job in jobs.values() if job["kind"] == kind and seconds_of(job)]
        minutes[kind] = fmean(took) / 60 if took else minutes.get(kind, math.nan)
    total = sum(minutes[job["kind"]] for job in some)
    return "an unknown time" if math.isnan(total) else f"about {total:.0f} minutes"


def do(job, stop_after):
    """Run a job's command and write its record. Exit if it is stopped or fails.

    Every Ctrl-C is handed on, and the command ends in order. stop_after: minutes, after which a training has its own.
    """
    resumes = job["kind"] == "run" and seconds_of(job) == 0
    command = [*job["command"], *(["--resume_from_checkpoint", "auto"] if resumes else [])]
    print(f"  python {shlex.join(command)}", flush=True)
    job["folder"].parent.mkdir(parents=True, exist_ok=True)
    job["record"].write_text(json.dumps({"key": job["key"], "seconds": 0}))
    began, status, interrupts = time.monotonic(), None, 0
    left = 60 * stop_after if stop_after and job["kind"] == "run" else None
    with job["console"].open("a") as file:
        to = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}  # a Ctrl-C comes here alone
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, **to)
        while status is None:
            try:
                status = process.wait(left)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
                left, interrupts = None, interrupts + isinstance(reason, KeyboardInterrupt)
                process.send_signal(signal.SIGINT)
    is_done = status == 0 or (status == 75 and stop_after and not interrupts)  # 75: its time was over
    if is_done:
        job["record"].write_text(json.dumps({"key": job["key"], "seconds": time.monotonic() - began}))
    if interrupts:
        sys.exit(RESUME)
    if not is_done:
        sys.exit(f"it ended with status {status}: {job['console']} says why")


def flat(prefix, values):
    """Return nested dicts as one: with the prefix "p", {"a": {"b": 1}} is {"p.a.b": 1}."""
    found = {}
    for name, value in values.items():
        found |= flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return found


def first_passed(points, mark):
    """Return the x at which an accuracy first reaches a mark, on the line from the point before, or None."""
    for (before, low), (after, high) in itertools.pairwise([(0.0, 0.0), *points]):
        if high >= mark:
            return before + (mark - low) / (high - low) * (after - before)
    return None


def record_of(folder):
    """Return all that is known of a run's folder, as one dict.

    metrics.*: metrics.json. at.STEP.*: each logged metric; first.*, last.* and mean.*: over the steps that have it.
    seconds.*: held-out accuracy by the seconds of optimizer steps. "seconds to 0.3": until it first reaches a mark.
    """
    run = page.read(folder)
    found, logged, points, seconds, before = flat("metrics", run.metrics), {}, [], 0.0, 0
    for entry in run.history:
        found |= flat(f"at.{entry['step']}", entry)
        for name, value in entry.items():
            logged.setdefault(name, []).append(value)
        if "profiling/step" in entry:
            seconds, before = seconds + entry["profiling/step"] * (entry["step"] - before), entry["step"]
        if "eval_accuracy" in entry:
            points.append((seconds, entry["eval_accuracy"]))
    for name, values in logged.items():
        found |= {f"first.{name}": values[0], f"last.{name}": values[-1], f"mean.{name}": fmean(values)}
    found |= {f"seconds.{x}": accuracy for x, accuracy in points}
    return found | {f"seconds to {mark}": first_passed(points, mark) for mark in MARKS}


def measure(record, path):
    """Return what a path has in a record: a number or None; of two paths their ratio; with {x} a curve, {x: y}."""
    if isinstance(path, list):
        over, under = (record.get(each) for each in path)
        return over / under if under else None
    if "{x}" not in path:
        return record.get(path)
    pattern = re.compile(re.escape(path).replace(r"\{x\}", r"(\d+(?:\.\d+)?)"))
    matches = [(pattern.fullmatch(name), value) for name, value in record.items()]
    return dict(sorted((float(match[1]), value) for match, value in matches if match))


def table_rows(found):
    """Return a row for each setting, the header first: mean ± deviation, and how many runs have a value if not all."""
    first = next(iter(found.values()))[0]
    labels = [label for label, value in first.items() if not isinstance(value, dict)]  # curves are drawn alone
    rows = [("", "runs", *labels)]
    for name, runs in found.items():
        cells = []
        for label in labels:
            values = [run[label] for run in runs]
            there = len(runs) - values.count(None)
            form = "{:.1%}" if label.startswith(SHARES) else "{:,.3g}"
            cells.append(page.mean_text(values, form) + f" ({there} of {len(runs)})" * (0 < there < len(runs)))
        rows.append((name, str(len(runs)), *cells))
    return rows


def draw(question, labels, found):
    """Return the figure: a panel for each label, with every run as a dot, mean and deviation."""
    columns = 2 if len(labels) == 4 else min(3, len(labels))
    lines = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(4 * columns, 0.3 + lines * max(2.6, 0.8 + 0.27 * len(found))), layout="constrained")
    for place, label in enumerate(labels):
        axis = figure.add_subplot(lines, columns, place + 1)
        title, _, xlabel = label.partition(" over ")
        values = {name: [run[label] for run in runs if run[label] not in (None, {})] for name, runs in found.items()}
        (draw_curves if xlabel else draw_dots)(axis, values)
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.3)
        if place % columns and not xlabel:  # the settings stand beside the first one of the line
            axis.set_yticklabels([])
        if label.startswith(SHARES):
            (axis.set_ylim if xlabel else axis.set_xlim)(-0.02, 1.02)
    figure.suptitle(question)
    return figure


def draw_dots(axis, found):
    """Draw a line of dots for each setting, from above. found: {setting: a value of each run that has one}."""
    for place, values in enumerate(found.values()):
        axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markersize=5)
        if values:
            axis.errorbar(fmean(values), place, xerr=deviation(values), fmt="k|", capsize=3, markersize=14)
    axis.set_yticks(range(len(found)), found, fontsize=8)
    axis.set_ylim(len(found) - 0.5, -0.5)


def draw_curves(axis, found):
    """Draw every run thin, and the mean up to the end of the shortest run. found: {setting: a curve of each run}."""
    for number, (name, runs) in enumerate(found.items()):
        for run in runs:
            axis.plot(list(run), list(run.values()), ".-", color=f"C{number}", linewidth=0.5, alpha=0.5)
        if runs:
            grid = sorted(x for x in set().union(*runs) if x <= min(max(run) for run in runs))
            values = [np.interp(grid, list(run), list(run.values())) for run in runs]
            points = grid, np.mean(values, axis=0), [deviation(at_x) for at_x in zip(*values, strict=True)]
            charts.draw_curve(axis, points, f"C{number}", name, "-", 2)
            if 0 < 8 * grid[0] <= grid[-1]:
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:g}")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(found) > 3 else {}
    axis.legend(frameon=False, fontsize=8, **beside)


def write_results(experiment, runs):
    """Write the table, the figure, what was measured of every run, and r1zero.report's comparison."""
    folder, found = experiment["folder"], {}
    measured = experiment["measured"] | experiment.get("table", {})
    for setting, trained, evaluations in runs:
        record = record_of(trained) if trained else {}
        for name, evaluated in evaluations.items():
            record |= flat(name, json.loads((evaluated / "metrics.json").read_text()))
        of_run = {label: measure(record, path) for label, path in measured.items()}
        found.setdefault(setting, []).append(of_run)
    for name, values in experiment.get("elsewhere", {}).items():
        found[name] = [dict.fromkeys(measured) | values]
    (folder / "results.json").write_text(json.dumps({"settings": experiment["settings"], "runs": found}, indent=1))
    rows = table_rows(found)
    lines = [f"| {' | '.join(row)} |\n" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    (folder / "table.md").write_text("".join(lines))
    draw(experiment["question"], list(experiment["measured"]), found).savefig(folder / "figure.png", dpi=120)
    page.compare([trained for _, trained, _ in runs if trained], folder / "comparison.html")
    page.print_table(rows)
    print(f"An answer: {experiment['answer']}\ntable.md, results.json and figure.png are in {folder}")


def dry_run(experiment, more):
    """Have each setting's training say what it will take, with a base model that had no warm-up."""
    with tempfile.TemporaryDirectory() as bases:
        jobs, _ = plan(experiment | {"seeds": experiment["seeds"][:1], "evaluate": {}}, more, Path(bases))
        for job in jobs.values():
            print(f"\n{job['folder'].name}, and so for each of {len(experiment['seeds'])} seeds", flush=True)
            last = ["--steps", "0"] if job["kind"] == "warm-up" else ["--dry_run"]
            subprocess.run([sys.executable, *job["command"], *last], cwd=ROOT)


def parse(argv):
    """Return the flags, and the words that every training gets."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    names = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    parser.add_argument("name", nargs="?", choices=names, help="a file of benchmarks/experiments")
    parser.add_argument("--list", action="store_true", help="show all experiments, and make nothing")
    parser.add_argument("--settings", nargs="+", help="default: all of the YAML")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the YAML")
    parser.add_argument("--base_recipe", help="another recipe than the YAML's, with its own model and data")
    parser.add_argument("--dry_run", action="store_true", help="let every setting's training say what it will take")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/experiments/NAME")
    args, more = parser.parse_known_args(argv)
    args.list |= args.name is None
    return args, more, [args.name] if args.name else names


def main(argv=None):
    args, more, names = parse(argv)
    # A shell's background ignores SIGINT, and so would the runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in names:
        experiment = read_experiment(name, args)
        jobs, runs = plan(experiment, more, experiment["folder"].parent / "bases")
        missing = [job for job in jobs.values() if not seconds_of(job)]
        left = ", ".join(f"{number} x {kind}" for kind, number in Counter(job["kind"] for job in missing).items())
        minutes = minutes_of(missing, experiment, jobs)
        print(f"{name}: {len(jobs) - len(missing)} of {len(jobs)} done, missing {left or 'nothing'}, {minutes}")
        if args.list:
            print(f"    {experiment['question']}")
        elif args.dry_run:
            dry_run(experiment, more)
        else:
            for number, job in enumerate(missing, 1):
                print(f"{number}/{len(missing)}, {minutes_of([job], experiment, jobs)}:", flush=True)
                do(job, experiment.get("stop_after"))
            write_results(experiment, runs)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(RESUME)

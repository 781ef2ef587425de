"""How long training takes to reach an accuracy: the shipped recipe, TRL's defaults, and the loops of other projects.

    python benchmarks/time_to_target.py                                 # five settings, three seeds: two hours
    python benchmarks/time_to_target.py --settings a b2 c --seeds 0 --minutes 2

    a    configs/tiny_cpu.yaml                 c    nano-aha-moment's loop, with a's learning rate
    b    TRL's defaults                        c2   GRPO-Zero's loop, with a's learning rate
    b2   TRL's defaults, with a's learning rate

The numbers of b and c, each with its source, stand in benchmarks/settings. All settings train the same tiny model on
the same problems with the same reward, every seed with its own of each. They are trained one after another on this
machine, all settings of a seed before the next one. A run ends when it has passed the last of MARKS, or has trained
for --minutes. Its seconds are those of training: the warm-up that makes the model, the start of the process and the
evaluations do not count.

A run that is complete in --output_dir is not repeated: the same command goes on where it was stopped. The results are
in time_to_target.json there, beside the YAML, the console and the record of every run.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from r1zero import ROOT  # noqa: E402
from r1zero.files import replaced  # noqa: E402
from r1zero.intervals import deviation  # noqa: E402
from r1zero.report import run_folder  # noqa: E402

MARKS = (0.30, 0.50, 0.70, 0.85)  # held-out accuracies


def read(name):
    """A YAML file of the project, as a dict."""
    return yaml.safe_load((ROOT / name).read_text())


RECIPE = read("configs/tiny_cpu.yaml")
TRL = read("benchmarks/settings/trl_defaults.yaml")
COMMON = read("benchmarks/settings/common.yaml")
# More steps than fit into the time, where the schedule does not depend on their number
LONG = {"max_steps": 100_000}
# What train_countdown.py adds to TRL is on in a alone
SETTINGS = {
    "a": RECIPE | {"gradient_accumulation_steps": 1, "prepare": None, "trim_padding": True, "drop_finished": True},
    "b": TRL,
    "b2": TRL | {"learning_rate": RECIPE["learning_rate"]},
    "c": LONG | read("benchmarks/settings/nano_aha_moment.yaml"),
    "c2": LONG | read("benchmarks/settings/grpo_zero.yaml"),
}
LABELS = {
    "a": "tiny_cpu.yaml",
    "b": "TRL's defaults",
    "b2": "TRL's defaults, with that learning rate",
    "c": "nano-aha-moment's loop, with that learning rate",
    "c2": "GRPO-Zero's loop, with that learning rate",
}


class Stopwatch:
    """Takes the time of training from the lines of a run's console, as they arrive.

    The run's record has the accuracies and no times. A line of training is printed before the evaluation at its step
    begins, and the evaluation's own line after it has ended: what lies between them does not count.
    """

    LINE = re.compile(r"step +(\d+)/\d+ .*?accuracy +([\d.]+)%")

    def __init__(self, completions_a_step):
        self.completions_a_step = completions_a_step
        self.evaluations = []  # dicts: step, completions, seconds, processor_seconds, accuracy
        self.spent = np.zeros(2)  # on training: seconds, processor seconds
        self.since = np.zeros(2)  # the clock where the time that is not counted yet began
        self.step = 0  # of the last line of training

    def read(self, line, clock):
        """Takes a line of the console as it arrives. clock: a function that gives seconds and processor seconds."""
        found = self.LINE.search(line)
        if not found:
            return
        now, step = np.array(clock()), int(found[1])
        if "held out" not in line:
            self.spent += now - self.since
            self.step = step
        elif step == self.step:
            seconds, processor_seconds = self.spent.tolist()
            entry = {"step": step, "completions": step * self.completions_a_step, "accuracy": float(found[2]) / 100}
            self.evaluations.append(entry | {"seconds": seconds, "processor_seconds": processor_seconds})
        self.since = now

    def why_to_stop(self, seconds, mark):
        """After the last evaluation that is wanted, why it is: "passed" or "time"; otherwise None."""
        if not self.evaluations or self.evaluations[-1]["step"] != self.step:
            return None
        if first_passed(self.evaluations, mark):
            return "passed"
        return "time" if self.spent[0] >= seconds else None


@dataclass
class Summary:
    """The time to a mark over the seeds of a setting.

    Where `passed` is less than `seeds`, the means are lower bounds: a run that did not pass counts with all it took.
    """

    passed: int
    seeds: int
    seconds: float
    deviation: float
    completions: float


def first_passed(evaluations, mark):
    """Where the accuracy first reaches the mark, as a dict like an evaluation, or None where it never does.

    It lies on the line from the evaluation before. The first evaluation above the mark would come late by half of the
    time between two, which is short where steps are fast.
    """
    before = None
    for after in evaluations:
        if after["accuracy"] < mark:
            before = after
            continue
        if before is None:
            return after
        share = (mark - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
        return {name: before[name] + share * (after[name] - before[name]) for name in after}
    return None


def summarize(runs, mark, unit="seconds"):
    """The Summary of the runs of one setting. runs: lists of evaluations, one a seed; unit: or "processor_seconds"."""
    passed, ends = 0, []
    for evaluations in runs:
        first = first_passed(evaluations, mark)
        passed += first is not None
        ends.append(first or evaluations[-1])
    seconds = [end[unit] for end in ends]
    completions = fmean(end["completions"] for end in ends)
    return Summary(passed, len(runs), fmean(seconds), deviation(seconds), completions)


def times_slower(summary, reference):
    """How many times the reference's seconds it takes, as text; empty where not every seed of the reference passed."""
    if reference is None or reference.passed < reference.seeds or not reference.seconds:
        return ""
    at_least = "" if summary.passed == summary.seeds else "> "
    return f"{at_least}{summary.seconds / reference.seconds:.1f} times"


def cell(summary, reference):
    """What the table says of a setting and a mark. reference: the Summary of setting a, or None."""
    at_least = "" if summary.passed == summary.seeds else "> "
    if summary.passed == 0:
        took = f"never in {summary.seconds:.0f} s"
    elif at_least:
        took = f"> {summary.seconds:.0f} s ({summary.passed} of {summary.seeds})"
    elif summary.seeds > 1:
        took = f"{summary.seconds:.0f} ± {summary.deviation:.0f} s"
    else:
        took = f"{summary.seconds:.0f} s"
    completions = f"{at_least}{summary.completions:,.0f} completions"
    return "\n".join([took, completions, times_slower(summary, reference)]).strip()


def rows(runs, unit):
    """The rows of the table, lists of str. runs: dict of a setting's name to its runs, lists of evaluations."""
    found = []
    for name, of_setting in runs.items():
        row = [f"{name}: {LABELS[name]}"]
        for mark in MARKS:
            reference = None
            if name != "a" and "a" in runs:
                reference = summarize(runs["a"], mark, unit)
            row.append(cell(summarize(of_setting, mark, unit), reference))
        found.append(row)
    return found


def run_values(name, seed, folder, evaluate_every=256, chosen=None):
    """Every setting of a run (dict). folder: the seed's; evaluate_every: completions; chosen: dict of --set."""
    paths = {"model_name_or_path": str(folder / "model"), "data_dir": str(folder / "data")}
    values = SETTINGS[name] | COMMON | paths | {"output_dir": str(folder / name), "seed": seed} | (chosen or {})
    # After whole generations: the console has no line of training for steps in which nothing was generated
    span = values["steps_per_generation"] // values["gradient_accumulation_steps"]  # steps of a generation
    generations = max(1, evaluate_every // (span * completions_a_step(values)))
    values |= {"eval_steps": generations * span, "logging_steps": generations * span}
    return {key: value for key, value in values.items() if value is not None}


def completions_a_step(values):
    return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]


def make_base(seed, folder):
    """Makes the problems and the base model of a seed where they are missing, and says how long it took."""
    record = folder / "warm_up.json"
    if not (folder / "model" / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "r1zero.tiny_model", "--seed", seed]
        command += ["--output_dir", folder / "model", "--data_dir", folder / "data"]
        began = time.monotonic()
        subprocess.run([str(word) for word in command], cwd=ROOT, check=True)
        record.write_text(json.dumps(time.monotonic() - began))
    if record.exists():
        took = json.loads(record.read_text())
        print(f"seed {seed}: the warm-up took {took:.0f} s, which are not counted", flush=True)


def run_once(name, values, minutes, folder):
    """A run (dict): that of an earlier call where it was the same, and otherwise a new one."""
    wanted = {"setting": name, "seed": values["seed"], "minutes": minutes, "marks": list(MARKS), "values": values}
    path = folder / f"{name}.json"
    if path.exists():
        run = json.loads(path.read_text())
        if all(run[key] == wanted[key] for key in wanted):
            return run
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    stopwatch = Stopwatch(completions_a_step(values))
    stopped = train(folder / f"{name}.yaml", folder / f"{name}.txt", stopwatch, minutes)
    run = wanted | {"stopped": stopped, "commit": run_folder.git_commit(), "evaluations": stopwatch.evaluations}
    with replaced(path) as part:
        part.write_text(json.dumps(run, indent=1))
    return run


def train(config, console, stopwatch, minutes):
    """Trains until a mark or the time is reached. console: the file for what the run prints.

    Returns why the run was stopped: "passed", "time", or "ended" where it came to its own end. Exits where it failed.
    """
    command = [sys.executable, "train_countdown.py", "--config", str(config)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # lines arrive when they are printed
    text = {"text": True, "errors": "replace", "stdout": subprocess.PIPE}
    stopped = None
    # In a session of its own: Ctrl-C reaches this process alone, which hands it on once
    with (
        console.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file, start_new_session=True, **text) as process,
        contextlib.ExitStack() as unless_it_ends,
    ):
        unless_it_ends.callback(interrupt, process)
        used = psutil.Process(process.pid).cpu_times
        for line in process.stdout:
            stopwatch.read(line, lambda: (time.monotonic(), used().user + used().system))
            file.write(line)
            file.flush()
            if stopped is None:
                stopped = stopwatch.why_to_stop(60 * minutes, max(MARKS))
                if stopped:
                    process.send_signal(signal.SIGINT)
        unless_it_ends.pop_all()
    if stopped is None and (process.returncode or not stopwatch.evaluations):
        sys.exit(f"{config} ended with status {process.returncode} and no result: {console} says why")
    return stopped or "ended"


def interrupt(process):
    """Ends a run as Ctrl-C does, and waits while it writes its record."""
    process.send_signal(signal.SIGINT)
    process.communicate()


def draw(runs, path):
    """Writes the picture: accuracy over seconds, each seed thin, their mean thick, and their range as a band.

    The mean ends with the shortest run of a setting: one that has passed the last mark has no later accuracy.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for mark in MARKS:
        axis.axhline(mark, color="gray", linewidth=0.5, linestyle=":")
    for number, (name, of_setting) in enumerate(runs.items()):
        color = f"C{number}"
        end = min(evaluations[-1]["seconds"] for evaluations in of_setting)
        grid = np.linspace(0, end, 200)
        accuracies = []  # (seeds, grid)
        for evaluations in of_setting:
            seconds = [evaluation["seconds"] for evaluation in evaluations]
            accuracy = [evaluation["accuracy"] for evaluation in evaluations]
            accuracies.append(np.interp(grid, seconds, accuracy))
            axis.plot(seconds, accuracy, color=color, linewidth=0.6, alpha=0.5)
        axis.plot(grid, np.mean(accuracies, axis=0), color=color, linewidth=2, label=LABELS[name])
        axis.fill_between(grid, np.min(accuracies, axis=0), np.max(accuracies, axis=0), color=color, alpha=0.15)
    axis.set(xlabel="seconds of training", ylabel="held-out accuracy", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def table(found_rows, unit):
    """A rich table of the rows. unit: "seconds", or "processor_seconds", which other work here changes less."""
    title = f"{unit.replace('_', ' ')} of training, and completions, to a held-out accuracy; {os.cpu_count()} CPUs"
    caption = "mean ± deviation over the seeds; times: of setting a's seconds"
    found = Table("setting", title=title, caption=caption, show_lines=True)
    for mark in MARKS:
        found.add_column(f"{mark:.0%}", justify="right", no_wrap=True)
    for row in found_rows:
        found.add_row(*row)
    return found


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=6, help="of training, for each run")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "time_to_target")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "time_to_target.png")
    parser.add_argument("--evaluate_every", type=int, default=256, help="completions, in whole generations")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="in all runs, for a quick try")
    args = parser.parse_args(argv)
    args.set = yaml.safe_load("\n".join(word.replace("=", ": ", 1) for word in args.set)) or {}
    return args


def main(argv=None):
    args = parse(argv)
    # Where a shell has started this in the background, SIGINT is ignored here, and would be in the runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runs = {name: [] for name in args.settings}
    records = []
    for seed in args.seeds:
        folder = args.output_dir.resolve() / f"seed{seed}"
        make_base(seed, folder)
        for name in args.settings:
            values = run_values(name, seed, folder, args.evaluate_every, args.set)
            run = run_once(name, values, args.minutes, folder)
            records.append(run)
            runs[name].append(run["evaluations"])
            last = run["evaluations"][-1]
            print(f"seed {seed}, {LABELS[name]}: {last['accuracy']:.1%} after {last['seconds']:.0f} s", flush=True)
    found = {"versions": run_folder.versions(), "cpus": os.cpu_count(), "runs": records}
    for unit in ("processor_seconds", "seconds"):
        found[unit] = rows(runs, unit)
        Console(width=max(120, Console().width)).print(table(found[unit], unit))
    (args.output_dir / "time_to_target.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
    draw(runs, args.output)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on with the run that was not complete")

"""Write what the report reads into a run's folder: config.yaml, trainer_state.json and metrics.json."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import yaml
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, snapshot_download

from r1zero import ROOT, schedule
from r1zero.files import checksums, replaced

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft", "deepspeed", "vllm")

# Metrics of which metrics.json has the extreme of the run
EXTREMES = {
    "memory/card": max,
    "memory/process": max,
    "prompts/max_length": max,
    "reward_min": min,
    "reward_max": max,
    "mfu": fmean,
}

CLAIMED = {}  # {path: FileLock} of the output folders that no other run may write to

# Settings that config.yaml leaves out. TRL derives the first from others and refuses both; the next two are old
# aliases; a run that starts from config.yaml is a new one.
LEFT_OUT = (
    "generation_batch_size",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "resume_from_checkpoint",
)

TABLES = "# tables "  # before the columns of each reward function in the table of completions, in config.yaml


def begin(scorers, script_args, training_args, model_args):
    """Write config.yaml into the run's folder, after moving an earlier run there aside unless this one resumes.

    scorers: training.reward_functions.Scorers.
    """
    output_dir, resumed = Path(training_args.output_dir), bool(training_args.resume_from_checkpoint)
    if not resumed:
        move_aside(output_dir)
    tables = {scorer.__name__: scorer.table for scorer in scorers}
    arguments = (script_args, training_args, model_args)
    write_config(output_dir / "config.yaml", *arguments, tables=tables, resumed=resumed)
    name_run(training_args)


def move_aside(output_dir):
    """Rename output_dir (Path) if it holds a file, so that nothing is overwritten or mixed.

    Make it again with its folder of completions, as TRL's trainer does when it is built.
    """
    left = [path for path in output_dir.rglob("*") if path.is_file()]
    if left:
        newest = max(path.stat().st_mtime for path in left)
        written = time.strftime("%Y%m%d-%H%M%S", time.localtime(newest))
        names = [f"{output_dir.name}-{written}{more}" for more in ("", *(f"-{count}" for count in range(1, 1000)))]
        aside = next(path for path in map(output_dir.with_name, names) if not path.exists())
        output_dir.rename(aside)
        print(f"{output_dir} held an earlier run or other files: moved to {aside}", flush=True)
    (output_dir / "completions").mkdir(parents=True, exist_ok=True)


def claim(output_dir):
    """Lock output_dir (Path) against other runs until this process ends.

    Raises ValueError if another run is in it, and OSError if its file system has no locks.
    """
    path = output_dir.resolve()  # one lock for all links to it
    path = path.with_name(f".{path.name}.lock")
    if path in CLAIMED:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a file alone would outlast a run that is killed
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another run is writing to {output_dir}: name another --output_dir, or end that run"
        ) from error
    CLAIMED[path] = lock


def write_config(path, *arguments, tables=None, resumed=False):
    """Write all settings of the run as YAML for --config.

    Comments before them have the commit, the versions, and the SHA-256 of the data's files and the base model's
    weights. arguments: dicts, dataclasses or TrainingArguments. Settings that are None are left out. tables: {reward
    function: its grading.verdict.Table}; resumed: whether to print what has changed since the run began.
    """
    settings = {}
    for group in arguments:
        if dataclasses.is_dataclass(group):  # to_dict() of TrainingArguments hides their secrets
            group = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
        for name, value in group.items():
            if value is not None and name not in LEFT_OUT:
                settings[name] = value
    files = []  # an evaluation names neither a data_dir nor a model_name_or_path
    if "data_dir" in settings:
        data = [Path(settings["data_dir"], f"{split}.parquet") for split in ("train", "test")]
        files += [file for file in data if file.is_file()]
    if "model_name_or_path" in settings:
        files += weight_files(settings)
    lines = [f"# commit {git_commit()}", f"# {', '.join(versions())}", f"# {' '.join(sys.argv)}"]
    for file, found in zip(files, checksums(files), strict=True):
        lines.append(f"# sha256 {found} {file}")
    if tables:
        lines.append(f"{TABLES}{json.dumps(tables)}")
    text = "\n".join(lines) + "\n" + yaml.safe_dump(settings, sort_keys=True)
    if resumed and path.exists():
        for change in changes(path.read_text(), text):
            print(f"since the run began: {change}", flush=True)
    with replaced(path) as part:
        part.write_text(text)


def name_run(training_args):
    """Give trackers a name and an id of the run, which its folder holds, so that a resumed run is the same run there.

    wandb knows a run by its id, and trackio by its name. What the user has set stays.
    """
    path = Path(training_args.output_dir, "run_id")
    if not path.exists():
        with replaced(path) as part:
            part.write_text(secrets.token_hex(4))
    run_id = path.read_text()
    training_args.run_name = training_args.run_name or f"{path.resolve().parent.name}-{run_id}"
    os.environ.setdefault("WANDB_RUN_ID", run_id)
    os.environ.setdefault("WANDB_RESUME", "allow")


def weight_files(settings):
    """Return the files of the base model's weights (list[Path]), [] if they are not here. settings: dict."""
    folder = Path(settings["model_name_or_path"])
    if not folder.is_dir():
        try:
            source = {"revision": settings.get("model_revision"), "local_files_only": True}
            folder = Path(snapshot_download(str(folder), allow_patterns="*.safetensors", **source))
        except (OSError, ValueError):  # the hub's own errors are of these two kinds
            return []
    return sorted(folder.glob("*.safetensors"))


def changes(before, after):
    """Return the differences between two texts of config.yaml as lines (list[str])."""
    found = []
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            found.append(f"{name} was {old.get(name)} and is {new.get(name)}")
    old, new = recorded_checksums(before), recorded_checksums(after)
    for file in sorted(old.keys() | new.keys()):
        if old.get(file) != new.get(file):
            found.append(f"{file} has other contents, or is gone")
    return found


def recorded_tables(text):
    """Return {reward function: [answer column, verdict column, [problem columns]]} of a text of config.yaml."""
    (line,) = (line for line in text.splitlines() if line.startswith(TABLES))
    return json.loads(line.removeprefix(TABLES))


def recorded_checksums(text):
    """Return {file: SHA-256} of a text of config.yaml."""
    return {file: found for found, file in re.findall(r"^# sha256 (\w{64}) (.+)$", text, re.MULTILINE)}


def versions():
    """Return the versions of Python and of the installed PACKAGES, such as "trl 1.16.0" (list[str])."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit():
    """Return the project's commit, with "-dirty" if tracked files differ, or "unknown" outside a git checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def evaluations(log_history):
    """Return the evaluations of a run in order, a dict each. Step 0 is the model before training.

    accuracy and format_rate are None if the rewards give no verdicts.
    """
    return [
        {
            "step": entry["step"],
            "reward": entry["eval_reward"],
            "accuracy": entry.get("eval_accuracy"),
            "format_rate": entry.get("eval_format_rate"),
            "mean_completion_tokens": entry["eval_completions/mean_length"],
        }
        for entry in log_history
        if "eval_reward" in entry
    ]


def run_metrics(state, training_args, held_out, train_seconds, own_metrics=(), an_epoch=None):
    """Return the contents of metrics.json: the held-out set before and after, and the cost. Rates are fractions.

    Completions and tokens are those of the logged steps: all of them if logging_steps divides the last step. "after"
    is the evaluation of the model that is saved: the last one, or the best one with load_best_model_at_end.
    held_out: problems in an evaluation; train_seconds: from the first step on, evaluations included; own_metrics: the
    metrics that a user's reward functions have logged; an_epoch: as for schedule.generations.
    """
    log_history = state.log_history
    evaluated = [{**evaluation, "n": held_out} for evaluation in evaluations(log_history)]
    saved = state.best_global_step if training_args.load_best_model_at_end else None
    best = [evaluation for evaluation in evaluated if evaluation["step"] == saved]
    completions, tokens = count_completions(log_history, training_args, an_epoch)
    return {
        "before": evaluated[0] if evaluated else None,
        "after": (best or evaluated)[-1] if evaluated else None,
        "steps": log_history[-1]["step"] if log_history else 0,
        "train_seconds": round(train_seconds, 1),
        "completions": completions,
        "completion_tokens": round(tokens),
        "phases": phase_seconds(log_history),
        "extremes": extremes(log_history, getattr(training_args, "estimated_memory", None)),
        "own_metrics": sorted(own_metrics),
    }


def needs_evaluation(state, training_args):
    """Return whether a run evaluates, but has not evaluated the model that it saves. state: a TrainerState."""
    evaluated = evaluations(state.log_history)
    is_best = training_args.load_best_model_at_end and state.best_global_step  # it has been evaluated
    return bool(evaluated) and not is_best and evaluated[-1]["step"] < state.global_step


def count_completions(log_history, training_args, an_epoch=None):
    """Return how many completions (int) and tokens (float) training has generated up to the last logged step.

    an_epoch: as for schedule.generations.
    """
    completions, tokens = 0, 0.0
    for entry in log_history:
        if "completions/mean_length" in entry:
            so_far = schedule.generations(training_args, entry["step"], an_epoch) * training_args.generation_batch_size
            tokens += (so_far - completions) * entry["completions/mean_length"]
            completions = so_far
    return completions, tokens


def phase_seconds(log_history):
    """Return the seconds (dict) of each phase of the logged steps, and of the evaluations; "step" is all of a step."""
    seconds, before = Counter(), 0
    for entry in log_history:
        seconds["evaluation"] += entry.get("eval_runtime", 0)
        if "profiling/step" in entry:
            for name, mean in entry.items():
                if name.startswith("profiling/"):
                    seconds[name.removeprefix("profiling/")] += mean * (entry["step"] - before)
            before = entry["step"]
    return {phase: round(value, 1) for phase, value in seconds.items() if value}


def extremes(log_history, estimated=None):
    """Return the extreme or the mean of what was logged of EXTREMES, as a dict. estimated: GiB a card, or None."""
    found = {"memory/estimated": round(estimated, 3)} if estimated else {}
    for name, of in EXTREMES.items():
        keys = (name, f"eval_{name}")
        values = [entry[key] for entry in log_history for key in keys if entry.get(key) is not None]
        if values:
            found[name] = round(of(values), 3)
    return found


def seconds_before(output_dir, step):
    """Return the seconds of a run up to the step from which it resumes, in proportion to those in metrics.json."""
    path = output_dir / "metrics.json"
    if not path.exists():  # a run from its beginning, or a checkpoint of another folder
        return 0.0
    earlier = json.loads(path.read_text())
    return earlier["train_seconds"] * min(1.0, step / max(1, earlier["steps"]))


def save(output_dir, state, training_args, *counted):
    """Write trainer_state.json and metrics.json into output_dir (Path), each in one go. counted: for run_metrics."""
    metrics = run_metrics(state, training_args, *counted)
    with replaced(output_dir / "trainer_state.json") as state_part, replaced(output_dir / "metrics.json") as part:
        state.save_to_json(state_part)
        part.write_text(json.dumps(metrics, indent=2) + "\n")


def push_results(trainer):
    """Upload the card, the page and the metrics with push_to_hub: Trainer has uploaded a card without results."""
    args = trainer.args
    if args.push_to_hub:
        HfApi(token=args.hub_token).upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=args.output_dir,
            allow_patterns=["README.md", "report.*", "metrics.json", "trainer_state.json"],
            commit_message="Add the results",
            revision=args.hub_revision,
        )

"""What a run writes down in its folder: config.yaml, trainer_state.json and metrics.json, which report.py reads."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import yaml

import plan

ROOT = Path(__file__).resolve().parent
PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft", "deepspeed", "vllm")


def move_aside(output_dir):
    """Renames output_dir where an earlier run has left results in it, so that nothing is overwritten or mixed."""
    left = [*output_dir.glob("checkpoint-*"), *output_dir.glob("trainer_state.json"), *output_dir.glob("metrics.json")]
    if left:
        written = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(path.stat().st_mtime for path in left)))
        aside = output_dir.with_name(f"{output_dir.name}-{written}")
        output_dir.rename(aside)
        print(f"{output_dir} held an earlier run: moved to {aside}", flush=True)
    output_dir.mkdir(parents=True, exist_ok=True)


def write_config(path, *arguments):
    """Writes every setting of the run as YAML that --config takes again, under the versions and the commit."""
    settings = {}
    for group in arguments:
        if not isinstance(group, dict):
            group = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
        settings |= {key: value for key, value in group.items() if value is not None}
    # TRL derives this from the others and refuses to be given both; the gradient_checkpointing names are old aliases
    for key in ("generation_batch_size", "gradient_checkpointing", "gradient_checkpointing_kwargs"):
        settings.pop(key, None)
    settings.pop("resume_from_checkpoint", None)
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    header = f"# commit {git_commit()}\n# {', '.join(versions)}\n# {' '.join(sys.argv)}\n"
    path.write_text(header + yaml.safe_dump(settings, sort_keys=True))


def git_commit():
    """The project's commit, with "-dirty" where tracked files were changed, or "unknown" outside a git checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def evaluations(log_history):
    """The evaluations of a run, in order: one dict a step, step 0 being the model before training."""
    return [
        {
            "step": entry["step"],
            "accuracy": entry["eval_accuracy"],
            "format_rate": entry["eval_format_rate"],
            "mean_completion_tokens": entry["eval_completions/mean_length"],
        }
        for entry in log_history
        if "eval_accuracy" in entry
    ]


def summarize(log_history, training_args, held_out, train_seconds):
    """What metrics.json holds: the held-out set before and after, and what it took. Rates are fractions.

    Completions and tokens are those of the logged steps: all of them where logging_steps divides the last step.
    held_out: problems in an evaluation; train_seconds: from the first step on, evaluations included.
    """
    evaluated = [{**evaluation, "n": held_out} for evaluation in evaluations(log_history)]
    # A generation of generation_batch_size completions serves `span` optimizer steps, the first being step 1
    span = plan.span(training_args)
    last_step, completions, tokens = 0, 0, 0.0
    for entry in log_history:
        if "completions/mean_length" in entry:
            generations = math.ceil(entry["step"] / span) - math.ceil(last_step / span)
            completions += generations * training_args.generation_batch_size
            tokens += generations * training_args.generation_batch_size * entry["completions/mean_length"]
            last_step = entry["step"]
    return {
        "before": evaluated[0] if evaluated else None,
        "after": evaluated[-1] if evaluated else None,
        "steps": log_history[-1]["step"] if log_history else 0,
        "train_seconds": round(train_seconds, 1),
        "completions": completions,
        "completion_tokens": round(tokens),
    }


def seconds_before(output_dir, step):
    """Seconds that a run's earlier processes took up to the step where it goes on: their share of metrics.json's."""
    try:
        earlier = json.loads((output_dir / "metrics.json").read_text())
    except OSError:  # a run from its beginning, or a checkpoint from elsewhere
        return 0.0
    return earlier["train_seconds"] * min(1.0, step / max(1, earlier["steps"]))


def keep(output_dir, state, training_args, held_out, train_seconds):
    """Writes trainer_state.json and metrics.json into output_dir (Path), each in one go."""
    metrics = summarize(state.log_history, training_args, held_out, train_seconds)
    state.save_to_json(output_dir / "trainer_state.json.part")
    (output_dir / "metrics.json.part").write_text(json.dumps(metrics, indent=2) + "\n")
    for name in ("trainer_state.json", "metrics.json"):
        (output_dir / f"{name}.part").replace(output_dir / name)

"""What a run leaves in its folder: metrics.json, config.yaml and report.png.

python report.py outputs/RUN     # draws the picture and prints the table again
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import yaml
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

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
        values = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
        settings |= {key: value for key, value in values.items() if value is not None}
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
    held_out: problems in an evaluation; train_seconds: seconds of this process, evaluations included.
    """
    evaluated = [{**evaluation, "n": held_out} for evaluation in evaluations(log_history)]
    # A generation of generation_batch_size completions serves `span` optimizer steps, the first being step 1
    span = (
        training_args.steps_per_generation * training_args.num_iterations / training_args.gradient_accumulation_steps
    )
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


def plot(log_history, path):
    """Draws reward and held-out accuracy, completion length, entropy and groups without signal over steps."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    held_out = evaluations(log_history)

    def curve(axis, key, label, color):
        points = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
        axis.plot(*zip(*points, strict=True) if points else ([], []), color=color, label=label, linewidth=1.5)

    def held_out_curve(axis, key, label):
        x, y = [entry["step"] for entry in held_out], [entry[key] for entry in held_out]
        axis.plot(x, y, "o-", color="tab:red", label=label, linewidth=2, markersize=5)

    curve(axes[0, 0], "reward", "reward (training)", "tab:blue")
    held_out_curve(axes[0, 0], "accuracy", "accuracy (held out)")
    axes[0, 0].set(title="Reward and accuracy", ylim=(0, 1.02))
    curve(axes[0, 1], "completions/mean_length", "training", "tab:blue")
    held_out_curve(axes[0, 1], "mean_completion_tokens", "held out")
    axes[0, 1].set(title="Completion length (tokens)")
    axes[0, 1].set_ylim(bottom=0)
    curve(axes[1, 0], "entropy", "training", "tab:blue")
    axes[1, 0].set(title="Entropy (nats a token)", xlabel="optimizer step")
    axes[1, 0].set_ylim(bottom=0)
    curve(axes[1, 1], "frac_reward_zero_std", "training", "tab:blue")
    axes[1, 1].set(title="Share of groups without signal", xlabel="optimizer step", ylim=(0, 1.02))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def results(metrics):
    """The held-out set before and after, as rows of (name, before, after) with the header first."""
    before, after = metrics["before"], metrics["after"]
    rows = [(f"{before['n']} held-out problems", f"before (step {before['step']})", f"after (step {after['step']})")]
    for key, form in (("accuracy", "{:.1%}"), ("format_rate", "{:.1%}"), ("mean_completion_tokens", "{:.1f}")):
        rows.append((key, form.format(before[key]), form.format(after[key])))
    return rows


def print_table(metrics, output_dir):
    """The held-out set before and after, and what it took, on the console."""
    if metrics["before"]:
        (title, *columns), *rows = results(metrics)
        table = Table("", *columns, title=title)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    print(
        f"{metrics['completions']:,} completions, {metrics['completion_tokens']:,} completion tokens, "
        f"{metrics['train_seconds']:.0f} s; picture in {output_dir}/report.png"
    )


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


def write(output_dir, log_history, training_args, held_out, train_seconds):
    """Writes metrics.json and report.png into output_dir (Path), prints the table, and returns the metrics."""
    metrics = summarize(log_history, training_args, held_out, train_seconds)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    plot(log_history, output_dir / "report.png")
    print_table(metrics, output_dir)
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that has ended, outputs/RUN")
    run = parser.parse_args().run
    try:
        state = json.loads((run / "trainer_state.json").read_text())
        metrics = json.loads((run / "metrics.json").read_text())
    except OSError as error:
        sys.exit(f"report.py: {run} is not the folder of a run that has ended ({error})")
    plot(state["log_history"], run / "report.png")
    print_table(metrics, run)

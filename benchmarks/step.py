"""Where the time of a training step goes on this machine, part by part, and how near each part is to its floor.

    python benchmarks/step.py                                         # the recipe for this machine, CPU or GPU
    python benchmarks/step.py --config configs/qwen2.5-3b.yaml --beta 0.001
    python benchmarks/step.py --shapes 0.5B 1.5B 3B --methods full lora
    python benchmarks/step.py --model outputs/tiny_cpu --rounds 3     # a model that is there

A step is a generation of completions with all its updates: 256 completions, in most recipes. All numbers come from
the recipe, and every flag of train_countdown.py goes through. Without --model the model has the recipe's shape and
random weights, and its completions have geometric lengths (benchmarks/random_model.py). Its prompts have 9 to 12
tokens, for whose text its tokenizer has words: hardly anything is computed for prompts.

The same is measured with TRL's defaults, which compute padding and completions that have ended (--trim_padding false
--drop_finished false), in runs that alternate. The first generation of each run is a warm-up. An evaluation is
measured once a run, and counted as often as the recipe evaluates. Nothing is saved meanwhile.

The floor of a part is the least time that it can take (benchmarks/step_floors.py): operations over the measured rate
of matrix products, or bytes over the measured bandwidth. Only real tokens count there, no padding, and nothing that
is computed a second time to save memory. Rewards, logging and everything else are Python on the CPU and have no
floor, and evaluation has none of its own, as it generates and scores.

MFU is the utilisation of the machine: the operations of one forward and one backward pass over the real tokens of
prompts and completions, attention included, over what its measured matrix rate does in the whole step. Generation,
scoring and what is computed again take time, and do not count as operations.

Writes everything to OUTPUT/step.json. The peak of memory is that of the card, whoever uses it, beside the estimate of
r1zero/estimate/memory.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = {
    "ours": ["--trim_padding", "true", "--drop_finished", "true"],
    "TRL's defaults": ["--trim_padding", "false", "--drop_finished", "false"],
}
CLOCKS = {"wall": "seconds", "processor": "processor seconds"}  # and what step_run.py calls them
GIB = 2**30


def read_arguments(argv=None):
    """The arguments, and the words (list[str]) of argv that are for train_countdown.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help="default: the one that fits this machine")
    parser.add_argument(
        "--shapes", nargs="+", default=[None], help="as 0.5B 1.5B 3B 7B, or tiny; default: the recipe's"
    )
    parser.add_argument("--methods", nargs="+", choices=("recipe", "full", "lora"), default=["recipe"])
    parser.add_argument("--model", help="a folder, instead of random weights")
    parser.add_argument(
        "--mean_length",
        type=float,
        help="tokens of a completion by random weights; default: 0.4 of max_completion_length",
    )
    parser.add_argument("--generations", type=int, default=4, help="of a run, after the one that warms up")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each version, which alternate")
    parser.add_argument(
        "--time",
        choices=CLOCKS,
        default="wall",
        help="what to count; processor time is steadier on a CPU that others use too",
    )
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--output_dir", default="outputs/step")
    return parser.parse_known_args(argv)


def run(folder, args, shape, method, version, own):
    """What one run has shown, as benchmarks/step_run.py writes it, or None where it has failed."""
    path = folder / "run.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "benchmarks" / "step_run.py", path, folder, "--method", method]
    command += ["--generations", args.generations]
    chosen = {"--config": args.config, "--shape": shape, "--model": args.model, "--mean_length": args.mean_length}
    for flag, value in chosen.items():
        if value is not None:
            command += [flag, value]
    command += [*VERSIONS[version], *own]
    status = subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if status.returncode or not path.exists():
        return None
    return json.loads(path.read_text())


def mean(windows, key):
    return statistics.fmean(window[key] for window in windows)


def floor(machine, work):
    """The seconds that a part takes at least. work: its operations and its bytes, which may go on at the same time."""
    operations, moved = work
    return max(operations / max(machine["large_rate"], machine["own_rate"]), moved / machine["bandwidth"])


def summarise(results, machine, clock):
    """The mean step of a version's runs: its parts, and what it was made of.

    results: list of step_run.py's dicts; machine: what it can do; clock: of CLOCKS.
    """
    windows, evaluations = [], []
    for result in results:
        windows += result["windows"]
        # An evaluation is measured once a run, and counted as often as the recipe has one
        evaluations.append(sum(window[clock]["evaluation"] for window in result["windows"]))
    seconds, floors = {}, {}
    for part in windows[0][clock]:
        seconds[part] = statistics.fmean(window[clock][part] for window in windows)
    seconds["evaluation"] = statistics.fmean(evaluations) * results[0]["evaluations"]
    for part in windows[0]["work"]:
        floors[part] = statistics.fmean(floor(machine, window["work"][part]) for window in windows)
    total = sum(seconds.values())
    steps = [sum(window[clock].values()) - window[clock]["evaluation"] for window in windows]
    return {
        "seconds": seconds,
        "floors": floors,
        "total": total,
        "spread": statistics.stdev(steps) if len(steps) > 1 else 0.0,
        "steps": len(steps),
        "one evaluation": statistics.fmean(evaluations),
        "MFU": (floors["forward"] + floors["backward"]) / total,
        "completions": mean(windows, "completions"),
        "mean length": mean(windows, "completion tokens") / mean(windows, "completions"),
        "longest": max(window["longest"] for window in windows),
        "completion tokens/s": mean(windows, "completion tokens") / total,
        "padding": mean(windows, "padding"),
        "peak GiB": max(result["peak_bytes"] for result in results) / GIB or None,
        "estimated GiB": results[0]["estimated_bytes"] / GIB,
    }


def measure(folder, args, shape, method, own):
    """A row of the report: the versions for a shape and a method, but for those of which a run has failed."""
    results, failed = {version: [] for version in args.versions}, []
    for _ in range(args.rounds):
        for version in list(results):
            result = run(folder, args, shape, method, version, own)
            if result is None:
                failed.append(version)
                del results[version]
            else:
                results[version].append(result)
    row = {"shape": shape, "method": method, "failed": failed}
    if not results:
        return row
    last = list(results.values())[-1][-1]
    row["shape"] = last["shape"]
    for key in ("device", "threads", "engine", "type", "parameters", "optimizer steps", "published_rate"):
        row[key] = last[key]
    row["machine"] = {}
    for key in last["machine"]:  # the best of all runs, on a machine that others may use too
        row["machine"][key] = max(result["machine"][key] for runs in results.values() for result in runs)
    row["versions"] = {
        version: summarise(runs, row["machine"], CLOCKS[args.time]) for version, runs in results.items()
    }
    return row


def number(value):
    """A number of seconds or of times, with three digits that say something."""
    if value is None:
        return ""
    return f"{value:#.3g}" if value < 100 else f"{value:,.0f}"


def part_table(row):
    """The parts of a step, one a line, as a rich Table."""
    versions = row["versions"]
    first = next(iter(versions))
    ours = versions[first]
    table = Table(title=f"{row['shape']}, {row['method']}: one step of {ours['completions']:.0f} completions")
    table.add_column("part")
    heads = [f"{first}, s", "%", "floor, s", "times the floor"]
    others = [version for version in versions if version != first]
    for other in others:
        heads += [f"{other}, s", "times ours"]
    for head in heads:
        table.add_column(head, justify="right")
    columns = {version: with_sums(found["seconds"], ours["floors"]) for version, found in versions.items()}
    floors = ours["floors"] | {"what has a floor": sum(ours["floors"].values())}
    for part, taken in columns[first].items():
        if not taken:
            continue
        least = floors.get(part)
        cells = [number(taken), f"{100 * taken / ours['total']:.1f}", number(least), number(least and taken / least)]
        for other in others:
            cells += [number(columns[other][part]), f"{columns[other][part] / taken:.2f}"]
        table.add_row(part, *cells, end_section=part == list(ours["seconds"])[-1])
    return table


def with_sums(seconds, floors):
    """The seconds of all parts (dict), with those of the parts that have a floor, and of the whole."""
    floored = sum(seconds[part] for part in floors)
    return seconds | {"what has a floor": floored, "the whole": sum(seconds.values())}


def notes(row):
    """What stands below a table: the machine, and what a step was made of, as list[str]."""
    able = row["machine"]
    lines = [
        f"{row['device']}, {row['threads']} threads, {row['engine']}, {row['type']}",
        f"measured here: {able['bandwidth'] / 1e9:,.3g} GB/s copied, {able['large_rate'] / 1e9:,.4g} GFLOP/s in a "
        f"large product and {able['own_rate'] / 1e9:,.4g} in one of the model's widths",
    ]
    for version, found in row["versions"].items():
        line = (
            f"{version}: {found['total']:.3g} s +- {found['spread']:.2g} over {found['steps']} steps, of "
            f"{row['optimizer steps']} updates each; completions of {found['mean length']:.0f} tokens, at most "
            f"{found['longest']:.0f}; {found['completion tokens/s']:,.0f} tokens/s; {100 * found['padding']:.0f} % "
            f"of the tokens in passes were padding; MFU {100 * found['MFU']:.1f} %"
        )
        if row["published_rate"]:
            published = found["MFU"] * max(able["large_rate"], able["own_rate"]) / row["published_rate"]
            line += f", or {100 * published:.1f} % of what the card's maker promises"
        if found["one evaluation"]:
            line += f"; one evaluation takes {found['one evaluation']:.3g} s"
        if found["peak GiB"]:
            line += f"; {found['peak GiB']:.1f} GiB at the peak, estimated {found['estimated GiB']:.1f}"
        lines.append(line)
    return lines


def main():
    args, own = read_arguments()
    folder = Path(args.output_dir).resolve()  # the runs work in the project's folder
    folder.mkdir(parents=True, exist_ok=True)
    if args.model:
        args.model = Path(args.model).resolve()
    if args.config:
        args.config = Path(args.config).resolve()
    rows = []
    for shape in args.shapes:
        for method in args.methods:
            rows.append(measure(folder, args, shape, method, own))
            (folder / "step.json").write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    console = Console(width=119)
    for row in rows:
        for version in row["failed"]:
            print(f"{row['shape'] or 'the recipe'}, {row['method']}: a run with {version} failed")
        if "versions" not in row:
            continue
        console.print(part_table(row))
        print("\n".join(notes(row)))
    if all("versions" not in row for row in rows):
        sys.exit("no run came to its end; its own message is above")


if __name__ == "__main__":
    main()

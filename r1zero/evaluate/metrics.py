"""From a table of completions to the metrics of an evaluation, and to what the console shows of them."""

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from r1zero.grading.behaviours import BEHAVIOURS, LONG
from r1zero.intervals import accuracy_interval, accuracy_text, pass_at_k, text_of

SHARE = "{:.1%}"


def measure(path, n):
    """Return metrics.json (dict) from a file of completions, read without its texts.

    path: of the file, with the n completions of a problem next to each other. Shares are fractions, lengths tokens,
    None if there is nothing to take them from. Accuracies are of the problems that were judged: all of them, unless a
    reward of the user's own gives no verdicts.
    """
    names = ["data_source", "cell", "correct", "answered", "reward", "tokens", "truncated", *BEHAVIOURS]
    rows = pq.read_table(path, columns=names).to_pandas()
    rows["over_200_tokens"] = rows["tokens"] > LONG
    rows["judged"] = rows["correct"].notna().groupby(rows.index // n).transform("all")
    judged = rows[rows["judged"]].astype({"correct": bool, "answered": bool})
    metrics = {"problems": len(rows) // n, "n": n}
    if len(judged) < len(rows):
        metrics["judged_problems"] = len(judged) // n
    right = judged["correct"].to_numpy().reshape(-1, n).sum(1)  # (judged problems,)
    groups = {"all": rows, "correct": judged[judged["correct"]], "incorrect": judged[~judged["correct"]]}
    behaviours = {}
    for name in [*BEHAVIOURS, "tokens", "over_200_tokens"]:
        behaviours[name] = {group: mean(part[name]) for group, part in groups.items()}
    return metrics | {
        "accuracy": mean(judged["correct"]),
        "accuracy_interval": accuracy_interval(right, n) if len(right) else None,
        "pass@k": pass_at_every_k(judged, n),
        "reward": mean(rows["reward"]),
        "format_rate": mean(judged["answered"]),
        "truncated": mean(rows["truncated"]),
        "mean_completion_tokens": mean(rows["tokens"]),
        "median_completion_tokens": float(rows["tokens"].median()),
        "cells": split_by("cell", rows, judged, n),
        "data_sources": split_by("data_source", rows, judged, n),
        "behaviours": behaviours,
    }


def mean(values):
    return float(values.to_numpy().mean()) if len(values) else None


def pass_at_every_k(judged, n):
    """Return {k: pass@k over problems}, for powers of 2 and n. judged: a table with the n completions of each."""
    right = judged["correct"].to_numpy().reshape(-1, n).sum(1).tolist()
    every_k = sorted({2**i for i in range(n.bit_length())} | {n})
    return {k: sum(pass_at_k(n, c, k) for c in right) / len(right) if right else None for k in every_k}


def split_by(column, rows, judged, n):
    """Return problems, accuracy, pass@k and the share of answers with * or / for each value of a column, as a dict."""
    parts = {}
    for value, part in rows.groupby(column):  # sorted, without None
        own = judged[judged[column] == value]
        parts[value] = {
            "problems": len(part) // n,
            "accuracy": mean(own["correct"]),
            "pass@k": pass_at_every_k(own, n),
            "answers_that_multiply": mean(own[own["answered"]]["answer_multiplies"]),
        }
    return parts


def print_table(results):
    """Print a column for each model. results: dict of a model's name to its metrics."""
    first = next(iter(results.values()))
    title = f"{first['problems']:,} problems, {first['n']} completions each"
    caption = "Cells: accuracy, share of answers with * or /. Below: count a completion, all / correct / incorrect"
    table = Table("", *results, title=title, caption=caption)
    for sections in zip(*map(table_sections, results.values()), strict=True):
        for label in sections[0]:
            table.add_row(label, *(section[label] for section in sections))
        table.add_section()
    Console().print(table)


def table_sections(metrics):
    """Return the sections of one model's column, each a dict of label to text."""
    accuracy = accuracy_text(metrics["accuracy"], metrics["accuracy_interval"])
    if "judged_problems" in metrics and metrics["accuracy"] is not None:
        accuracy += f", {metrics['judged_problems']:,} judged"
    head = {"accuracy (95 % interval)": accuracy}
    if metrics["n"] > 1:
        head |= {f"pass@{k}": text_of(share, SHARE) for k, share in metrics["pass@k"].items()}
    head |= {
        "with an answer": text_of(metrics["format_rate"], SHARE),
        "truncated": text_of(metrics["truncated"], SHARE),
        "mean reward": f"{metrics['reward']:.3f}",
        "tokens, mean / median": "{mean_completion_tokens:.1f} / {median_completion_tokens:g}".format(**metrics),
    }
    sources, cells, behaviours = {}, {}, {}
    if len(metrics["data_sources"]) > 1:
        for name, part in metrics["data_sources"].items():
            sources[f"{name} ({part['problems']:,})"] = text_of(part["accuracy"], SHARE)
    for name, part in metrics["cells"].items():
        shares = [text_of(part[key], SHARE) for key in ("accuracy", "answers_that_multiply")]
        cells[f"{name} ({part['problems']:,})"] = ", ".join(shares)
    for name, means in metrics["behaviours"].items():
        behaviours[name.replace("_", " ")] = " / ".join(text_of(count, "{:.2f}") for count in means.values())
    return [head, sources, cells, behaviours]

"""From a table of completions to the metrics of an evaluation, and to what the console shows of them."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from r1zero.grading.behaviours import BEHAVIOURS, LONG
from r1zero.intervals import accuracy_interval, pass_at_k


def measure(path, n, seconds):
    """metrics.json from a file of completions, read without its texts. Shares are fractions, lengths tokens.

    path: of the file, with the n completions of a problem next to each other; seconds: that generation took. What
    tells right from wrong is of the problems that were judged, which all are but where a reward of the user's own
    gives no verdicts. tokens_per_second is of one process. A value is None where there is nothing to take it from.
    """
    texts, columns = read_columns(path)
    judged = columns["judged"].reshape(-1, n).all(1)  # (problems,)
    columns["judged"] = np.repeat(judged, n)
    metrics = {"problems": len(judged), "n": n}
    if not judged.all():
        metrics["judged_problems"] = int(judged.sum())
    metrics |= accuracies(columns, judged, n)
    return metrics | {
        "reward": mean(columns["reward"]),
        "format_rate": mean(columns["answered"][columns["judged"]]),
        "truncated": mean(columns["truncated"]),
        "mean_completion_tokens": mean(columns["tokens"]),
        "median_completion_tokens": float(np.median(columns["tokens"])),
        "tokens_per_second": float(columns["tokens"].sum() / seconds),
        "cells": split_by(texts["cell"], columns, n),
        "data_sources": split_by(texts["data_source"], columns, n),
        "behaviours": behaviours_by_verdict(columns),
    }


def read_columns(path):
    """The table's columns data_source and cell, and a dict of the others to arrays (completions,).

    Beside those of the file there are `judged`, whether there is a verdict, and `over_200_tokens`. Without a verdict,
    `correct` and `answered` are False.
    """
    numbers = ["reward", "tokens", "truncated", *BEHAVIOURS]
    table = pq.read_table(path, columns=["data_source", "cell", "correct", "answered", *numbers])
    columns = {name: table[name].to_numpy() for name in numbers}
    columns["judged"] = table["correct"].is_valid().to_numpy()
    for name in ("correct", "answered"):
        columns[name] = table[name].fill_null(False).to_numpy()
    columns["over_200_tokens"] = columns["tokens"] > LONG
    return table.select(["data_source", "cell"]), columns


def mean(values):
    return float(values.mean()) if len(values) else None


def accuracies(columns, judged, n):
    """The accuracy, its interval and pass@k for k = 1, 2, 4, ... and n, over the judged problems."""
    right = columns["correct"].reshape(-1, n).sum(1)[judged]  # (judged problems,)
    powers_of_two = {2**i for i in range(n.bit_length())}
    pass_at = {}
    for k in sorted(powers_of_two | {n}):
        chances = [pass_at_k(n, c, k) for c in right.tolist()]
        pass_at[k] = sum(chances) / len(chances) if chances else None
    return {
        "accuracy": mean(columns["correct"][columns["judged"]]),
        "accuracy_interval": accuracy_interval(right, n) if len(right) else None,
        "pass@k": pass_at,
    }


def split_by(texts, columns, n):
    """Problems, accuracy and the share of answers with * or / for each value of a column of texts."""
    parts = {}
    for value in sorted(texts.unique().drop_null().to_pylist()):
        rows = pc.equal(texts, value).fill_null(False).to_numpy()
        judged = rows & columns["judged"]
        parts[value] = {
            "problems": int(rows.sum()) // n,
            "accuracy": mean(columns["correct"][judged]),
            "answers_that_multiply": mean(columns["answer_multiplies"][judged & columns["answered"]]),
        }
    return parts


def behaviours_by_verdict(columns):
    """Mean counts of behaviours in all completions, in the right ones and in the wrong ones."""
    right, wrong = columns["judged"] & columns["correct"], columns["judged"] & ~columns["correct"]
    means = {}
    for name in [*BEHAVIOURS, "over_200_tokens"]:
        counts = columns[name]
        means[name] = {"all": mean(counts), "correct": mean(counts[right]), "incorrect": mean(counts[wrong])}
    return means


def print_table(results):
    """results: dict of a model's name to its metrics, which get a column each."""
    first = next(iter(results.values()))
    title = f"{first['problems']:,} problems, {first['n']} completions each"
    caption = "Cells: accuracy, share of answers with * or /. Below: count a completion, all / correct / incorrect"
    table = Table("", *results, title=title, caption=caption)
    models = [table_sections(metrics) for metrics in results.values()]
    for place, section in enumerate(models[0]):
        for label in section:
            table.add_row(label, *(sections[place][label] for sections in models))
        table.add_section()
    Console().print(table)


def table_sections(metrics):
    """What the table says of one model: its sections, each a dict of label to text."""
    head = {"accuracy (95 % interval)": accuracy_text(metrics)}
    if metrics["n"] > 1:
        for k, share in metrics["pass@k"].items():
            head[f"pass@{k}"] = percent(share)
    head["with an answer"] = percent(metrics["format_rate"])
    head["truncated"] = percent(metrics["truncated"])
    head["mean reward"] = f"{metrics['reward']:.3f}"
    head["tokens, mean / median"] = "{mean_completion_tokens:.1f} / {median_completion_tokens:g}".format(**metrics)
    head["tokens a second"] = f"{metrics['tokens_per_second']:,.0f}"
    sources, cells, behaviours = {}, {}, {}
    if len(metrics["data_sources"]) > 1:
        for name, part in metrics["data_sources"].items():
            sources[f"{name} ({part['problems']:,})"] = percent(part["accuracy"])
    for name, part in metrics["cells"].items():
        shares = f"{percent(part['accuracy'])}, {percent(part['answers_that_multiply'])}"
        cells[f"{name} ({part['problems']:,})"] = shares
    for name, means in metrics["behaviours"].items():
        behaviours[name.replace("_", " ")] = " / ".join(two_digits(count) for count in means.values())
    return [head, sources, cells, behaviours]


def accuracy_text(metrics):
    if metrics["accuracy"] is None:
        return "-"
    low, high = metrics["accuracy_interval"]
    text = f"{percent(metrics['accuracy'])} ({100 * low:.1f} to {100 * high:.1f})"
    if "judged_problems" in metrics:
        text += f", {metrics['judged_problems']:,} judged"
    return text


def percent(share):
    return "-" if share is None else f"{share:.1%}"


def two_digits(number):
    return "-" if number is None else f"{number:.2f}"

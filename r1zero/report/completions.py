"""Read the completions of the same held-out problems at each evaluation, for the page's reader.

TRL writes tables of completions into a run's folder. The run's reward functions fill in their columns of answers and
verdicts.
"""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.grading.behaviours import count_behaviours, expression_value, name_mistake
from r1zero.grading.extract import completion_text
from r1zero.report import run_folder

PROBLEMS, EVALUATIONS = 100, 12  # at most
LONGEST = 40_000  # characters shown of a text: about 10,000 tokens


def visible(text, longest=LONGEST):
    r"""Return a model's text so that it is safe to show, without the middle if it has more than `longest` characters.

    A terminal obeys control characters, and a browser those for the direction of writing. So unprintable characters
    except line breaks and tabs become Python's escapes.

    >>> visible("\x1b[2J 1+2\r\n")
    '\\x1b[2J 1+2\\r\n'
    """
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half:,} characters are left out here]\n{text[-half:]}"
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def read_completion(row, tables):
    """Return the problem and the completion of a row of the table, as dicts of strs and numbers.

    tables: {reward function: its columns (answer, verdict, [problem ...])}. The row's task is the one of the function
    that has filled in its verdict.
    """
    verdict, answer, about = "", None, {}
    for name, (answer_column, verdict_column, problem_columns) in tables.items():
        if row.get(verdict_column):
            verdict, answer = row[verdict_column], as_json(row.get(answer_column))
            about = {}
            for column in problem_columns:
                if row.get(column) is not None:
                    # The function's name before a user's columns says nothing to a reader
                    about[column.removeprefix(f"{name}_")] = as_json(row[column])
    text = completion_text(row["completion"])
    counts = count_behaviours(text)
    worked_out = mistake = None
    if answer and "target" in about:  # in Countdown the answer is an expression
        worked_out = expression_value(str(answer))
    if verdict == "wrong" and isinstance(about.get("target"), int | float):
        mistake = name_mistake(text, about["target"]).replace("_", " ")
    return about, {
        "text": visible(text),
        "answer": answer,
        "value": None if worked_out is None else str(worked_out),
        "verdict": verdict,
        "mistake": mistake,
        "reward": sum(row.get(name) or 0 for name in tables),
        "changed": counts["backtracking"] + counts["restarts"] > 0,
    }


def as_json(value):
    """Return a value of the table so that JSON can hold it, as a user's reward may log anything."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return visible(str(value))


def read_tables(run):
    """Return {step: rows (dicts)} of at most EVALUATIONS evaluations, evenly spread from first to last.

    Print a line for a table that is cut short, as TRL may be writing it, and leave it out.
    """
    there = {}
    for evaluation in run_folder.evaluations(run.history):
        path = run.folder / "completions" / f"completions_{evaluation['step']:05d}.parquet"
        if path.is_file():
            there[evaluation["step"]] = path
    spread_out = np.linspace(0, len(there) - 1, min(len(there), EVALUATIONS)).round().astype(int)
    # An evaluation has as many completions of a problem as training, unless num_generations_eval is set
    completions_each = run.settings.get("num_generations_eval") or run.settings["num_generations"]
    found = {}
    for step in np.array(list(there), int)[spread_out].tolist():
        try:
            rows = pq.read_table(there[step]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            print(f"{there[step]} is left out of the page, as it cannot be read ({error})", flush=True)
            continue
        found[step] = rows[-run.metrics["after"]["n"] * completions_each :]  # rows of training come first
    return found


def read_completions(run):
    """Return {"steps": [...], "problems": [...], "of": number of problems} for the page's reader."""
    evaluated, tables = read_tables(run), run_folder.recorded_tables(run.config)
    rows_of = {}  # {(prompt, number of its completion): {place in evaluated: row}}
    for place, rows in enumerate(evaluated.values()):
        seen = Counter()
        for row in rows:
            prompt = completion_text(row["prompt"])
            seen[prompt] += 1
            rows_of.setdefault((prompt, seen[prompt]), {})[place] = row
    # Problems that are in the most evaluations come first
    by_steps = sorted(rows_of.items(), key=lambda problem: -len(problem[1]))
    problems = []
    for (prompt, _), rows in by_steps[:PROBLEMS]:
        problem = {"prompt": prompt, "at": {}}
        for place, row in rows.items():
            problem["about"], problem["at"][place] = read_completion(row, tables)
        problems.append(problem)
    return {"steps": list(evaluated), "problems": problems, "of": len(rows_of)}

"""What the page's reader of completions shows: the same held-out problems at one evaluation after the other.

It reads the tables of completions that TRL writes into a run's folder. The answers and the verdicts stand in columns
that the run's reward functions fill in.
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
LONGEST = 40_000  # characters of a text that are shown: about 10,000 tokens


def visible(text, longest=LONGEST):
    r"""A text that a model wrote, as it can be shown: nothing in it is acted upon, and its length is bounded.

    A terminal would obey control characters, and a browser those for the direction of writing. So what does not print
    stands there as Python writes it, except for line breaks and tabs. Of a text that is longer than `longest`
    characters the middle is left out.

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
    """Return a row of the table of completions for the reader: problem and completion as dicts of strs and numbers.

    tables: dict of each reward function's name to its columns (answer, verdict, [problem ...]). The function whose
    column of verdicts is filled in is that of the row's task.
    """
    verdict, answer, about = "", None, {}
    for name, (answer_column, verdict_column, problem_columns) in tables.items():
        if row.get(verdict_column):
            verdict, answer = row[verdict_column], as_json(row.get(answer_column))
            about = {}
            for column in problem_columns:
                if row.get(column) is not None:
                    # A user's columns are named after the function, which says nothing to a reader
                    about[column.removeprefix(f"{name}_")] = as_json(row[column])
    text = completion_text(row["completion"])
    counts = count_behaviours(text)
    worked_out = None
    if answer and "target" in about:  # in Countdown the answer is an expression
        worked_out = expression_value(str(answer))
    mistake = None
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


def tables_of(run):
    """Return the columns of each reward function of a run, as read_completion takes them."""
    recorded = run_folder.recorded_tables(run.config)
    tables = {}
    for name in run.settings["reward_funcs"]:
        name = name.rpartition(":")[2]
        tables[name] = recorded.get(name) or (f"{name}_answer", f"{name}_verdict", [f"{name}_problem"])
    return tables


def as_json(value):
    """A value of the table of completions that a page can hold: what a user's reward logs may be anything."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return visible(str(value))


def evaluation_tables(run):
    """(step, path) of the tables of completions of some evaluations, from the first to the last, evenly spread."""
    tables = []
    for evaluation in run_folder.evaluations(run.history):
        path = run.folder / "completions" / f"completions_{evaluation['step']:05d}.parquet"
        if path.is_file():
            tables.append((evaluation["step"], path))
    spread_out = np.linspace(0, len(tables) - 1, min(len(tables), EVALUATIONS)).round().astype(int)
    return [tables[i] for i in spread_out]


def evaluation_rows(run, path):
    """The rows (dicts) of an evaluation in a table of completions; None where it cannot be read, which is said."""
    try:
        table = pq.read_table(path)
        lacking = [name for name in ("prompt", "completion") if name not in table.column_names]
        error = f"it lacks {' and '.join(lacking)}" if lacking else None
    except (OSError, pa.ArrowException) as reason:
        error = reason
    if error:
        print(f"{path} is left out of the page, as it cannot be read ({error})", flush=True)
        return None
    # An evaluation has as many completions of a problem as training, unless it has a number of its own
    completions_each = run.settings.get("num_generations_eval") or run.settings.get("num_generations") or 1
    return table.to_pylist()[-run.metrics["after"]["n"] * completions_each :]  # rows of training come first


def read_completions(run):
    """The same held-out problems at every evaluation, as {"steps": [...], "problems": [...]} for the page's reader."""
    steps, tables = [], tables_of(run)
    rows_of = {}  # of a problem, which is its prompt and which of its completions: a row for each of the steps
    for step, path in evaluation_tables(run):
        rows = evaluation_rows(run, path)
        if rows is None:
            continue
        place = len(steps)
        steps.append(step)
        seen = Counter()
        for row in rows:
            prompt = completion_text(row["prompt"])
            seen[prompt] += 1
            rows_of.setdefault((prompt, seen[prompt]), {})[place] = row
    # Those that the most steps have come first
    by_steps = sorted(rows_of.items(), key=lambda problem: -len(problem[1]))
    problems = []
    for (prompt, _), rows in by_steps[:PROBLEMS]:
        problem = {"prompt": prompt, "at": {}}
        for place, row in rows.items():
            problem["about"], problem["at"][place] = read_completion(row, tables)
        problems.append(problem)
    return {"steps": steps, "problems": problems, "of": len(rows_of)}

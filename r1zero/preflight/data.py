"""What can be wrong with a file of problems, in one line each that names the file, the column and the row.

Rows count from 0. Every row is looked at, in Arrow's own loops.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from r1zero.files import one_line, shown
from r1zero.tasks.problem_files import with_texts
from r1zero.tasks.prompts import outdated
from r1zero.training.reward_functions import ours

FIRST = 64  # rows of each file whose right answers are tried
ROWS_AT_A_TIME = 1 << 16
LONGEST = 16  # prompts of each file, the longest in characters, whose tokens are counted
OTHER_NAMES = {"solution": "ground_truth"}  # of columns that a reward function reads under another name too


@dataclass
class File:
    """A file of problems.

    rows: how many; prompts: the longest (list); first: the first values (dict of columns); notices: lines to print;
    metadata: of its schema (dict, or None).
    """

    path: Path
    rows: int = 0
    prompts: list = field(default_factory=list)
    first: dict = field(default_factory=dict)
    notices: list = field(default_factory=list)
    metadata: dict | None = None


def read(values, optional=False):
    """Return the files of a run's data (list[File], train and test, [] if not usable) and the errors (list of lines).

    values: every setting; optional: whether there may be none, as it is still to be made.
    """
    paths = [Path(values.data_dir, f"{split}.parquet") for split in ("train", "test")]
    advice = f"type python {values.prepare or 'preprocess.py TASK'}"
    lacking = [str(path) for path in paths if not path.is_file()]
    if lacking and optional:
        return [], []
    if lacking:
        return [], [f"missing data: {' and '.join(lacking)}; {advice}, or name its folder with --data_dir"]
    files, errors = [], []
    for path in paths:
        file, found = examine(path, values.reward_funcs, advice, FIRST)
        errors += found
        files += [file] if file else []
    if errors:
        return [], errors
    more = [column for column in files[1].first if column not in files[0].first]
    if more:  # datasets would not read the two together
        errors.append(f"{paths[1]} has the columns {more}, which {paths[0]} lacks: remove them from it")
    return files, errors


def template_notices(files, values, tokenizer):
    """Return a line if prompts were written by other templates than the recipe's `prepare` would take now.

    files: list[File]; values: every setting; tokenizer: the model's.
    """
    wanted = re.search(r"--template(?:_type)?[ =](\S+)", values.prepare or "")
    for file in files:
        places = outdated(file.metadata, wanted and wanted[1], tokenizer)
        if places:
            return [
                f"{file.path} has other prompts than {' and '.join(places)} of r1zero/tasks makes now for this model: "
                f"keep them, or remove {values.data_dir} and type python {values.prepare or 'preprocess.py TASK'}"
            ]
    return []


def examine(path, names, advice, first_rows=0):
    """Return the File at a path, None if it cannot be used, and the errors (list of lines).

    names: of the reward functions that are to score it; advice: what to type for a better file, as the end of a line.
    """
    try:
        with pq.ParquetFile(path) as parquet:
            errors = schema_errors(path, parquet, names, advice)
            if errors:
                return None, errors
            file, faults = survey(path, parquet, names, first_rows)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        return None, [f"{path} is no readable parquet file ({one_line(error)}): {advice}"]
    for (column, wanted), (row, value, count) in faults.items():
        errors.append(
            f"{path}, column {column}: row {row} is {value}, wanted {wanted} ({count:,} such of {file.rows:,} rows): "
            f"mend or remove them, or {advice}"
        )
    return (None if errors else file), errors


# Columns and their types


def is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_chat(kind):
    """Return whether a type is that of lists of messages, each with the texts role and content."""
    if not (is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    types = {each.name: each.type for each in kind.value_type}
    return all(name in types and is_text(types[name]) for name in ("role", "content"))


COLUMNS = {  # what each is to hold, in words, and whether an Arrow type can
    "prompt": ("text, or chat messages with role and content", lambda kind: is_text(kind) or is_chat(kind)),
    "nums": ("a list of whole numbers", lambda kind: is_list(kind) and pa.types.is_integer(kind.value_type)),
    "target": ("a whole number", pa.types.is_integer),
    "product": ("a whole number, or its digits", lambda kind: is_text(kind) or pa.types.is_integer(kind)),
    "solution": ("an answer as text", is_text),
    "ground_truth": ("an answer as text", is_text),
    "tests": ("tests as text in JSON", is_text),
}
ANYTHING = ("a value", lambda kind: True)  # of other columns


def columns_read(names, schema):
    """Return what the functions of rewards.py among some names read, as a dict of a name to its columns (list)."""
    read = {}
    for name in names:
        if name in ours():
            read[name] = [present_name(column, schema) for column in ours()[name].task.columns]
    return read


def present_name(column, schema):
    """Return the name under which a schema has a column."""
    other = OTHER_NAMES.get(column)
    return other if other in schema.names and column not in schema.names else column


def schema_errors(path, parquet, names, advice):
    """Return missing rows and columns, and columns of another type (list of lines). parquet: a ParquetFile."""
    schema = parquet.schema_arrow
    columns = ["prompt", *(column for read in columns_read(names, schema).values() for column in read)]
    lacking = [column for column in columns if column not in schema.names]
    if lacking:
        return [f"{path} has the columns {schema.names} and lacks {' and '.join(lacking)}: {advice}"]
    if not parquet.metadata.num_rows:
        return [f"{path} has no rows: {advice}"]
    errors = []
    for column in columns:
        kind, (wanted, fits) = schema.field(column).type, COLUMNS.get(column, ANYTHING)
        if fits(kind) or (pa.types.is_null(kind) and column != "prompt"):  # all rows are of other tasks
            continue
        values = parquet.read([column])[column]
        row = max(0, pc.index(pc.is_valid(values), True).as_py())
        errors.append(
            f"{path}, column {column}: its type is {kind} (row {row} is {shown(values[row].as_py())}), wanted "
            f"{wanted}: mend it, or {advice}"
        )
    return errors


# Rows


def truth(mask):
    """Return an Arrow array of booleans as a NumPy one, null being False."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def is_blank(values):
    """Return the values that are null, empty, or lists with a null or with half a message ((rows,) bool)."""
    if is_text(values.type):
        return ~truth(pc.greater(pc.binary_length(values), 0))
    blank = truth(pc.is_null(values))
    if is_list(values.type):
        inner = pc.list_flatten(values)
        wrong = truth(pc.is_null(inner))
        if pa.types.is_struct(inner.type):
            for name in ("role", "content"):
                wrong |= truth(pc.is_null(pc.struct_field(inner, name)))
        blank |= ~truth(pc.greater(pc.list_value_length(values), 0))
        blank[pc.list_parent_indices(values).to_numpy()[wrong]] = True
    return blank


def prompt_lengths(prompts):
    """Return the characters of each prompt, of a chat those of all its messages ((rows,) ints)."""
    if is_text(prompts.type):
        return pc.fill_null(pc.utf8_length(prompts), 0).to_numpy(zero_copy_only=False)
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    lengths = pc.fill_null(pc.utf8_length(contents), 0).to_numpy(zero_copy_only=False)
    return np.bincount(pc.list_parent_indices(prompts).to_numpy(), lengths, minlength=len(prompts)).astype(int)


def survey(path, parquet, names, first_rows):
    """Return the File of a ParquetFile whose schema has no errors, and its faults.

    The faults are a dict of (column, what was wanted) to the first row, what stands there, and how many such rows.
    """
    read = columns_read(names, parquet.schema_arrow)
    golds = [columns[-1] for columns in read.values()]  # null in rows of another task
    file, faults, longest = File(Path(path), metadata=parquet.schema_arrow.metadata), {}, []
    are_taken_as_texts = False
    if pa.types.is_nested(parquet.schema_arrow.field("prompt").type):
        prompts = parquet.read(["prompt"])
        are_taken_as_texts = with_texts(prompts) is not prompts
    if are_taken_as_texts:
        file.notices = [f"{path}: each prompt is one user message that ends in <think>, and is taken as its text"]
    # All columns, as a page that is damaged would otherwise be found by the run
    for batch in parquet.iter_batches(ROWS_AT_A_TIME):
        batch = with_texts(batch) if are_taken_as_texts else batch
        file.first = file.first or batch.slice(0, first_rows).to_pydict()
        wrong = [("prompt", is_blank(batch["prompt"]), COLUMNS["prompt"][0])]
        for gold in golds:
            wrong += task_faults(batch, gold)
        if golds and len(read) == len(names):  # a user's own function may score any row
            unscored = np.logical_and.reduce([truth(pc.is_null(batch[gold])) for gold in golds])
            wanted = f"a value in {' or '.join(golds)}, or the name of a function for such rows in reward_funcs"
            wrong.append((golds[0], unscored, wanted))
        for column, mask, wanted in wrong:
            if mask.any():
                place = int(mask.argmax())
                value = shown(batch[column][place].as_py())
                if value == "None" and "data_source" in batch.schema.names:
                    value = f"None (in a row of {batch['data_source'][place]})"
                row, value, count = faults.get((column, wanted), (file.rows + place, value, 0))
                faults[column, wanted] = row, value, count + int(mask.sum())
        lengths = prompt_lengths(batch["prompt"])
        for place in np.argsort(lengths)[-LONGEST:].tolist():
            longest.append((int(lengths[place]), file.rows + place, batch["prompt"][place].as_py()))
        longest = sorted(longest, key=lambda prompt: prompt[:2])[-LONGEST:]
        file.rows += len(batch)
    file.prompts = [prompt for _, _, prompt in longest]
    return file, faults


def task_faults(batch, gold):
    """Return what is wrong in a task's columns, as a list of (column, (rows,) bool, what was wanted).

    gold: the column that rows of another task have null.
    """
    values = batch[gold]
    own = truth(pc.is_valid(values))
    if gold == "product" and is_text(values.type):
        digits = truth(pc.match_substring_regex(values, "^-?[0-9]+$"))
        return [(gold, own & ~digits, COLUMNS[gold][0])]
    if gold != "target":
        return [(gold, own & is_blank(values), COLUMNS.get(gold, ANYTHING)[0])]
    return [("nums", own & is_blank(batch["nums"]), "at least one whole number")]

"""What can be wrong with a file of problems, in one line each that names the file, the column and the row.

Rows count from 0. Every row is looked at, in Arrow's own loops, and targets are searched for in the first ones.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from r1zero.files import one_line, shown
from r1zero.tasks.countdown import reachable
from r1zero.training.reward_functions import ours

ROWS_AT_A_TIME = 1 << 16  # and so many of the first are searched for Countdown's targets, in half a second
LONGEST = 16  # prompts of each file, the longest in characters, whose tokens are counted
OTHER_NAMES = {"solution": "ground_truth"}  # of columns that a reward function reads under another name too


# The types of the columns


def is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_chat(kind):
    """Whether a type is that of lists of messages, each with the texts role and content."""
    if not (is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    types = {kind.value_type.field(i).name: kind.value_type.field(i).type for i in range(kind.value_type.num_fields)}
    return all(name in types and is_text(types[name]) for name in ("role", "content"))


class Wanted(NamedTuple):
    """What a column is to hold, in words, and whether an Arrow type can."""

    words: str
    fits: Callable


PICTURES = ("image", "images")
COLUMNS = {
    "prompt": Wanted("text, or chat messages with role and content", lambda kind: is_text(kind) or is_chat(kind)),
    "nums": Wanted("a list of whole numbers", lambda kind: is_list(kind) and pa.types.is_integer(kind.value_type)),
    "target": Wanted("a whole number", pa.types.is_integer),
    "product": Wanted("a whole number, or its digits", lambda kind: is_text(kind) or pa.types.is_integer(kind)),
    "solution": Wanted("an answer as text", is_text),
    "ground_truth": Wanted("an answer as text", is_text),
    "tests": Wanted("tests as text in JSON", is_text),
}


# Which columns a file has


def columns_read(names, schema):
    """What the functions of rewards.py among some names read, as a dict of a name to its columns (list)."""
    read = {}
    for name in names:
        if name in ours():
            read[name] = [present_name(column, schema) for column in ours()[name].task.columns]
    return read


def present_name(column, schema):
    """The name under which a schema has a column."""
    other = OTHER_NAMES.get(column)
    return other if other in schema.names and column not in schema.names else column


def schema_errors(path, file, names, advice):
    """Missing rows and columns, and columns of another type. file: a ParquetFile; names: of reward functions."""
    schema, rows = file.schema_arrow, file.metadata.num_rows
    columns = ["prompt"]
    for read in columns_read(names, schema).values():
        columns += read
    lacking = [column for column in columns if column not in schema.names]
    if lacking:
        return [f"{path} has the columns {schema.names} and lacks {' and '.join(lacking)}: {advice}"]
    if not rows:
        return [f"{path} has no rows: {advice}"]
    pictures = [column for column in PICTURES if column in schema.names]
    if pictures:
        return [f"{path} has the column {pictures[0]}, which TRL takes for pictures: rename it"]
    errors = []
    for column in columns:
        kind, wanted = schema.field(column).type, COLUMNS[column]
        if wanted.fits(kind) or (pa.types.is_null(kind) and column != "prompt"):  # all rows are of other tasks
            continue
        row, value = telling_value(file.read([column])[column])
        errors.append(
            f"{path}, column {column}: its type is {kind} (row {row} is {shown(value)}), wanted {wanted.words}: "
            f"mend it, or {advice}"
        )
    return errors


def telling_value(column):
    """The first row that is NaN, which makes numbers floats, or else the first that is there, with its value."""
    there = pc.is_valid(column)
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        there = pc.is_nan(column)
    row = pc.index(there, True).as_py()
    return (row, column[row].as_py()) if row >= 0 else (0, None)


# What stands in the rows


@dataclass
class Fault:
    """What is wrong with a column: in how many rows, and the first of them, what stands there and what was wanted."""

    column: str
    row: int
    value: str
    wanted: str
    rows: int = 0


@dataclass
class Survey:
    """What a file holds.

    rows: how many; prompts: list of the longest; first: dict of every column to its first values; faults: dict of
    (column, what was wanted) to its Fault.
    """

    rows: int = 0
    prompts: list = field(default_factory=list)
    first: dict = field(default_factory=dict)
    faults: dict = field(default_factory=dict)

    def add(self, column, wrong, batch, wanted):
        """Counts the rows of a batch, the next of the file, where a column is wrong ((rows of the batch,) bool)."""
        (places,) = np.nonzero(wrong)
        if not len(places):
            return
        if (column, wanted) not in self.faults:
            place = int(places[0])
            value = batch[column][place].as_py()
            text = shown(value)
            if value is None and "data_source" in batch.schema.names:
                text = f"None (in a row of {batch['data_source'][place]})"
            self.faults[column, wanted] = Fault(column, self.rows + place, text, wanted)
        self.faults[column, wanted].rows += len(places)


def truth(mask):
    """An Arrow array of booleans as a NumPy one, null being False."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def is_blank(texts):
    """(rows,) bool: which texts are null or empty."""
    return ~truth(pc.greater(pc.binary_length(texts), 0))


def lists_with(lists, wrong):
    """(rows,) bool: which lists have an element that is wrong. wrong: (elements,) bool."""
    found = np.zeros(len(lists), dtype=bool)
    found[pc.list_parent_indices(lists).to_numpy()[wrong]] = True
    return found


def wrong_prompts(prompts):
    """(rows,) bool: prompts without text, and chats without messages or with a message that is not whole."""
    if is_text(prompts.type):
        return is_blank(prompts)
    messages = pc.list_flatten(prompts)
    partial = truth(pc.is_null(pc.struct_field(messages, "role")))
    partial |= truth(pc.is_null(pc.struct_field(messages, "content")))
    return ~truth(pc.greater(pc.list_value_length(prompts), 0)) | lists_with(prompts, partial)


def prompt_lengths(prompts):
    """(rows,) ints: the characters of each prompt, of a chat those of all its messages."""
    if is_text(prompts.type):
        return pc.fill_null(pc.utf8_length(prompts), 0).to_numpy(zero_copy_only=False)
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    lengths = pc.fill_null(pc.utf8_length(contents), 0).to_numpy(zero_copy_only=False)
    return np.bincount(pc.list_parent_indices(prompts).to_numpy(), lengths, minlength=len(prompts)).astype(int)


def survey(file, names, first_rows):
    """The Survey of a ParquetFile whose schema has no errors.

    names: of the reward functions; first_rows: how many to keep.
    """
    read = columns_read(names, file.schema_arrow)
    golds = [columns[-1] for columns in read.values()]  # null in rows of another task
    found, longest = Survey(), []
    # All columns, as a page that is damaged would otherwise be found by the run
    for batch in file.iter_batches(ROWS_AT_A_TIME):
        found.first = found.first or batch.slice(0, first_rows).to_pydict()
        found.add("prompt", wrong_prompts(batch["prompt"]), batch, COLUMNS["prompt"].words)
        for gold in golds:
            add_task_faults(found, batch, gold)
        if golds and len(read) == len(names):  # a user's own function may score any row
            unscored = np.logical_and.reduce([truth(pc.is_null(batch[gold])) for gold in golds])
            wanted = f"a value in {' or '.join(golds)}, or the name of a function for such rows in reward_funcs"
            found.add(golds[0], unscored, batch, wanted)
        lengths = prompt_lengths(batch["prompt"])
        for place in np.argsort(lengths)[-LONGEST:].tolist():
            longest.append((int(lengths[place]), found.rows + place, batch["prompt"][place].as_py()))
        longest = heapq.nlargest(LONGEST, longest, key=lambda prompt: prompt[:2])
        found.rows += len(batch)
    found.prompts = [prompt for _, _, prompt in reversed(longest)]
    return found


def add_task_faults(found, batch, gold):
    """Adds to a Survey what is wrong in the columns of a task. gold: the column that its other rows have null."""
    values = batch[gold]
    if gold == "target":
        add_countdown_faults(found, batch)
    elif gold == "product" and is_text(values.type):
        digits = truth(pc.match_substring_regex(values, "^-?[0-9]+$"))
        found.add(gold, truth(pc.is_valid(values)) & ~digits, batch, COLUMNS[gold].words)
    elif is_text(values.type):
        found.add(gold, truth(pc.is_valid(values)) & is_blank(values), batch, COLUMNS[gold].words)


def add_countdown_faults(found, batch):
    """Adds to a Survey the rows of Countdown without numbers, and of the first rows those that have no solution."""
    nums, target = batch["nums"], batch["target"]
    own = truth(pc.is_valid(target))
    if pa.types.is_null(nums.type):
        found.add("nums", own, batch, "at least one whole number")
        return
    wrong = ~truth(pc.greater(pc.list_value_length(nums), 0))
    wrong |= lists_with(nums, truth(pc.is_null(pc.list_flatten(nums))))
    found.add("nums", own & wrong, batch, "at least one whole number")
    if found.rows:
        return
    (places,) = np.nonzero(own & ~wrong)
    unsolved = places[~reachable(nums.take(places).to_pylist(), target.take(places).to_pylist())]
    if len(unsolved):
        wrong = np.isin(np.arange(len(own)), unsolved)
        found.add("target", wrong, batch, f"a number that + - * / make of {nums[int(unsolved[0])].as_py()}")


def examine(path, names, advice, first_rows=0):
    """The Survey of a file of problems, None where it cannot be used, and the errors (list of lines).

    names: of the reward functions that are to score it; advice: what to type for a better file, as the end of a line.
    """
    try:
        with pq.ParquetFile(path) as file:
            errors = schema_errors(path, file, names, advice)
            if errors:
                return None, errors
            found = survey(file, names, first_rows)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        return None, [f"{path} is no readable parquet file ({one_line(error)}): {advice}"]
    for fault in found.faults.values():
        errors.append(
            f"{path}, column {fault.column}: row {fault.row} is {fault.value}, wanted {fault.wanted} "
            f"({fault.rows:,} such of {found.rows:,} rows): mend or remove them, or {advice}"
        )
    return (None if errors else found), errors

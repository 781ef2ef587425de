"""Write a task's problems as data/<task>/{train,test}.parquet, ready for train_countdown.py.

    python preprocess.py countdown                         # make 327,680 + 1,024 problems, no network needed
    python preprocess.py countdown --source tasks.parquet  # or read an existing set (a file, a folder, a hub id)
    python preprocess.py multiply --digits 3 2             # made too: 345 * 67
    python preprocess.py gsm8k                             # or x_r1_750, math, eurus: from the hub, or --source FILE
    python preprocess.py mixture data/countdown data/math  # equal parts of what was written before

Rows have TinyZero's schema: the columns that the reward reads, data_source, prompt, ability, reward_model{style,
ground_truth}, extra_info{split, index}. `prompt` is a plain string that ends in the prefilled assistant turn, because
TRL would close that turn in chat messages. Train holds no test problem, except with `countdown --split tinyzero`.
"""

import argparse
import heapq
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.files import replaced
from r1zero.tasks import countdown, multiplication, word_problems
from r1zero.tasks.problem_files import (
    ROWS_READ,
    dropped,
    load_splits,
    make_example,
    row_schema,
    with_texts,
    write_rows,
)
from r1zero.tasks.prompts import drop_long_prompts, fill_template, load_tokenizer, render_template, stamp
from r1zero.tasks.word_problems import TEXT_TASKS, examples

MADE = {"countdown": countdown, "multiply": multiplication}  # tasks whose problems this script makes


def made_task(args, tokenizer):
    """Make or read the problems of a task of MADE, write both files and print their contents."""
    task = MADE[args.task]
    template = render_template(task.PROMPT, args.template, tokenizer)
    place = f"{task.__name__.rpartition('.')[2]}.PROMPT"
    schema = row_schema(task.COLUMNS, ground_truth=task.TRUTH).with_metadata(stamp(args.template, {place: template}))
    for split, problems in zip(("train", "test"), task.problems(args), strict=True):
        counts = Counter()
        rows = []
        for columns, slots, truth in problems:
            rows.append(make_example(columns, args.task, fill_template(template, **slots), truth))
        rows = list(drop_long_prompts(rows, tokenizer, args.max_prompt_length, counts))
        _, first = write_rows(args.parts[split], split, rows, schema, counts)
        print(f"{args.local_dir}/{split}.parquet: {task.contents(rows)}{dropped(counts)}")
    print_example(args.local_dir, first)


def print_example(folder, row):
    """Print the first test row: the prompt whole, long values cut."""
    print(f"\nOne example of {folder}/test.parquet:")
    for name, value in row.items():
        text = repr(value)
        if name == "prompt":
            print(f"  prompt:\n{value}")
        elif len(text) < 500:
            print(f"  {name}: {text}")
        else:
            print(f"  {name}: {value!r:.500}...")


def text_task(args, tokenizer):
    """Stream a set of problems in words, so that any size takes little memory, and write both files.

    Test rows are a seeded choice of at most --test_size rows of the set's test or validation split. If it has neither,
    they come from train, at most a fifth of it. Train leaves out test problems and duplicates.
    """
    task = TEXT_TASKS[args.task]
    args.source = args.source or task.hub_id
    splits = load_splits(args.source, task.configuration)
    if "train" not in splits:
        raise ValueError(f"--source {args.source} has the splits {list(splits)}, wanted train")
    held_out = next((name for name in ("test", "validation") if name in splits), "train")
    columns = {"solution": pa.string()}
    prompts = {"maths": word_problems.MATHS}
    if args.task == "eurus":
        columns["tests"] = pa.string()
        prompts["code"] = word_problems.CODE
    templates = {kind: render_template(prompt, args.template, tokenizer) for kind, prompt in prompts.items()}
    places = {f"word_problems.{kind.upper()}": text for kind, text in templates.items()}
    schema = row_schema(columns).with_metadata(stamp(args.template, places))

    counts, seen = Counter(), set()
    candidates = text_rows(args, splits[held_out], tokenizer, templates, seen, counts)
    chosen = heapq.nsmallest(args.test_size, candidates, key=lambda keyed: keyed[0])
    if held_out == "train":
        chosen = chosen[: len(seen) // 5 + 1]
    first = write_text_rows(args, "test", chosen, held_out, schema, counts)

    counts, seen = Counter(), {key for key, _ in chosen}
    rows = text_rows(args, splits["train"], tokenizer, templates, seen, counts)
    write_text_rows(args, "train", rows, "train", schema, counts)
    print_example(args.local_dir, first)


def text_rows(args, source_rows, tokenizer, templates, seen, counts):
    """Yield (key, row) of the usable rows of a stream whose key is not in `seen` (set), and add it there."""
    rows = examples(args.task, source_rows, args.source, templates, args.seed, counts)
    for row in drop_long_prompts(rows, tokenizer, args.max_prompt_length, counts):
        key = row.pop("key")
        if key in seen:
            counts["that came before or stand in test"] += 1
        else:
            seen.add(key)
            yield key, row


def write_text_rows(args, split, keyed_rows, origin, schema, counts):
    """Write (key, row)s from the source's split `origin`, print the counts and return the first row."""
    rows = (row for _, row in keyed_rows)
    written, first = write_rows(args.parts[split], split, rows, schema, counts)
    path = f"{args.local_dir}/{split}.parquet"
    print(f"{path}: {written:,} of the {counts[ROWS_READ]:,} rows of {origin}{dropped(counts)}")
    return first


def mixture(args, tokenizer):
    """Write equal parts of several folders of this script in random order, each as large as the smallest folder."""
    rng = np.random.default_rng(args.seed)
    held_out = set()  # test prompts, as train of another part may have them
    for split in ("test", "train"):
        tables, metadata = [], {}
        for folder in args.folders:
            path = Path(folder) / f"{split}.parquet"
            if not path.is_file():
                how = f"write it first, with preprocess.py TASK --local_dir {path.parent}"
                raise ValueError(f"{path} does not exist: {how}")
            # These two differ in type from task to task, and no reward reads them
            table = with_texts(pq.read_table(path))
            table = table.drop_columns([name for name in ("reward_model", "extra_info") if name in table.column_names])
            metadata |= table.schema.metadata or {}
            prompts = [str(prompt) for prompt in table["prompt"].to_pylist()]
            if split == "test":
                held_out.update(prompts)
            else:
                table = table.filter([prompt not in held_out for prompt in prompts])
            tables.append(table)
        part = min(table.num_rows for table in tables)
        tables = [table.take(np.sort(rng.permutation(table.num_rows)[:part])) for table in tables]
        mixed = pa.concat_tables(tables, promote_options="default")
        rows = mixed.take(rng.permutation(mixed.num_rows)).to_pylist()
        schema = mixed.schema.append(row_schema({}).field("extra_info")).with_metadata(metadata)
        _, first = write_rows(args.parts[split], split, rows, schema, Counter())
        print(f"{args.local_dir}/{split}.parquet: {part:,} problems of each of {' '.join(args.folders)}")
    print_example(args.local_dir, first)


def add_task(tasks, name, run, text, train_size=None, test_size=1024, **defaults):
    """Add the subcommand of a task that makes prompts, and return it. defaults: replace those of its flags."""
    task = add_command(tasks, name, run, text)
    if train_size:
        task.add_argument("--train_size", "--num_samples", type=int, default=train_size, help="problems in train")
    task.add_argument("--test_size", type=int, default=test_size, help="problems in test (at most, if read)")
    task.add_argument(
        "--template",
        "--template_type",  # TinyZero's name, as is --num_samples
        choices=("base", "chat", "qwen-instruct"),
        default="base",
        help="prompt for a base or a chat model; qwen-instruct is TinyZero's name for chat",
    )
    task.add_argument("--tokenizer", help="model folder or hub id, for its chat template and --max_prompt_length")
    task.add_argument("--max_prompt_length", type=int, help="drop prompts of more tokens than this")
    task.set_defaults(**defaults)
    return task


def add_command(tasks, name, run, text):
    """Add a subcommand with the common flags, and return it."""
    task = tasks.add_parser(
        name,
        help=text,
        description=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    task.set_defaults(run=run)
    task.add_argument("--local_dir", default=f"data/{name}", help="folder to write train.parquet and test.parquet to")
    task.add_argument("--seed", type=int, default=0, help="seed of the problems and of their order")
    return task


def build_parser():
    """Return the parser of the command line, one subcommand a task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", title="tasks")

    for name, made in MADE.items():
        made.add_flags(add_task(tasks, name, made_task, made.HELP, train_size=made.TRAIN_SIZE))

    for name, text in TEXT_TASKS.items():
        about = f"problems in words, from {text.hub_id} or a copy of it"
        columns = ", ".join(text.columns)
        task = add_task(
            tasks,
            name,
            text_task,
            about,
            test_size=512,
            tokenizer=text.tokenizer,
            max_prompt_length=text.max_prompt_length,
        )
        task.add_argument("--source", help=f"a file, a folder or a hub id with {columns}; default {text.hub_id}")

    task = add_command(tasks, "mixture", mixture, "equal parts of other tasks, for one run")
    task.add_argument("folders", nargs="+", help="folders that this script has written")
    task.set_defaults(tokenizer=None, max_prompt_length=None)
    return parser


def read_arguments(argv=None):
    """Return the checked arguments. Exit with one line for a value that makes no sense."""
    parser = build_parser()
    args = parser.parse_args(argv)
    wrong = MADE[args.task].wrong_flags(args) if args.task in MADE else None
    if wrong:
        parser.error(wrong)
    if args.max_prompt_length is not None and not args.tokenizer:
        parser.error("--max_prompt_length counts tokens and needs --tokenizer PATH_OR_HUB_ID")
    if min(getattr(args, "train_size", 1), getattr(args, "test_size", 1)) < 1:
        parser.error("wanted --train_size and --test_size of at least 1")
    return args


# The datasets library and Python raise these for a file without rows, unequal rows and unexpected types
SOURCE_ERRORS = (RuntimeError, TypeError, AttributeError, KeyError, pa.ArrowException)


def main(argv=None):
    """Write both files of a task, or leave what was there and exit with one line that says why."""
    args = read_arguments(argv)
    train, test = Path(args.local_dir, "train.parquet"), Path(args.local_dir, "test.parquet")
    try:
        # Replace both at the end: a new train beside an old test could hold its problems
        with replaced(train) as train_part, replaced(test) as test_part:
            args.parts = {"train": train_part, "test": test_part}
            args.run(args, load_tokenizer(args.tokenizer))
    except (OSError, ValueError) as error:
        sys.exit(f"preprocess.py: {error}")
    except SOURCE_ERRORS as error:
        if not getattr(args, "source", None):
            raise
        sys.exit(f"preprocess.py: --source {args.source} cannot be read as problems ({type(error).__name__}: {error})")
    except KeyboardInterrupt:
        sys.exit("preprocess.py: stopped; what was there before is whole, and the same command starts again")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    os.environ.setdefault("USE_TORCH", "0")  # or the streams of datasets import torch, over a second
    main()

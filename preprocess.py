"""Write a task's problems as data/<task>/{train,test}.parquet, ready for train_countdown.py.

    python preprocess.py countdown                         # make 327,680 + 1,024 problems, no network needed
    python preprocess.py countdown --source tasks.parquet  # or read an existing set (a file, a folder, a hub id)
    python preprocess.py multiply --digits 3 2             # made too: 345 * 67
    python preprocess.py gsm8k                             # or x_r1_750, math, eurus: from the hub, or --source FILE
    python preprocess.py mixture data/countdown data/math  # equal parts of what was written before

Rows have TinyZero's schema: the columns the reward reads, data_source, prompt, ability, reward_model{style,
ground_truth}, extra_info{split, index}. `prompt` is a plain string that already holds the prefilled assistant turn:
given as chat messages, TRL would close that turn. No test problem stands in train, unless TinyZero's own (leaking)
Countdown split is asked for.
"""

import argparse
import hashlib
import heapq
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset_builder
from pyarrow.dataset import ParquetFragmentScanOptions

import math_answers
import sandbox
from rewards import last_box

MIN_TARGET = 10
# + - * /: products and quotients leave the range of targets more often than sums, so they are drawn more often.
OPERATION_SHARES = (0.1, 0.1, 0.4, 0.4)

# Prompts. Training and evaluation both start from these: TinyZero's for Countdown and multiplication
# (examples/data_preprocess), the x_r1_750 recipe's for boxed maths. Each is what the assistant is told of the format,
# what the user asks, and how the assistant's turn begins.
CONVERSATION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer."
)
SYSTEM = (
    "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides the user "
    "with the answer."
)
ENCLOSED = (
    " The reasoning process and answer are enclosed within <think> </think> and {tags} tags, respectively, i.e., "
)
PROMPTS = {
    "countdown": (
        "",
        "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And "
        "return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.",
        "Let me solve this step by step.\n<think>",
    ),
    "multiply": (
        ENCLOSED.replace("{tags}", "<answer> </answer>")
        + "<think> reasoning process here </think> <answer> RESULT_NUMBER </answer>.",
        "Give me the answer of the following equation: {left} * {right} =",
        "Let me solve this step by step.\n<think>",
    ),
    "maths": (
        ENCLOSED.replace("{tags}", r"\boxed{}")
        + r"<think> reasoning process here </think> The answer is \boxed{your answer}.",
        "{problem}",
        "Let me solve this step by step. <think>",
    ),
    "code": (
        " The reasoning process is enclosed within <think> </think> tags, and the answer is one whole Python program "
        "in a ```python block, i.e., <think> reasoning process here </think>\n```python\nprogram here\n```",
        "{problem}",
        "Let me solve this step by step. <think>",
    ),
}


def render_template(task, form, tokenizer=None):
    """A task's prompt as text with its {slots} left open. The chat form goes through the tokenizer's own chat template
    where a tokenizer is given, and through Qwen's ChatML where none is."""
    told, asked, start = PROMPTS[task]
    if form == "base":
        return f"{CONVERSATION}{told}\nUser: {asked}\nAssistant: {start}"
    messages = [
        {"role": "system", "content": SYSTEM + told},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": start},
    ]
    if tokenizer is None:
        turns = [f"<|im_start|>{message['role']}\n{message['content']}" for message in messages]
        return "<|im_end|>\n".join(turns)
    return tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)


def fill_template(template, **slots):
    """The prompt of one problem. Not by str.format: a chat template or a problem may hold other braces."""
    for name, value in slots.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def make_example(columns, data_source, prompt, ground_truth, ability="math"):
    """One row in TinyZero's schema but for its place in the split. columns: dict of what the reward reads."""
    return {
        **columns,
        "data_source": data_source,
        "prompt": prompt,
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
    }


def schema(columns, ground_truth=None):
    """The Arrow schema of rows with these columns (dict of name to type) for the reward."""
    fields = columns | {"data_source": pa.string(), "prompt": pa.string(), "ability": pa.string()}
    fields["reward_model"] = pa.struct({"style": pa.string(), "ground_truth": ground_truth or pa.string()})
    return pa.schema(fields | {"extra_info": pa.struct({"split": pa.string(), "index": pa.int64()})})


def batches(rows, size=1024):
    """Lists of `size` rows of an iterable, the last one shorter."""
    rows = iter(rows)
    while some := list(islice(rows, size)):
        yield some


def list_counts(dropped):
    """What was dropped (Counter of reason to number), as the end of a sentence."""
    return "".join(f"; dropped {count:,} {what}" for what, count in dropped.items() if count and what != "rows")


def write_rows(folder, split, rows, columns, dropped):
    """Writes an iterable of rows to folder/split.parquet, some at a time; returns how many, and the first.

    A half-written file never carries the real name. Raises ValueError where there is no row, with what was `dropped`
    (Counter) until then.
    """
    path = Path(folder) / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{path}.part")
    written, first = 0, None
    try:
        with pq.ParquetWriter(part, columns) as writer:
            for some in batches(rows):
                for row in some:
                    row["extra_info"] = {"split": split, "index": written}
                    first, written = first or row, written + 1
                writer.write_table(pa.Table.from_pylist(some, schema=columns))
        if not written:
            raise ValueError(f"no row is left for {path}{list_counts(dropped)}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return written, first


def show(folder, row):
    """Prints a row as the example of what was written."""
    print(f"\nOne example of {folder}/test.parquet:")
    for key, value in row.items():
        text = repr(value) if len(repr(value)) < 500 else f"{value!r:.500}..."
        print(f"  {key}: {text}" if key != "prompt" else f"  prompt:\n{value}")


def problem_keys(nums, target):
    """One int64 per problem, equal for problems that differ only in the order of their numbers.

    nums: (N, k) ints, target: (N,) ints. Raises ValueError where k + 1 of the largest do not fit in 63 bits.
    """
    radix = int(max(nums.max(), target.max())) + 1
    if radix ** (nums.shape[1] + 1) >= 2**63:
        raise ValueError(
            f"{nums.shape[1]} numbers up to {radix - 1} are too large to compare; use fewer or smaller ones"
        )
    key = target.astype(np.int64)
    for column in np.sort(nums, axis=1).T:
        key = key * radix + column
    return key


def solvable_by_sums(nums, target):
    """(N,) bool: which problems are solved with + and - alone, that is, by one of the 2**k choices of signs."""
    found = np.zeros(len(nums), dtype=bool)
    for signs in np.ndindex(*(2,) * nums.shape[1]):
        found |= nums @ (1 - 2 * np.array(signs)) == target
    return found


def draw_problems(rng, draws, num_operands, min_number, max_number, max_target):
    """Random expressions evaluated exactly; those whose value is a whole number in range become problems.

    Two random values are joined by a random operation until one is left, so every shape of expression comes up.
    Returns nums (N, num_operands) and target (N,), N <= draws.
    """
    nums = rng.integers(min_number, max_number + 1, (draws, num_operands))
    top, bottom = nums.copy(), np.ones_like(nums)  # every value is the fraction top / bottom
    rows = np.arange(draws)
    alive = np.ones(draws, dtype=bool)
    for left in range(num_operands, 1, -1):
        i = rng.integers(0, left, draws)
        j = (i + rng.integers(1, left, draws)) % left
        (a, b), (c, d) = (top[rows, i], bottom[rows, i]), (top[rows, j], bottom[rows, j])
        op = rng.choice(4, draws, p=OPERATION_SHARES)
        alive &= (op != 3) | (c != 0)
        ad, bc = a * d, b * c
        top[rows, i] = np.choose(op, [ad + bc, ad - bc, a * c, ad])
        bottom[rows, i] = np.where(op == 3, np.where(c == 0, 1, bc), b * d)
        top[rows, j], bottom[rows, j] = top[:, left - 1], bottom[:, left - 1]  # close the gap
    top, bottom = top[:, 0], bottom[:, 0]
    target = top // bottom
    alive &= (target * bottom == top) & (target >= MIN_TARGET) & (target <= max_target)
    return nums[alive], target[alive]


def make_problems(rng, size, num_operands, min_number, max_number, max_target):
    """`size` different problems (nums (size, num_operands), target (size,)) in random order.

    Raises ValueError where so many different problems do not exist, or are too rare to find.
    """
    nums = np.empty((0, num_operands), dtype=np.int64)
    target = np.empty(0, dtype=np.int64)
    rounds_without_news = 0
    while len(nums) < size:
        ranges = (num_operands, min_number, max_number, max_target)
        found = [(nums, target), *(draw_problems(rng, 1 << 16, *ranges) for _ in range(8))]
        all_nums, all_target = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if len(all_nums):
            first = np.unique(problem_keys(all_nums, all_target), return_index=True)[1]
            all_nums, all_target = all_nums[first], all_target[first]
        rounds_without_news = 0 if len(all_nums) > len(nums) else rounds_without_news + 1
        nums, target = all_nums, all_target
        if rounds_without_news == 8:
            raise ValueError(
                f"found {len(nums):,} different problems of {num_operands} numbers {min_number}..{max_number} with "
                f"targets {MIN_TARGET}..{max_target}, wanted {size:,}: lower --train_size and --test_size, or widen "
                "--max_number or --max_target"
            )
    keep = rng.permutation(len(nums))[:size]
    return nums[keep], target[keep]


def generate(args):
    """Train and test problems of args.num_operands numbers in equal parts, as two lists of (nums, target)."""
    rng = np.random.default_rng(args.seed)
    train, test = [], []
    for part, k in enumerate(args.num_operands):
        # An odd remainder goes to the first parts: sizes differ by one at most.
        n_train, n_test = (len(range(part, n, len(args.num_operands))) for n in (args.train_size, args.test_size))
        nums, target = make_problems(rng, n_train + n_test, k, args.min_number, args.max_number, args.max_target)
        problems = list(zip(nums.tolist(), target.tolist(), strict=True))
        train += problems[:n_train]
        test += problems[n_train:]
    return [train[i] for i in rng.permutation(len(train))], [test[i] for i in rng.permutation(len(test))]


def load_splits(source, configuration=None):
    """The splits of an existing set as streams: a parquet or json file, a folder of them, or a hub id.

    Returns dict of split name to iterable of rows (dict). Raises ValueError where it cannot be had.
    """
    path = Path(source)
    if path.is_file():
        kind = {".jsonl": "json"}.get(path.suffix, path.suffix.lstrip("."))
        if kind not in ("parquet", "json"):
            raise ValueError(f"--source {source} is no parquet, json or jsonl file: give one of these")
        builder = load_dataset_builder(kind, data_files=str(path))
    elif path.is_dir() or (len(path.parts) == 2 and not path.is_absolute()):
        try:
            builder = load_dataset_builder(source, None if path.is_dir() else configuration)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--source {source} is neither a file or folder here nor a data set that the hub gives ({error}); "
                "without network, download it elsewhere and give its path with --source"
            ) from error
    else:
        raise ValueError(f"--source {source} does not exist; give a parquet or json file, a folder or a hub id")
    if hasattr(builder.config, "fragment_scan_options"):  # parquet, of which all that was read would stay in memory
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        builder.config.batch_size = 1024
    return builder.as_streaming_dataset()


def check_columns(source, row, wanted):
    if not set(wanted) <= set(row):
        raise ValueError(f"--source {source} has the columns {list(row)}; wanted {' and '.join(wanted)}")


def read_source(source):
    """All (nums, target) of an existing set."""
    rows = load_splits(source)["train"]
    check_columns(source, next(iter(rows), {}), ("nums", "target"))
    return [problem for some in rows.iter(4096) for problem in zip(some["nums"], some["target"], strict=True)]


def problem_id(nums, target):
    """What makes two problems the same: the numbers in any order, and the target."""
    return (*sorted(nums), target)


def split_source(problems, args):
    """Train and test of an existing set, without leakage (shuffled, duplicates dropped) or by TinyZero's own rows."""
    wanted = args.train_size + args.test_size
    if args.split == "unique":
        rows = len(problems)
        problems = list({problem_id(*problem): problem for problem in problems}.values())
        print(f"{rows:,} rows, {rows - len(problems):,} of them duplicates, {len(problems):,} different problems")
        problems = [problems[i] for i in np.random.default_rng(args.seed).permutation(len(problems))]
    if len(problems) < wanted:
        raise ValueError(
            f"--source has {len(problems):,} problems, --train_size {args.train_size:,} and --test_size "
            f"{args.test_size:,} want {wanted:,}: lower one of them"
        )
    train, test = problems[: args.train_size], problems[args.train_size : wanted]
    if args.split == "tinyzero":
        known = {problem_id(*problem) for problem in train}
        leaks = sum(problem_id(*problem) in known for problem in test)
        print(f"TinyZero's split leaks: {leaks:,} of {len(test):,} test rows ({leaks / len(test):.1%}) stand in train")
    return train, test


def drop_long_prompts(rows, tokenizer, max_prompt_length, counts):
    """Yields the rows whose prompt has at most max_prompt_length tokens, all where it is None; counts the others."""
    for some in batches(rows) if max_prompt_length else ():
        lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in some])["input_ids"]]
        kept = [row for row, length in zip(some, lengths, strict=True) if length <= max_prompt_length]
        counts[f"prompts over {max_prompt_length:,} tokens"] += len(some) - len(kept)
        yield from kept
    if not max_prompt_length:
        yield from rows


def load_tokenizer(name):
    """The tokenizer of a model folder or hub id, None for None. Raises ValueError where it cannot be had."""
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"tokenizer {name} cannot be had ({reason}): give the folder of one with --tokenizer"
        ) from error


def countdown(args, tokenizer):
    """Make or read the problems, write both files, print the counts."""
    template = render_template("countdown", args.template, tokenizer)
    splits = split_source(read_source(args.source), args) if args.source else generate(args)
    columns = {"nums": pa.list_(pa.int64()), "target": pa.int64()}
    truth = pa.struct({"target": pa.int64(), "numbers": pa.list_(pa.int64())})
    for split, problems in zip(("train", "test"), splits, strict=True):
        counts = Counter()
        rows = [
            make_example(
                {"nums": nums, "target": target},
                "countdown",
                fill_template(template, numbers=nums, target=target),
                {"target": target, "numbers": nums},
            )
            for nums, target in problems
        ]
        rows = list(drop_long_prompts(rows, tokenizer, args.max_prompt_length, counts))
        _, first = write_rows(args.local_dir, split, rows, schema(columns, truth), counts)
        describe(f"{args.local_dir}/{split}.parquet", rows, counts)
    show(args.local_dir, first)


def describe(path, rows, dropped):
    """One line a file: its rows by how many numbers they have and whether + and - are enough."""
    counts = []
    for k in sorted({len(row["nums"]) for row in rows}):
        same = [row for row in rows if len(row["nums"]) == k]
        sums = solvable_by_sums(np.array([row["nums"] for row in same]), np.array([row["target"] for row in same]))
        counts.append(f"{len(same):,} of {k} numbers ({1 - sums.mean():.1%} need * or /)")
    print(f"{path}: {len(rows):,} problems, {', '.join(counts)}{list_counts(dropped)}")


def multiply(args, tokenizer):
    """Different products of an N- and an M-digit number; a * b and b * a are the same problem."""
    rng = np.random.default_rng(args.seed)
    ranges = [(10 ** (digits - 1), 10**digits) for digits in args.digits]
    sizes = [high - low for low, high in ranges]
    existing = sizes[0] * (sizes[0] + 1) // 2 if ranges[0] == ranges[1] else sizes[0] * sizes[1]
    wanted = args.train_size + args.test_size
    if wanted > existing:
        raise ValueError(
            f"{existing:,} different products of {args.digits[0]} x {args.digits[1]} digits exist, wanted {wanted:,}: "
            "lower --train_size and --test_size, or give more --digits"
        )
    problems = {}
    while len(problems) < wanted:
        for left, right in zip(*(rng.integers(low, high, wanted).tolist() for low, high in ranges), strict=True):
            problems.setdefault((min(left, right), max(left, right)), (left, right))
    problems = [list(problems.values())[i] for i in rng.permutation(len(problems))[:wanted]]
    template = render_template("multiply", args.template, tokenizer)
    for split, part in (("train", problems[: args.train_size]), ("test", problems[args.train_size :])):
        counts = Counter()
        rows = (
            make_example(
                {"product": str(left * right)},
                "multiply",
                fill_template(template, left=left, right=right),
                str(left * right),
            )
            for left, right in part
        )
        rows = drop_long_prompts(rows, tokenizer, args.max_prompt_length, counts)
        written, first = write_rows(args.local_dir, split, rows, schema({"product": pa.string()}), counts)
        print(f"{args.local_dir}/{split}.parquet: {written:,} products{list_counts(counts)}")
    show(args.local_dir, first)


class Unusable(ValueError):
    """A row that cannot be trained on; the message is what such rows are counted as."""


def read_math(row):
    """(problem, gold, data_source, ability) of a row with MATH's columns: problem, and solution that ends in a box."""
    gold = last_box(row["solution"] or "")
    if gold is None or not math_answers.normalize(gold):
        raise Unusable("without a box that has content")
    return row["problem"], gold, None, "math"


def read_gsm8k(row):
    """The same of a row of GSM8K: question, and answer that ends in #### N."""
    gold = (row["answer"] or "").rpartition("####")[2].strip().replace(",", "")
    if "####" not in (row["answer"] or "") or not gold:
        raise Unusable("without an answer after ####")
    return row["question"], gold, None, "math"


UNIT_GOLD = re.compile(
    r"[-+]?[0-9][0-9.,]* ?(?:[ckm]m|[km]g|ml|km/h|m/s|hours?|minutes?|seconds?|days?|weeks?|months?|years?|people"
    r"|met(?:er|re)s?|degrees?|dollars?|cents?|yuan|rubles?|units?)(?:\^\{?-?[0-9]\}?)?"
)


def read_eurus(row):
    """The same of a row of Eurus-2-RL-Data; the gold of a code row is its tests, a JSON str."""
    gold = (row["reward_model"] or {}).get("ground_truth") or ""
    prompt = row["prompt"] or ""
    problem = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if row["ability"] == "code":
        try:
            sandbox.parse_tests(gold)
        except ValueError as error:
            raise Unusable("code rows with empty or unreadable tests") from error
    elif row["ability"] != "math":
        raise Unusable("rows that are neither math nor code")
    elif not math_answers.normalize(gold):
        raise Unusable("math rows with an empty gold")
    elif r"\boxed" in gold or r"\fbox" in gold:
        raise Unusable("math rows with a box in the gold")
    elif has_unit(gold):
        raise Unusable("math rows with a unit in the gold")
    return problem, gold, row["data_source"], row["ability"]


def has_unit(gold):
    r"""Whether a gold is a number with a unit, which a right answer may well leave out.

    >>> has_unit(r"5 \mathrm{~cm}"), has_unit("60 km/h"), has_unit(r"\text{east}"), has_unit("3x")
    (True, True, False, False)
    """
    without = math_answers.TEXT_GROUP.sub("", gold)
    beside = without != gold and math_answers.number(math_answers.normalize(without)) is not None
    return beside or UNIT_GOLD.fullmatch(math_answers.normalize(gold)) is not None


# Hub id, its configuration, the columns wanted, and the reader of a row
TEXT_TASKS = {
    "x_r1_750": ("xiaodongguaAIGC/X-R1-750", None, ("problem", "solution"), read_math),
    "math": ("DigitalLearningGmbH/MATH-lighteval", None, ("problem", "solution"), read_math),
    "gsm8k": ("openai/gsm8k", "main", ("question", "answer"), read_gsm8k),
    "eurus": ("PRIME-RL/Eurus-2-RL-Data", None, ("prompt", "ability", "reward_model", "data_source"), read_eurus),
}


def problem_key(problem, seed=0):
    """63 bits that tell problems apart, in an order that the seed shuffles."""
    text = f"{seed}\n{' '.join(problem.split())}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def text_rows(args, rows, tokenizer, counts):
    """Yields (key, row) of what is usable in a stream of rows in the source's own columns; counts what is not."""
    _, _, wanted, read = TEXT_TASKS[args.task]
    templates = {task: render_template(task, args.template, tokenizer) for task in ("maths", "code")}

    def examples():
        for row in rows:
            if not counts["rows"]:
                check_columns(args.source, row, wanted)
            counts["rows"] += 1
            try:
                problem, gold, data_source, ability = read(row)
                if not (problem or "").strip():
                    raise Unusable("without a problem")
            except Unusable as reason:
                counts[str(reason)] += 1
                continue
            columns = {"solution": gold if ability == "math" else None}
            if args.task == "eurus":
                columns["tests"] = gold if ability == "code" else None
            prompt = fill_template(templates["code" if ability == "code" else "maths"], problem=problem)
            key = problem_key(problem, args.seed)
            yield {"key": key, **make_example(columns, data_source or args.task, prompt, gold, ability)}

    for row in drop_long_prompts(examples(), tokenizer, args.max_prompt_length, counts):
        yield row.pop("key"), row


def text_task(args, tokenizer):
    """Reads a set of problems in words as streams, so that one of any size takes little memory, and writes both files.

    Test rows are a seeded choice of at most --test_size from the set's own test or validation split; where there is
    none, from train, and at most a fifth of it. They and duplicates are left out of train.
    """
    args.source = args.source or TEXT_TASKS[args.task][0]
    splits = load_splits(args.source, TEXT_TASKS[args.task][1])
    held_out = next((name for name in ("test", "validation") if name in splits), "train")
    columns = {"solution": pa.string()} | ({"tests": pa.string()} if args.task == "eurus" else {})
    if "train" not in splits:
        raise ValueError(f"--source {args.source} has the splits {list(splits)}, wanted train")

    counts, known = Counter(), set()

    def new_rows(split):
        for key, row in text_rows(args, splits[split], tokenizer, counts):
            if key in known:
                counts["that came before or stand in test"] += 1
            else:
                known.add(key)
                yield key, row

    chosen = heapq.nsmallest(args.test_size, new_rows(held_out), key=lambda keyed: keyed[0])
    if held_out == "train":
        chosen = chosen[: len(known) // 5 + 1]
    known = {key for key, _ in chosen}
    written, first = write_rows(args.local_dir, "test", (row for _, row in chosen), schema(columns), counts)
    path, rows = f"{args.local_dir}/test.parquet", counts["rows"]
    print(f"{path}: {written:,} of the {rows:,} rows of {held_out}{list_counts(counts)}")

    counts = Counter()
    written, _ = write_rows(args.local_dir, "train", (row for _, row in new_rows("train")), schema(columns), counts)
    path, rows = f"{args.local_dir}/train.parquet", counts["rows"]
    print(f"{path}: {written:,} of the {rows:,} rows of train{list_counts(counts)}")
    show(args.local_dir, first)


def mixture(args, tokenizer):
    """Equal parts of several folders of this script, in random order, as many as the smallest of them has."""
    rng = np.random.default_rng(args.seed)
    for split in ("train", "test"):
        tables = []
        for folder in args.folders:
            path = Path(folder) / f"{split}.parquet"
            if not path.is_file():
                raise ValueError(
                    f"{path} does not exist: write it first, with preprocess.py TASK --local_dir {folder}"
                )
            # These two differ in type from task to task, and no reward reads them
            table = pq.read_table(path)
            tables.append(table.drop_columns(["reward_model", "extra_info"]))
        part = min(table.num_rows for table in tables)
        tables = [table.take(np.sort(rng.permutation(table.num_rows)[:part])) for table in tables]
        mixed = pa.concat_tables(tables, promote_options="default")
        rows = mixed.take(rng.permutation(mixed.num_rows)).to_pylist()
        columns = mixed.schema.append(schema({}).field("extra_info"))
        _, first = write_rows(args.local_dir, split, rows, columns, Counter())
        print(f"{args.local_dir}/{split}.parquet: {part:,} problems of each of {' '.join(args.folders)}")
    show(args.local_dir, first)


def add_task(tasks, name, run, text, train_size=None, test_size=1024, form=True):
    """The subcommand of a task, with the flags that tasks share."""
    task = tasks.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    task.set_defaults(run=run, template="base", tokenizer=None, max_prompt_length=None)
    task.add_argument("--local_dir", default=f"data/{name}", help="folder to write train.parquet and test.parquet to")
    task.add_argument("--seed", type=int, default=0, help="seed of the problems and of their order")
    if train_size:
        task.add_argument("--train_size", type=int, default=train_size, help="problems in train")
    if test_size:
        task.add_argument("--test_size", type=int, default=test_size, help="problems in test (at most, if read)")
    if form:
        task.add_argument(
            "--template",
            choices=("base", "chat", "qwen-instruct"),
            default="base",
            help="prompt for a base or a chat model; qwen-instruct is TinyZero's name for chat",
        )
        task.add_argument("--tokenizer", help="model folder or hub id, for its chat template and --max_prompt_length")
        task.add_argument("--max_prompt_length", type=int, help="drop prompts of more tokens than this")
    return task


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", title="tasks")
    task = add_task(
        tasks, "countdown", countdown, "reach a target with the given numbers, each once, and + - * /", 327680
    )
    made = task.add_argument_group("problems made here")
    made.add_argument("--num_operands", type=int, nargs="+", default=[3, 4], help="how many numbers, in equal parts")
    made.add_argument("--min_number", type=int, default=1, help="smallest number")
    made.add_argument("--max_number", type=int, default=99, help="largest number")
    made.add_argument("--max_target", type=int, default=100, help=f"largest target; the smallest is {MIN_TARGET}")
    read = task.add_argument_group("problems read from an existing set")
    read.add_argument("--source", help="a file, a folder or a hub id with the columns nums and target")
    read.add_argument(
        "--split",
        choices=("unique", "tinyzero"),
        default="unique",
        help="unique: no duplicates, no leakage; tinyzero: its first --train_size rows and the next --test_size",
    )
    task = add_task(tasks, "multiply", multiply, "the product of two numbers", 32768)
    task.add_argument("--digits", type=int, nargs=2, default=[3, 3], help="how many digits the two numbers have")
    for name, (hub_id, _, columns, _) in TEXT_TASKS.items():
        task = add_task(tasks, name, text_task, f"problems in words, from {hub_id} or a copy of it", test_size=512)
        task.add_argument("--source", help=f"a file, a folder or a hub id with {', '.join(columns)}; default {hub_id}")
    # The model of configs/eurus_r1_distill_1.5b.yaml counts the tokens there
    task.set_defaults(tokenizer="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", max_prompt_length=1000)
    task = add_task(tasks, "mixture", mixture, "equal parts of other tasks, for one run", test_size=None, form=False)
    task.add_argument("folders", nargs="+", help="folders that this script has written")
    args = parser.parse_args(argv)

    if args.task == "countdown":
        if args.source:
            for action in made._group_actions:
                if getattr(args, action.dest) != action.default:
                    parser.error(f"--{action.dest} shapes problems made here and cannot go with --source")
        elif args.split != "unique":
            parser.error("--split tinyzero is about the rows of an existing set: give it with --source")
        if min(args.num_operands) < 2 or args.min_number < 1 or args.max_number < args.min_number:
            parser.error("wanted --num_operands of at least 2 and 1 <= --min_number <= --max_number")
        if args.max_target < MIN_TARGET:
            parser.error(f"wanted --max_target of at least {MIN_TARGET}")
    if args.task == "multiply" and not 1 <= min(args.digits) <= max(args.digits) <= 18:
        parser.error("wanted --digits from 1 to 18")
    if args.max_prompt_length and not args.tokenizer:
        parser.error("--max_prompt_length counts tokens and needs --tokenizer PATH_OR_HUB_ID")
    if min(getattr(args, "train_size", 1), getattr(args, "test_size", 1)) < 1:
        parser.error("wanted --train_size and --test_size of at least 1")
    try:
        args.run(args, load_tokenizer(args.tokenizer))
    except (OSError, ValueError) as error:
        sys.exit(f"preprocess.py: {error}")


if __name__ == "__main__":
    main()

"""Write a task's problems as data/<task>/{train,test}.parquet, ready for train_countdown.py.

    python preprocess.py countdown                         # make 327,680 + 1,024 problems, no network needed
    python preprocess.py countdown --source tasks.parquet  # or read an existing set (a file, a folder, a hub id)

Rows have TinyZero's schema: nums, target, data_source, prompt, ability, reward_model{style, ground_truth{target,
numbers}}, extra_info{split, index}. `prompt` is a plain string that already holds the prefilled assistant turn: given
as chat messages, TRL would close that turn. No test problem stands in train, whatever the order of its numbers,
unless TinyZero's own (leaking) split is asked for.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

MIN_TARGET = 10
# + - * /: products and quotients leave the range of targets more often than sums, so they are drawn more often.
OPERATION_SHARES = (0.1, 0.1, 0.4, 0.4)

# TinyZero's two templates (examples/data_preprocess/countdown.py). Training and evaluation both start from these.
TASK = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the "
    "final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
RESPONSE_START = "Let me solve this step by step.\n<think>"
SYSTEM = (
    "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides the user "
    "with the answer."
)
TEMPLATES = {
    "base": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
        f"User: {TASK}\nAssistant: {RESPONSE_START}"
    ),
    "qwen-instruct": (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{TASK}<|im_end|>\n"
        f"<|im_start|>assistant\n{RESPONSE_START}"
    ),
}


def render_template(name, tokenizer=None):
    """The prompt as text with {numbers} and {target} left open; "qwen-instruct" goes through the tokenizer's own chat
    template where a tokenizer is given, and through Qwen's ChatML where none is."""
    if name == "base" or tokenizer is None:
        return TEMPLATES[name]
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": TASK},
        {"role": "assistant", "content": RESPONSE_START},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)


def fill_template(template, nums, target):
    """The prompt of one problem. Not by str.format: a model's own chat template may hold other braces."""
    return template.replace("{numbers}", str(nums)).replace("{target}", str(target))


def make_example(nums, target, template, split, index):
    """One row in TinyZero's schema. `nums` list[int] and `target` int are the problem, `template` the open prompt."""
    return {
        "nums": nums,
        "target": target,
        "data_source": "countdown",
        "prompt": fill_template(template, nums, target),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": {"target": target, "numbers": nums}},
        "extra_info": {"split": split, "index": index},
    }


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


def read_source(source):
    """All (nums, target) of an existing set: a parquet or json file, a folder of them, or a hub id."""
    path = Path(source)
    if path.is_file():
        kind = {".jsonl": "json"}.get(path.suffix, path.suffix.lstrip("."))
        if kind not in ("parquet", "json"):
            raise ValueError(f"--source {source} is no parquet, json or jsonl file: give one of these")
        data = load_dataset(kind, data_files=str(path), split="train")
    elif path.is_dir() or (len(path.parts) == 2 and not path.is_absolute()):
        try:
            data = load_dataset(source, split="train")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--source {source} is neither a file or folder here nor a data set that the hub gives ({error}); "
                "without network, download it elsewhere and give its path"
            ) from error
    else:
        raise ValueError(f"--source {source} does not exist; give a parquet or json file, a folder or a hub id")
    if not {"nums", "target"} <= set(data.column_names):
        raise ValueError(f"--source {source} has the columns {data.column_names}; wanted nums and target")
    return list(zip(data["nums"], data["target"], strict=True))


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


def drop_long_prompts(rows, tokenizer, max_prompt_length, split):
    """The rows whose prompt has at most max_prompt_length tokens; says how many it dropped."""
    lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in rows])["input_ids"]]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_prompt_length]
    print(f"{split}: dropped {len(rows) - len(kept):,} of {len(rows):,} prompts over {max_prompt_length} tokens")
    if not kept:
        raise ValueError(f"every {split} prompt is over {max_prompt_length} tokens, the shortest has {min(lengths)}")
    return kept


def countdown(args):
    """Make or read the problems, write both files, print the counts and one whole example."""
    tokenizer = None
    if args.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    template = render_template(args.template, tokenizer)
    splits = split_source(read_source(args.source), args) if args.source else generate(args)
    Path(args.local_dir).mkdir(parents=True, exist_ok=True)
    for split, problems in zip(("train", "test"), splits, strict=True):
        rows = [make_example(nums, target, template, split, i) for i, (nums, target) in enumerate(problems)]
        if args.max_prompt_length:
            rows = drop_long_prompts(rows, tokenizer, args.max_prompt_length, split)
        path = Path(args.local_dir) / f"{split}.parquet"
        part = Path(f"{path}.part")  # a half-written file never carries the real name
        try:
            pq.write_table(pa.Table.from_pylist(rows), part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        describe(path, rows)
    print(f"\nOne example of {path}:")
    for key, value in rows[0].items():
        print(f"  {key}: {value!r}" if key != "prompt" else f"  prompt:\n{value}")


def describe(path, rows):
    """One line a file: its rows by how many numbers they have and whether + and - are enough."""
    counts = []
    for k in sorted({len(row["nums"]) for row in rows}):
        same = [row for row in rows if len(row["nums"]) == k]
        sums = solvable_by_sums(np.array([row["nums"] for row in same]), np.array([row["target"] for row in same]))
        counts.append(f"{len(same):,} of {k} numbers ({1 - sums.mean():.1%} need * or /)")
    print(f"{path}: {len(rows):,} problems, {', '.join(counts)}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", title="tasks")
    task = tasks.add_parser(
        "countdown",
        help="reach a target with the given numbers, each used exactly once, and + - * /",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    task.add_argument(
        "--local_dir", default="data/countdown", help="folder to write train.parquet and test.parquet to"
    )
    task.add_argument("--train_size", type=int, default=327680, help="problems in train")
    task.add_argument("--test_size", type=int, default=1024, help="problems in test")
    task.add_argument("--seed", type=int, default=0, help="seed of the problems and of their order")
    task.add_argument(
        "--template", choices=sorted(TEMPLATES), default="base", help="prompt for a base or a chat model"
    )
    task.add_argument("--tokenizer", help="model folder or hub id, for its chat template and --max_prompt_length")
    task.add_argument("--max_prompt_length", type=int, help="drop prompts of more tokens than this (256 is plenty)")
    args = parser.parse_args(argv)

    if args.source:
        for action in made._group_actions:
            if getattr(args, action.dest) != action.default:
                parser.error(f"--{action.dest} shapes problems made here and cannot go with --source")
    elif args.split != "unique":
        parser.error("--split tinyzero is about the rows of an existing set: give it with --source")
    if args.max_prompt_length and not args.tokenizer:
        parser.error("--max_prompt_length counts tokens and needs --tokenizer PATH_OR_HUB_ID")
    if min(args.num_operands) < 2 or args.min_number < 1 or args.max_number < args.min_number:
        parser.error("wanted --num_operands of at least 2 and 1 <= --min_number <= --max_number")
    if args.max_target < MIN_TARGET or args.train_size < 1 or args.test_size < 1:
        parser.error(f"wanted --max_target of at least {MIN_TARGET}, --train_size and --test_size of at least 1")
    try:
        {"countdown": countdown}[args.task](args)
    except (OSError, ValueError) as error:
        sys.exit(f"preprocess.py: {error}")


if __name__ == "__main__":
    main()

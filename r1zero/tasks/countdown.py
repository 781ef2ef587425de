"""Make Countdown's problems: reach a target with some numbers, each used once, and + - * /.

Draw them or read an existing set, drop duplicates, split without leakage, and sort problems into cells: the count of
numbers, and whether + and - are enough.
"""

import itertools
from fractions import Fraction

import numpy as np
import pyarrow as pa

from r1zero.tasks.problem_files import check_columns, load_splits
from r1zero.tasks.prompts import Prompt

# TinyZero's, from its examples/data_preprocess
PROMPT = Prompt(
    "",
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic "
    "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And "
    "return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.",
    "Let me solve this step by step.\n<think>",
)
COLUMNS = {"nums": pa.list_(pa.int64()), "target": pa.int64()}
TRUTH = pa.struct({"target": pa.int64(), "numbers": pa.list_(pa.int64())})
HELP = "reach a target with the given numbers, each once, and + - * /"
TRAIN_SIZE = 327_680  # TinyZero's
NUM_OPERANDS = [3, 4]
# Flags that shape drawn problems, with their defaults. None of them goes with --source.
MADE_HERE = {"min_number": 1, "max_number": 99, "min_target": 10, "max_target": 100}

# Draw products and quotients more often, because they leave the range of targets more often than sums
OPERATION_SHARES = {"+": 0.1, "-": 0.1, "*": 0.4, "/": 0.4}
DIVISION = list(OPERATION_SHARES).index("/")
DRAWS = 1 << 16  # expressions drawn at a time
DRAWS_A_ROUND = 8  # before duplicates are dropped
BARREN_ROUNDS = 8  # without a new problem, until the search gives up
MOST_NUMBERS = 10  # of a problem, to try its 2**k choices of signs

# The two kinds of problems, and their names in metrics: trackers restrict the characters
CELL_METRICS = {"+ - alone": "sums_suffice", "needs * or /": "needs_times_divide"}


def problem_id(nums, target):
    """Return a key that two problems share if they have the same numbers in any order and the same target."""
    return (*sorted(nums), target)


def problem_keys(nums, target):
    """Return (N,) int64 keys, equal for problems that differ only in the order of their numbers.

    nums: (N, k) ints, target: (N,) ints. Raises ValueError if k + 1 of the largest do not fit in 63 bits.
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
    """Return (N,) bools: whether + and - alone solve a problem, that is, one of the 2**k choices of signs.

    nums: (N, k) ints, target: (N,) ints.
    """
    solvable = np.zeros(len(nums), dtype=bool)
    for signs in itertools.product((1, -1), repeat=nums.shape[1]):
        solvable |= nums @ np.array(signs) == target
    return solvable


def solve(nums, target):
    """Return an expression (str) that uses each number once and has the target as its value.

    nums: list of ints; target: int. Raises ValueError if there is none. Five numbers may take half a minute.

    >>> solve([3, 8, 3, 8], 24)
    '(8/(3-(8/3)))'
    """
    found = search([(Fraction(number), str(number)) for number in nums], target)
    if found is None:
        raise ValueError(f"{target} cannot be reached with {nums}")
    return found


def search(terms, target):
    """Return an expression of all terms, (value, text) each, whose value is the target, or None."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for (i, (a, left)), (j, (b, right)) in itertools.permutations(enumerate(terms), 2):
        others = [term for place, term in enumerate(terms) if place not in (i, j)]
        joined = [(a - b, f"({left}-{right})")]
        if i < j:  # the order of these two makes no difference
            joined += [(a + b, f"({left}+{right})"), (a * b, f"({left}*{right})")]
        if b:
            joined.append((a / b, f"({left}/{right})"))
        for term in joined:
            found = search([*others, term], target)
            if found is not None:
                return found
    return None


def cells(nums, target):
    """Return the cell of each Countdown problem: ("3 numbers", "+ - alone"), ("4 numbers", "needs * or /") and so on.

    nums: N lists of ints, target: N ints, None in rows of another task. Returns N pairs, None for those rows and for
    problems of more than MOST_NUMBERS. A policy that never multiplies or divides solves "+ - alone" at most.
    """
    places = {}  # the rows of each count of numbers
    for i, numbers in enumerate(nums):
        if numbers is not None and len(numbers) <= MOST_NUMBERS:
            places.setdefault(len(numbers), []).append(i)
    found = [None] * len(nums)
    for k, rows in places.items():
        sums_suffice = solvable_by_sums(np.array([nums[i] for i in rows]), np.array([target[i] for i in rows]))
        for i, suffice in zip(rows, sums_suffice, strict=True):
            found[i] = (f"{k} numbers", "+ - alone" if suffice else "needs * or /")
    return found


def draw_problems(rng, draws, num_operands, min_number, max_number, min_target, max_target):
    """Draw random expressions, and return as problems those whose exact value is a whole number in range.

    Join two random values by a random operation until one is left, so that every shape of expression comes up.
    Returns nums (N, num_operands) and target (N,), N <= draws.
    """
    nums = rng.integers(min_number, max_number + 1, (draws, num_operands))
    top, bottom = nums.copy(), np.ones_like(nums)  # every value is the fraction top / bottom
    rows = np.arange(draws)
    alive = np.ones(draws, dtype=bool)
    for left in range(num_operands, 1, -1):
        i = rng.integers(0, left, draws)
        j = (i + rng.integers(1, left, draws)) % left
        operation = rng.choice(4, draws, p=list(OPERATION_SHARES.values()))
        a, b = top[rows, i], bottom[rows, i]  # a / b is joined with c / d
        c, d = top[rows, j], bottom[rows, j]
        ad, bc, bd = a * d, b * c, b * d
        by_zero = (operation == DIVISION) & (c == 0)
        alive &= ~by_zero
        top[rows, i] = np.choose(operation, [ad + bc, ad - bc, a * c, ad])
        bottom[rows, i] = np.choose(operation, [bd, bd, bd, np.where(by_zero, 1, bc)])
        top[rows, j], bottom[rows, j] = top[:, left - 1], bottom[:, left - 1]  # close the gap
    top, bottom = top[:, 0], bottom[:, 0]
    target = top // bottom
    alive &= (target * bottom == top) & (target >= min_target) & (target <= max_target)
    return nums[alive], target[alive]


def make_problems(rng, size, num_operands, min_number, max_number, min_target, max_target):
    """Draw `size` different problems in random order: nums (size, num_operands), target (size,).

    Raises ValueError if so many different problems do not exist, or are too rare to find.
    """
    ranges = min_number, max_number, min_target, max_target
    nums = np.empty((0, num_operands), dtype=np.int64)
    target = np.empty(0, dtype=np.int64)
    barren_rounds = 0
    while len(nums) < size:
        known = len(nums)
        every_nums, every_target = [nums], [target]
        for _ in range(DRAWS_A_ROUND):
            drawn_nums, drawn_target = draw_problems(rng, DRAWS, num_operands, *ranges)
            every_nums.append(drawn_nums)
            every_target.append(drawn_target)
        nums, target = np.concatenate(every_nums), np.concatenate(every_target)
        if len(nums):
            first = np.unique(problem_keys(nums, target), return_index=True)[1]
            nums, target = nums[first], target[first]
        barren_rounds = 0 if len(nums) > known else barren_rounds + 1
        if barren_rounds == BARREN_ROUNDS:
            raise ValueError(
                f"found {len(nums):,} different problems of {num_operands} numbers {min_number}..{max_number} with "
                f"targets {min_target}..{max_target}, wanted {size:,}: lower --train_size and --test_size, or widen "
                "--max_number or --max_target"
            )
    keep = rng.permutation(len(nums))[:size]
    return nums[keep], target[keep]


def make_splits(args):
    """Draw train and test, two lists of (nums, target), with equal parts of each count of numbers."""
    rng = np.random.default_rng(args.seed)
    ranges = args.min_number, args.max_number, args.min_target, args.max_target
    counts = args.num_operands or NUM_OPERANDS
    parts = len(counts)
    train, test = [], []
    for part, k in enumerate(counts):  # the first parts take the remainders
        n_train = args.train_size // parts + int(part < args.train_size % parts)
        n_test = args.test_size // parts + int(part < args.test_size % parts)
        nums, target = make_problems(rng, n_train + n_test, k, *ranges)
        problems = list(zip(nums.tolist(), target.tolist(), strict=True))
        train += problems[:n_train]
        test += problems[n_train:]
    return shuffled(train, rng), shuffled(test, rng)


def shuffled(problems, rng):
    """Return the problems in random order, as a list."""
    return [problems[i] for i in rng.permutation(len(problems))]


def read_source(source):
    """Read all problems of an existing set (a file, a folder, a hub id), as a list of (nums, target).

    Raises ValueError if a problem lacks its numbers or its target.
    """
    rows = load_splits(source)["train"]
    check_columns(source, next(iter(rows), {}), ("nums", "target"))
    problems = []
    for some in rows.iter(4096):
        problems += zip(some["nums"], some["target"], strict=True)
    for row, (nums, target) in enumerate(problems):
        if not nums or not all(isinstance(number, int) for number in (*nums, target)):
            raise ValueError(
                f"--source {source} has nums {nums} and target {target} in row {row}, wanted whole numbers: mend or "
                "remove such rows"
            )
    return problems


def split_source(problems, args):
    """Split an existing set into train and test: shuffled and without duplicates, or by TinyZero's own rows."""
    wanted = args.train_size + args.test_size
    if args.num_operands:
        problems = [(nums, target) for nums, target in problems if len(nums) in args.num_operands]
    if args.split == "unique":
        rows = len(problems)
        problems = list({problem_id(*problem): problem for problem in problems}.values())
        print(f"{rows:,} rows, {rows - len(problems):,} of them duplicates, {len(problems):,} different problems")
        problems = shuffled(problems, np.random.default_rng(args.seed))
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


def add_flags(command):
    """Add the flags of preprocess.py's subcommand: those that shape drawn problems, and those that read a set."""
    counts = "how many numbers: made here in equal parts, by default 3 and 4, or kept of --source, by default all"
    command.add_argument("--num_operands", type=int, nargs="+", help=counts)
    made = command.add_argument_group("problems made here")
    made.add_argument("--min_number", type=int, help="smallest number")
    made.add_argument("--max_number", type=int, help="largest number")
    made.add_argument("--min_target", type=int, help="smallest target")
    made.add_argument("--max_target", type=int, help="largest target")
    command.set_defaults(**MADE_HERE)
    read = command.add_argument_group("problems read from an existing set")
    read.add_argument("--source", help="a file, a folder or a hub id with the columns nums and target")
    read.add_argument(
        "--split",
        choices=("unique", "tinyzero"),
        default="unique",
        help="unique: no duplicates, no leakage; tinyzero: its first --train_size rows and the next --test_size",
    )


def wrong_flags(args):
    """Return an error line for the flags, or None."""
    if args.source:
        for name, default in MADE_HERE.items():
            if getattr(args, name) != default:
                return f"--{name} shapes problems made here and cannot go with --source"
        if args.num_operands and args.split != "unique":
            return "--split tinyzero takes the set's own rows: leave out --num_operands"
    elif args.split != "unique":
        return "--split tinyzero is about the rows of an existing set: give it with --source"
    if min(args.num_operands or NUM_OPERANDS) < 2 or args.min_number < 1 or args.max_number < args.min_number:
        return "wanted --num_operands of at least 2 and 1 <= --min_number <= --max_number"
    if args.max_target < args.min_target:
        return f"wanted --max_target of at least {args.min_target}"


def problems(args):
    """Return the problems of train and test, two lists of (columns, slots of the prompt, ground truth)."""
    splits = split_source(read_source(args.source), args) if args.source else make_splits(args)
    return [[example(*problem) for problem in split] for split in splits]


def example(nums, target):
    """Return a problem as (columns, slots of the prompt, ground truth), a dict each."""
    truth = {"target": target, "numbers": nums}
    return {"nums": nums, "target": target}, truth, truth


def contents(rows):
    """Return a line (str) on the contents of some rows: of each count of numbers, the share that needs * or /.

    >>> contents([{"nums": [1, 2, 3], "target": 6}, {"nums": [2, 5, 9], "target": 45}])
    '2 problems, 2 of 3 numbers (50.0% need * or /)'
    """
    parts = [f"{len(rows):,} problems"]
    for k in sorted({len(row["nums"]) for row in rows}):
        own = [row for row in rows if len(row["nums"]) == k]
        suffice = solvable_by_sums(np.array([row["nums"] for row in own]), np.array([row["target"] for row in own]))
        parts.append(f"{len(own):,} of {k} numbers ({1 - suffice.mean():.1%} need * or /)")
    return ", ".join(parts)

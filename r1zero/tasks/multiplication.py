"""Make the problems of TinyZero's second task: the product of two numbers."""

import numpy as np
import pyarrow as pa

from r1zero.tasks.prompts import Prompt

# TinyZero's, from its examples/data_preprocess
PROMPT = Prompt(
    " The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> RESULT_NUMBER </answer>.",
    "Give me the answer of the following equation: {left} * {right} =",
    "Let me solve this step by step.\n<think>",
)
COLUMNS = {"product": pa.string()}
TRUTH = pa.string()
HELP = "the product of two numbers"
TRAIN_SIZE = 32_768


def add_flags(command):
    """Add the flags of preprocess.py's subcommand."""
    command.add_argument("--digits", type=int, nargs=2, default=[3, 3], help="how many digits the two numbers have")


def wrong_flags(args):
    """Return an error line for the flags, or None."""
    if not 1 <= min(args.digits) <= max(args.digits) <= 18:
        return "wanted --digits from 1 to 18"


def problems(args):
    """Return the problems of train and test, two lists of (columns, slots of the prompt, ground truth)."""
    factors = draw_factors(args.digits, args.train_size + args.test_size, np.random.default_rng(args.seed))
    found = []
    for left, right in factors:
        product = str(left * right)
        found.append(({"product": product}, {"left": left, "right": right}, product))
    return found[: args.train_size], found[args.train_size :]


def contents(rows):
    """Return a line (str) on the contents of some rows."""
    return f"{len(rows):,} products"


def draw_factors(digits, wanted, rng):
    """Draw `wanted` different pairs (left, right) of so many digits each. a * b and b * a are the same problem.

    digits: two ints. Raises ValueError if fewer pairs exist.
    """
    (left_low, left_high), (right_low, right_high) = ((10 ** (n - 1), 10**n) for n in digits)
    existing = (left_high - left_low) * (right_high - right_low)
    if digits[0] == digits[1]:
        existing = (existing + left_high - left_low) // 2  # the squares have no other order
    if wanted > existing:
        raise ValueError(
            f"{existing:,} different products of {digits[0]} x {digits[1]} digits exist, wanted {wanted:,}: "
            "lower --train_size and --test_size, or give more --digits"
        )
    found = {}
    while len(found) < wanted:
        lefts = rng.integers(left_low, left_high, wanted).tolist()
        rights = rng.integers(right_low, right_high, wanted).tolist()
        for left, right in zip(lefts, rights, strict=True):
            found.setdefault((min(left, right), max(left, right)), (left, right))
    pairs = list(found.values())
    return [pairs[i] for i in rng.permutation(len(pairs))[:wanted]]

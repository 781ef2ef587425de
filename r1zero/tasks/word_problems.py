"""Read problems in words: MATH, GSM8K, X-R1-750 and Eurus-2-RL-Data, each in its own columns."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from r1zero.grading import latex
from r1zero.grading.extract import last_box
from r1zero.grading.program_tests import parse_tests
from r1zero.tasks.problem_files import ROWS_READ, check_columns, make_example
from r1zero.tasks.prompts import Prompt, fill_template

# The x_r1_750 recipe's
MATHS = Prompt(
    r" The reasoning process and answer are enclosed within <think> </think> and \boxed{} tags, "
    r"respectively, i.e., <think> reasoning process here </think> The answer is \boxed{your answer}.",
    "{problem}",
    "Let me solve this step by step. <think>",
)
CODE = Prompt(
    " The reasoning process is enclosed within <think> </think> tags, and the answer is one whole Python program "
    "in a ```python block, i.e., <think> reasoning process here </think>\n```python\nprogram here\n```",
    "{problem}",
    "Let me solve this step by step. <think>",
)

UNIT_GOLD = re.compile(
    r"[-+]?[0-9][0-9.,]* ?(?:[ckm]m|[km]g|ml|km/h|m/s|hours?|minutes?|seconds?|days?|weeks?|months?|years?|people"
    r"|met(?:er|re)s?|degrees?|dollars?|cents?|yuan|rubles?|units?)(?:\^\{?-?[0-9]\}?)?"
)


class Unusable(ValueError):
    """An error for a row that cannot be trained on. Its message is the reason in the counts of dropped rows."""


@dataclass
class TextProblem:
    """Holds a problem and its gold: a maths answer in LaTeX, or the tests of code (a JSON str)."""

    problem: str
    gold: str
    ability: str = "math"  # or "code"
    data_source: str | None = None  # if the set mixes several; otherwise the task's name


def read_math(row):
    """Read a row of MATH: problem, and a solution that ends in a box. Raises Unusable."""
    gold = last_box(row["solution"] or "")
    if gold is None or not latex.normalize(gold):
        raise Unusable("without a box that has content")
    return TextProblem(row["problem"], gold)


def read_gsm8k(row):
    """Read a row of GSM8K: question, and an answer that ends in #### and a number. Raises Unusable."""
    _, hashes, gold = (row["answer"] or "").rpartition("####")
    gold = gold.strip().replace(",", "")
    if not hashes or not gold:
        raise Unusable("without an answer after ####")
    return TextProblem(row["question"], gold)


def read_eurus(row):
    """Read a row of Eurus-2-RL-Data: prompt (text or chat), reward_model with the gold, ability, data_source."""
    gold = (row["reward_model"] or {}).get("ground_truth") or ""
    problem = row["prompt"] or ""
    if not isinstance(problem, str):
        problem = problem[-1]["content"]
    if row["ability"] == "code":
        try:
            parse_tests(gold)
        except ValueError as error:
            raise Unusable("code rows with empty or unreadable tests") from error
    elif row["ability"] != "math":
        raise Unusable("rows that are neither math nor code")
    elif not latex.normalize(gold):
        raise Unusable("math rows with an empty gold")
    elif r"\boxed" in gold or r"\fbox" in gold:
        raise Unusable("math rows with a box in the gold")
    elif has_unit(gold):
        raise Unusable("math rows with a unit in the gold")
    return TextProblem(problem, gold, row["ability"], row["data_source"])


def has_unit(gold):
    r"""Return whether a gold is a number with a unit: a right answer may leave the unit out.

    >>> has_unit(r"5 \mathrm{~cm}"), has_unit("60 km/h"), has_unit(r"\text{east}"), has_unit("3x")
    (True, True, False, False)
    """
    without_words = latex.TEXT_GROUP.sub("", gold)
    if without_words != gold and latex.number(latex.normalize(without_words)) is not None:
        return True
    return UNIT_GOLD.fullmatch(latex.normalize(gold)) is not None


@dataclass(frozen=True)
class TextTask:
    """Holds the source of a set of problems, and the function that reads a row of it."""

    hub_id: str
    columns: tuple[str, ...]  # that `read` needs
    read: Callable  # dict of a row -> TextProblem, or raises Unusable
    configuration: str | None = None  # of the set on the hub
    tokenizer: str | None = None  # the defaults of --tokenizer and --max_prompt_length
    max_prompt_length: int | None = None


TEXT_TASKS = {
    "x_r1_750": TextTask("xiaodongguaAIGC/X-R1-750", ("problem", "solution"), read_math),
    "math": TextTask("DigitalLearningGmbH/MATH-lighteval", ("problem", "solution"), read_math),
    "gsm8k": TextTask("openai/gsm8k", ("question", "answer"), read_gsm8k, configuration="main"),
    "eurus": TextTask(
        "PRIME-RL/Eurus-2-RL-Data",
        ("prompt", "ability", "reward_model", "data_source"),
        read_eurus,
        # The model of configs/eurus_r1_distill_1.5b.yaml counts the tokens
        tokenizer="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        max_prompt_length=1000,
    ),
}


def problem_key(problem, seed=0):
    """Hash a problem (str) to 63 bits. The seed shuffles the order of the keys."""
    text = f"{seed}\n{' '.join(problem.split())}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def examples(name, rows, source, templates, seed, counts):
    """Yield the usable rows of a stream in TinyZero's schema, each with the `key` of its problem.

    name: a key of TEXT_TASKS; templates: {"maths" or "code": prompt template}; counts: a Counter of the rows read, and
    of the unusable ones by reason. Raises ValueError with the source's name if the first row lacks a column.
    """
    task = TEXT_TASKS[name]
    for place, row in enumerate(rows):
        if place == 0:
            check_columns(source, row, task.columns)
        counts[ROWS_READ] += 1
        try:
            found = task.read(row)
            if not (found.problem or "").strip():
                raise Unusable("without a problem")
        except Unusable as reason:
            counts[str(reason)] += 1
            continue
        is_code = found.ability == "code"
        columns = {"solution": None if is_code else found.gold}
        if name == "eurus":  # the one set with code, so the one with tests
            columns["tests"] = found.gold if is_code else None
        prompt = fill_template(templates["code" if is_code else "maths"], problem=found.problem)
        row = make_example(columns, found.data_source or name, prompt, found.gold, found.ability)
        yield {"key": problem_key(found.problem, seed), **row}

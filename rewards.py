"""Verifiable rewards: pure functions of a completion and its row's columns, with TRL's reward signature.

A reward function's name is its metric's name in every tracker (`rewards/<name>/mean`). Nothing here runs what a model
wrote: an answer is split into tokens, parsed, and worked out in exact fractions.
"""

import operator
import re
from fractions import Fraction

import math_answers
import sandbox

FORMAT_REWARD = 0.1
CORRECT_REWARD = 1.0

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is matched with its backslash, and not counted
UNBRACED = re.compile(r"[^\s$]*")
TOKEN = re.compile(r"[0-9]+|[-+*/()]")
TOKEN_CHARACTERS = "0123456789+-*/() \t\r\n"  # ASCII on purpose: any other character makes the answer wrong


def completion_text(completion):
    """The text of a completion that TRL gives as a string or as a list of chat messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def extract_answer(text):
    """The content of the last complete <answer>...</answer>, stripped, or None where there is none.

    >>> extract_answer("<answer>1+2</answer> no, wait: <answer> 2*3 </answer>")
    '2*3'
    """
    last_close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, last_close) if last_close >= 0 else -1
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


def tokenize(text):
    """Numbers, operators and parentheses as list[str]; ValueError where anything but them and whitespace is there."""
    if text.strip(TOKEN_CHARACTERS):
        raise ValueError("a character that is no part of an expression")
    return TOKEN.findall(text)


def divide(a, b):
    """The exact quotient: an int where it is whole, for speed, otherwise a Fraction."""
    return a // b if type(a) is type(b) is int and a % b == 0 else Fraction(a, b)


BINARY = {"+": (1, operator.add), "-": (1, operator.sub), "*": (2, operator.mul), "/": (2, divide)}
SIGN = {"+": (3, operator.pos), "-": (3, operator.neg)}  # binds tighter than every binary operator


def apply_down_to(precedence, values, pending):
    """Carries out the operators on top of the stack `pending` that bind at least as tightly as `precedence`."""
    while pending and pending[-1] and pending[-1][0] >= precedence:
        rank, function = pending.pop()
        if rank == 3:
            values[-1] = function(values[-1])
        else:
            right = values.pop()
            values[-1] = function(values[-1], right)


def evaluate(tokens):
    """The exact value of an infix expression, an int or a Fraction.

    Shunting-yard on two stacks rather than recursion, so that no depth of parentheses can exhaust the interpreter.
    Raises ValueError where the expression is malformed and ZeroDivisionError where it divides by zero.
    """
    values, pending = [], []  # pending: (precedence, function), or None for an open parenthesis
    value_is_next = True
    for token in tokens:
        if value_is_next:
            if token.isdigit():
                values.append(int(token))
                value_is_next = False
            elif token == "(":
                pending.append(None)
            elif token in SIGN:
                pending.append(SIGN[token])
            else:
                raise ValueError(f"{token} where a value belongs")
        elif token in BINARY:
            apply_down_to(BINARY[token][0], values, pending)
            pending.append(BINARY[token])
            value_is_next = True
        elif token == ")":
            apply_down_to(0, values, pending)
            if not pending:
                raise ValueError("a parenthesis that was never opened")
            pending.pop()
        else:
            raise ValueError(f"{token} where an operator belongs")
    if value_is_next:
        raise ValueError("an expression that stops where a value belongs")
    apply_down_to(0, values, pending)
    if pending:
        raise ValueError("a parenthesis that was never closed")
    return values[0]


def solves_countdown(answer, nums, target):
    """Whether `answer` (str) is an expression in exactly the numbers `nums` (list[int]) whose value is `target` (int).

    >>> solves_countdown("(25 - 3) * 2", [2, 3, 25], 44), solves_countdown("25 + 2*9", [2, 9, 25, 3], 43)
    (True, False)
    """
    try:
        tokens = tokenize(answer)
        # Compared as text before anything is worked out: 07 is not 7, and no number is larger than those given.
        if sorted([token for token in tokens if token.isdigit()]) != sorted(map(str, nums)):
            return False
        return evaluate(tokens) == target
    except (ValueError, ZeroDivisionError):
        return False


def log_rates(log_metric, task, own, batch_size):
    """Logs `accuracy` and `format_rate` as plain fractions, and `accuracy/<task>` where tasks share a batch.

    own: whether it is right and whether it has an answer, for each row of the task. One value a row, because TRL
    averages what is logged: so the mean over tasks and processes is the mean over rows.
    """
    for right, answered in own if log_metric is not None else ():
        log_metric("accuracy", float(right))
        log_metric("format_rate", float(answered))
        if len(own) < batch_size:
            log_metric(f"accuracy/{task}", float(right))


def grade(task, completions, golds, extract, check, log_metric, wrong=FORMAT_REWARD, right=CORRECT_REWARD):
    """What all rewards share: the answers of a batch, their verdicts, their rewards, and the metrics of these.

    golds: B of what a right answer is judged by, None in rows of another task; extract(text) gives the answer in a
    completion, or None; check(answers, golds) says of each whether it is right, with None for undecided.
    Returns rewards (B floats, None in rows of another task), answers (B strs or None) and verdicts (B strs).
    """
    answers = [
        None if gold is None else extract(completion_text(completion))
        for completion, gold in zip(completions, golds, strict=True)
    ]
    answered = [(answer, gold) for answer, gold in zip(answers, golds, strict=True) if answer is not None]
    checked = iter(check(*zip(*answered, strict=True)) if answered else ())
    names = {True: "correct", False: "wrong", None: "undecided"}
    verdicts = [
        names[next(checked)] if answer is not None else "" if gold is None else "no answer"
        for answer, gold in zip(answers, golds, strict=True)
    ]
    own = [verdict for verdict in verdicts if verdict]
    log_rates(log_metric, task, [(verdict == "correct", verdict != "no answer") for verdict in own], len(verdicts))
    values = {"": None, "no answer": 0.0, "wrong": wrong, "undecided": wrong, "correct": right}
    return [values[verdict] for verdict in verdicts], answers, verdicts


def countdown_reward(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    """TinyZero's Countdown score: 0 without an answer, 0.1 for a wrong one, 1.0 for a right one.

    completions: B texts (or chat messages) that follow the prompt; nums: B lists of ints; target: B ints, None in rows
    of another task. Returns B floats, None for those rows. Logs `times_divide_rate`, the share of answers with * or /,
    and the columns target, numbers, equation, verdict for the table of completions.

    >>> countdown_reward(["20+5 = 25 </think> <answer>20 + 5 * 2</answer>"] * 2, [[2, 5, 20]] * 2, [30, 44])
    [1.0, 0.1]

    Source: compute_score in TinyZero's verl/utils/reward_score/countdown.py, which evaluates the answer as Python and
    allows an error of 1e-5. Stricter here: exact arithmetic, so a near miss is wrong, and only + - * / ( ) and plain
    decimal integers, so `**`, `//`, `2.5*10` from [2, 5, 10], `07` and `equation = target` are wrong. More lenient
    here: the last complete answer counts wherever it stands, not only on the last line, and it may span lines.
    """

    def check(answers, problems):
        return [solves_countdown(answer, *problem) for answer, problem in zip(answers, problems, strict=True)]

    problems = [None if row[1] is None else row for row in zip(nums, target, strict=True)]
    rewards, answers, verdicts = grade("countdown", completions, problems, extract_answer, check, log_metric)
    for answer in answers if log_metric is not None else ():
        if answer is not None:
            log_metric("times_divide_rate", float("*" in answer or "/" in answer))
    if log_extra is not None:
        log_extra("target", list(target))
        log_extra("numbers", [row_nums and str(row_nums) for row_nums in nums])
        log_extra("equation", answers)
        log_extra("verdict", verdicts)
    return rewards


def multiplication_reward(completions, product, log_extra=None, log_metric=None, **kwargs):
    """TinyZero's score for its second task: 0 without an answer, 0.1 for a wrong one, 1.0 for the product.

    completions: B texts (or chat messages); product: B products, decimal strs or ints, None in rows of another task.
    Returns B floats, None for those rows. The answer is a plain decimal integer: `3_91`, `391.0`, `17*23` and
    `= 391` are wrong. It may span lines, and the last complete one counts.

    >>> multiplication_reward(["<answer>\\n391\\n</answer>", "<answer>3_91</answer>", "391"], ["391"] * 3)
    [1.0, 0.1, 0.0]

    Source: compute_score in TinyZero's verl/utils/reward_score/multiply.py, which reads the last line alone.
    """

    def check(answers, products):
        return [answer == str(product) for answer, product in zip(answers, products, strict=True)]

    rewards, answers, verdicts = grade("multiplication", completions, product, extract_answer, check, log_metric)
    if log_extra is not None:
        log_extra("product", [None if row_product is None else str(row_product) for row_product in product])
        log_extra("stated_product", answers)
        log_extra("product_verdict", verdicts)
    return rewards


def last_box(text):
    r"""The content, stripped, of the last \boxed{...} or \fbox{...} that closes and has content, or None.

    Braces may nest to any depth, escaped ones do not count, and `\boxed 5` is a box too. Linear in the text.

    >>> last_box(r"\boxed{1} so \boxed{\frac{1}{2}}, that is \boxed{"), last_box(r"\boxed 5."), last_box(r"\boxed{ }")
    ('\\frac{1}{2}', '5', None)
    """
    end = len(text)
    for command in reversed(list(BOX.finditer(text))):
        start = command.end()
        if text.startswith("{", start):
            depth, content = 0, None
            for token in BRACE.finditer(text, start, end):
                depth += {"{": 1, "}": -1}.get(token[0], 0)
                if depth == 0:
                    content = text[start + 1 : token.start()].strip()
                    break
            if content is None:
                end = command.start()  # what opens before this and has not closed here never closes
        else:
            content = UNBRACED.match(text, start)[0].rstrip(".,;:")
        if content:
            return content
    return None


def boxed_math_reward(
    completions,
    solution=None,
    ground_truth=None,
    format_reward=0.1,
    correct_reward=1.0,
    log_extra=None,
    log_metric=None,
    **kwargs,
):
    r"""0 without a \boxed{...} that has content, `format_reward` with one, `correct_reward` more for a right answer.

    completions: B texts (or chat messages); solution, or ground_truth: B golds in LaTeX, as an answer alone or as a
    text that ends in its box, None in rows of another task. Returns B floats, None for those rows; ValueError without
    either column. The last box counts. How answers are compared, and in what time, stands in math_answers.py; what
    could not be decided is wrong, and `undecided` is its share.

    >>> boxed_math_reward([r"\boxed{0.5}", r"\boxed{2}", "1/2"], [r"so it is \boxed{\frac{1}{2}}"] * 3)
    [1.1, 0.1, 0.0]

    Source: the x_r1_750 recipe on veRL, for the values; its pattern takes the first box, up to its first closing
    brace. TRL's accuracy_reward, for math-verify; it leaves the wrapping of a bare gold to the data.
    """
    golds = ground_truth if solution is None else solution
    if golds is None:
        raise ValueError(f"boxed_math_reward found the columns {sorted(kwargs)}, wanted solution or ground_truth")
    golds = [None if gold is None else last_box(str(gold)) or str(gold) for gold in golds]
    rewards, answers, verdicts = grade(
        "boxed_math",
        completions,
        golds,
        last_box,
        lambda answers, golds: math_answers.equal(golds, answers),
        log_metric,
        wrong=format_reward,
        right=format_reward + correct_reward,
    )
    if log_metric is not None:
        for verdict in filter(None, verdicts):
            log_metric("undecided", float(verdict == "undecided"))
    if log_extra is not None:
        log_extra("gold", golds)
        log_extra("boxed", answers)
        log_extra("boxed_verdict", verdicts)
    return rewards


def code_reward(completions, tests, log_extra=None, log_metric=None, **kwargs):
    r"""The share of its tests that the Python program of a completion passes: 0 without a program, 1.0 for all.

    completions: B texts (or chat messages); tests: B JSON strs {"inputs": [...], "outputs": [...], "fn_name"
    optional}, None in rows of another task. Returns B floats, None for those rows; ValueError for tests that cannot
    be read, RuntimeError where there is no sandbox. The last complete ```python block counts, and runs in sandbox.py,
    10 s a program.

    >>> tests = '{"inputs": ["1\\n", "2\\n"], "outputs": ["2\\n", "3\\n"]}'
    >>> code_reward(["```python\nprint(2)\n```", "print(2)"], [tests, tests])  # doctest: +SKIP
    [0.5, 0.0]

    Source: the code rows of PRIME-RL/Eurus-2-RL-Data, and their scoring in verl's prime_code.
    """
    own = [i for i, row_tests in enumerate(tests) if row_tests is not None]
    programs = {i: sandbox.python_block(completion_text(completions[i])) for i in own}
    shares = sandbox.share_passed(list(programs.values()), [sandbox.parse_tests(tests[i]) for i in own]) if own else []
    shares = dict(zip(own, shares, strict=True))
    log_rates(log_metric, "code", [(shares[i] == 1, programs[i] is not None) for i in own], len(completions))
    if log_extra is not None:
        log_extra("program", [programs.get(i) for i in range(len(completions))])
        log_extra("tests_passed", [shares.get(i) for i in range(len(completions))])
    return [shares.get(i) for i in range(len(completions))]

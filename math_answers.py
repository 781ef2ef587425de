"""Whether two maths answers are equal: as text, as exact numbers, and only then by computer algebra (math-verify).

The first two decide nearly all answers, about a thousand times faster than the third. math-verify bounds its time by
signals, which work in the main thread only and bound one comparison, not a batch. So it runs elsewhere: one helper
process (`python math_answers.py`) has it loaded, forks a few workers, and kills those that take too long. The helper
starts with the first answer that needs it and ends with the process that started it, however that ends. It needs a
system with fork: Linux, macOS or WSL.
"""

import atexit
import functools
import json
import logging
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from multiprocessing import connection

BATCH_SECONDS = 6.0  # bound on the computer algebra of a batch, for every 64 pairs begun
FIRST_SECONDS = 0.2  # a pair's first try; then those that overran share what is left of the batch's time
WORKER_BYTES = 2 << 30  # address space of a worker
LONGEST_TEXT = 1000  # characters; a longer answer is compared as text only

SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|~|\\?\$|\s+")
INNER_SPACE = re.compile(r"(?<=[0-9A-Za-z]) (?=[0-9A-Za-z])")
TEXT_GROUP = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
REWRITES = [  # what is written in two ways and means the same
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*(\w)"), r"\\frac\1{\2}"),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|\N{DEGREE SIGN}"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile("\N{MINUS SIGN}"), "-"),
]
WARM_UP = [  # what a fresh worker would be slow at
    (r"x^2-1", r"(x-1)(x+1)"),
    (r"\frac{2\pi}{3}", r"-\frac{\sqrt{4}}{\sqrt[3]{x}}\pi"),
    (r"[0,1)\cup(2,\infty)", r"(-\infty,1]\cup\{2\}"),
    (r"x_{0}=2 y+1", r"(1,-\frac{3}{4})"),
    (r"\sin^{2}(2 t)+\cos \theta", r"e^{-x t / 2} \ln\left(\frac{a}{b}\right)+C_{1} i"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\log_{2} 3 \cdot 10^{-5}", r"2 \times 3!+\binom{5}{2} x\le 7"),
]
DIGITS = r"[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+"
NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)(?:
        (?P<whole>[0-9]+)?\\frac\{{(?P<top>[0-9]+)\}}\{{(?P<bottom>[0-9]+)\}}   # a fraction or a mixed number
      | (?P<over>[0-9]+)/(?P<under>[0-9]+)
      | (?P<digits>{DIGITS})?(?:\.(?P<decimals>[0-9]*))?
        (?:[eE](?P<e>[+-]?[0-9]{{1,3}})
          |(?:\\times|\\cdot|\*)[ ]?10\^(?:(?P<p>[0-9])|\{{(?P<power>[+-]?[0-9]{{1,3}})\}}))?
    )""",
    re.VERBOSE,
)
NAME_IS = re.compile(r"[A-Za-z\\][\w\\{}()']*=")
# In an answer to a question whose answer is a plain number: signs of arithmetic left undone
UNDONE = re.compile(
    r"[0-9.)}\]!]\s*[-+*/^:]\s*[-+]?[({\[\s]*[0-9.]|[0-9)}]!|[0-9.]\s*\(|[)}]\s*[0-9({]|[0-9.]\s+[0-9.]"
    r"|\\(?!(?:approx|sim|simeq|prime|mu|Omega|AA|l?dots|[%{}])(?![a-zA-Z]))"
)
UNIT = "\N{SECTION SIGN}"  # stands for a \text{...} where a number is looked for beside it


@functools.lru_cache(maxsize=4096)
def normalize(latex):
    r"""The text of an answer without what does not change its meaning: spacing, $, \left, \text{...}, a final stop.

    >>> normalize(r" \dfrac 12 ,\; \text{east}. ")
    '\\frac{1}{2},east'
    """
    text = SPACING.sub(" ", latex)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = TEXT_GROUP.sub(r"\1", text).strip().rstrip(".").rstrip()
    return INNER_SPACE.sub("\0", text).replace(" ", "").replace("\0", " ")  # 1 2 is not 12, nor "a b" "ab"


@functools.lru_cache(maxsize=4096)
def number(text):
    r"""The exact value (Fraction) of a normalised number, or None where it is none, or a division not carried out.

    Integers, decimals, fractions, mixed numbers and scientific notation, with thousands apart or not.

    >>> number("1,234.5"), number(r"-1\frac{1}{2}"), number(r"4.5\times10^{3}"), number(r"\frac{10}{2}"), number("2+3")
    (Fraction(2469, 2), Fraction(-3, 2), Fraction(4500, 1), None, None)
    """
    match = NUMBER.fullmatch(text) if len(text) <= LONGEST_TEXT else None
    if match is None:
        return None
    part = match.groupdict()
    if part["top"] or part["over"]:
        top, bottom = int(part["top"] or part["over"]), int(part["bottom"] or part["under"])
        if bottom == 0 or top % bottom == 0:
            return None
        value = int(part["whole"] or 0) + Fraction(top, bottom)
    else:
        digits, decimals = re.sub("[, ]", "", part["digits"] or ""), part["decimals"] or ""
        if not digits + decimals:
            return None
        exponent = int(part["e"] or part["p"] or part["power"] or 0) - len(decimals)
        value = int(digits + decimals) * Fraction(10) ** exponent
    return -value if part["sign"] == "-" else value


def stated_number(latex):
    r"""The number that an answer states, alone or beside words, units and the name of a variable, or None.

    >>> stated_number(r"x = 5\text{ cm}"), stated_number(r"5\text{ or }6")
    (Fraction(5, 1), None)
    """
    text = normalize(TEXT_GROUP.sub(UNIT, latex)).strip(UNIT + " ")
    return number(NAME_IS.sub("", text, count=1))


def equal_exactly(gold, answer):
    r"""True or False where text or exact numbers decide whether two LaTeX answers (str) are equal, otherwise None.

    A gold that is a plain number refuses an answer that leaves arithmetic undone: a question restated is no answer.

    >>> equal_exactly("0.5", r"\frac12"), equal_exactly("6", r"2\cdot3"), equal_exactly(r"2\pi", r"\pi+\pi")
    (True, False, None)
    """
    if answer == gold:
        return bool(gold.strip())
    if max(len(gold), len(answer)) > LONGEST_TEXT:
        return gold.split() == answer.split()
    if gold.isdecimal() and answer.isdecimal() and gold.isascii() and answer.isascii():
        return int(gold) == int(answer)
    normal_gold, normal = normalize(gold), normalize(answer)
    if normal == normal_gold or not normal_gold or not normal:
        return normal == normal_gold != ""
    value = stated_number(gold)
    if value is not None:
        found = stated_number(answer)
        if found is not None:
            return found == value
        if UNDONE.search(normalize(TEXT_GROUP.sub(UNIT, answer)).rpartition("=")[2]):
            return False
    words = TEXT_GROUP.fullmatch(gold.strip())
    if (
        words and words[1].strip("() ").replace(" ", "").isalpha()
    ):  # math-verify would take words for products of letters
        return normal.strip("()").casefold() == normal_gold.strip("()").casefold()
    return None


def equal(golds, answers):
    """Whether each pair of LaTeX answers is equal.

    golds, answers: B strs each, without their boxes. Returns B bools, with None for a pair that computer algebra did
    not decide in its time. Raises RuntimeError where its helper process cannot work.
    """
    pairs = list(zip(golds, answers, strict=True))
    verdicts = {pair: equal_exactly(*pair) for pair in pairs}
    undecided = [pair for pair, verdict in verdicts.items() if verdict is None]
    if undecided:
        verdicts |= zip(undecided, ask_helper(undecided), strict=True)
    return [verdicts[pair] for pair in pairs]


helper, helper_owner, helper_lock = None, None, threading.Lock()


def ask_helper(pairs):
    """What computer algebra says of each pair: list of True, False or None, in bounded time, from any thread."""
    with helper_lock:
        for _ in range(2):  # a helper that has died since, say for want of memory, is started again once
            seconds = BATCH_SECONDS * -(-len(pairs) // 64)
            try:
                process = running_helper()
                process.stdin.write(json.dumps({"pairs": pairs, "seconds": seconds}).encode() + b"\n")
                process.stdin.flush()
                return json.loads(read_line(process, seconds + 60))
            except (OSError, EOFError, TimeoutError) as error:
                problem = error
                stop_helper()
            except BaseException:  # Ctrl-C: its answer would be taken for that of the next batch
                stop_helper()
                raise
        raise RuntimeError(f"the helper process of math_answers.py does not work ({problem}): is memory short?")


def running_helper():
    """The helper process (Popen), started where there is none, or only that of the process we were forked from."""
    global helper, helper_owner
    if helper is None or helper_owner != os.getpid() or helper.poll() is not None:
        command = [sys.executable, __file__]
        # In a session of its own, so that Ctrl-C reaches it through us alone
        helper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=-1
        )
        helper_owner = os.getpid()
        read_line(helper, 120)  # its "ready"
    return helper


def read_line(process, seconds):
    """The next line (bytes) that a process prints. Raises TimeoutError, or EOFError where it has ended."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError("it has ended")
        line += piece
    return line


@atexit.register
def stop_helper():
    """Kills the helper and its workers, if they are ours."""
    global helper
    if helper is not None and helper_owner == os.getpid():
        try:
            os.killpg(helper.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        helper.wait()
        helper.stdin.close()
        helper.stdout.close()
    helper = None


class Worker:
    """A forked process that compares one pair after another, and can be killed in the middle of one."""

    def __init__(self, compare):
        self.pipe, theirs = connection.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=self.work, args=(compare, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        self.task, self.deadline = None, None

    def work(self, compare, pipe):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
        if sys.platform == "linux":  # die with the helper, should that be killed; elsewhere the closed pipe ends us
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        while True:
            pipe.send(compare(*pipe.recv()))

    def give(self, task, pair, seconds):
        self.task, self.deadline = task, time.monotonic() + seconds
        self.pipe.send(pair)

    def kill(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def compare_symbolically(gold, answer):
    """Whether math-verify finds two LaTeX answers equal. Only its LaTeX parser: the other one is Python's `eval`."""
    from math_verify import LatexExtractionConfig, parse, verify

    gold, answer = (parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None) for text in (gold, answer))
    return bool(gold and answer) and verify(gold, answer, timeout_seconds=None)


def judge(pairs, seconds, workers, listening):
    """Verdicts of all pairs within `seconds`: a short try for each, then a longer one for those that overran.

    listening() raises SystemExit where the parent has gone. A worker that overruns or dies is replaced in `workers`.
    """
    verdicts, end = [None] * len(pairs), time.monotonic() + seconds
    waiting, limit = list(range(len(pairs))), FIRST_SECONDS
    for _ in range(2):
        overran, waiting = [], waiting[::-1]
        while waiting or any(worker.task is not None for worker in workers):
            now = time.monotonic()
            for i, worker in enumerate(workers):
                if worker.task is not None and now > min(worker.deadline, end):
                    overran.append(worker.task)
                    worker.kill()
                    worker = workers[i] = Worker(compare_symbolically)
                if worker.task is None and waiting and now < end:
                    task = waiting.pop()
                    worker.give(task, pairs[task], limit)
            busy = {worker.pipe: worker for worker in workers if worker.task is not None}
            if not busy:
                break
            next_deadline = min(min(worker.deadline for worker in busy.values()), end)
            for pipe in connection.wait(list(busy), timeout=max(0, next_deadline - time.monotonic()) + 0.001):
                worker = busy[pipe]
                try:
                    verdicts[worker.task] = pipe.recv()
                except EOFError:  # it died, say in the depths of a parser written in C
                    verdicts[worker.task] = False
                    worker.kill()
                    workers[workers.index(worker)] = Worker(compare_symbolically)
                worker.task = None
            listening()
        waiting = overran
        left = end - time.monotonic()
        if not waiting or left <= 0:
            break
        limit = left * len(workers) / len(waiting)
    return verdicts


def serve():
    """The helper process: reads batches of pairs as lines of JSON, and answers each with a line of verdicts."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print is no answer
    for gold, answer in WARM_UP:  # fills the parser's caches, which the workers inherit
        compare_symbolically(gold, answer)

    def listening():
        if os.getppid() != parent or select.select([0], [], [], 0)[0]:  # in a batch nothing but the end can come
            sys.exit()  # multiprocessing ends the workers

    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = [Worker(compare_symbolically) for _ in range(min(max(share, 1), 8))]
    print("ready", file=out, flush=True)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        print(json.dumps(judge(request["pairs"], request["seconds"], workers, listening)), file=out, flush=True)


if __name__ == "__main__":
    serve()

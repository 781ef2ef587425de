"""Compare LaTeX answers by computer algebra (math-verify) in a helper process, in bounded time, from any thread.

math-verify bounds its time by signals: these work only in the main thread, and bound one comparison, not a batch. So
one helper process (`python -m r1zero.grading.algebra`) loads it, forks a few workers, and kills those that take too
long. The helper starts with the first answer that needs it, and ends with the process that started it, however that
ends. It needs a system with fork: Linux, macOS or WSL.
"""

import atexit
import collections
import contextlib
import functools
import json
import logging
import math
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from multiprocessing import connection

from r1zero import ROOT
from r1zero.processes import end_with_parent, share_of_cores

BATCH_SECONDS = 6.0  # bound on the computer algebra of a batch, for every 64 pairs begun
FIRST_SECONDS = 0.2  # a pair's first try; the pairs that overran share what is left of the batch's time
START_SECONDS = 120  # bound on loading math-verify
GRACE_SECONDS = 60  # a helper that overruns a batch's time by more has hung
WORKER_BYTES = 2 << 30  # address space of a worker
MOST_WORKERS = 8

WARM_UP = [  # fills the caches of the parser before the workers are forked
    (r"x^2-1", r"(x-1)(x+1)"),
    (r"\frac{2\pi}{3}", r"-\frac{\sqrt{4}}{\sqrt[3]{x}}\pi"),
    (r"[0,1)\cup(2,\infty)", r"(-\infty,1]\cup\{2\}"),
    (r"x_{0}=2 y+1", r"(1,-\frac{3}{4})"),
    (r"\sin^{2}(2 t)+\cos \theta", r"e^{-x t / 2} \ln\left(\frac{a}{b}\right)+C_{1} i"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\log_{2} 3 \cdot 10^{-5}", r"2 \times 3!+\binom{5}{2} x\le 7"),
]


class Client:
    """Start the helper if it does not run, and ask it one batch at a time."""

    def __init__(self):
        self.process = None  # Popen of the helper
        self.owner = None  # the id of the process that started it: a fork of ours must start its own
        self.lock = threading.Lock()

    def ask(self, pairs):
        """Return whether each pair of LaTeX answers is equal, in bounded time, from any thread.

        pairs: list of (gold, answer). Returns a list of True, False, or None for a pair that was not decided in its
        time. Raises RuntimeError if the helper does not work.
        """
        seconds = BATCH_SECONDS * math.ceil(len(pairs) / 64)
        with self.lock:
            for _ in range(2):  # start a helper that has died since, say for want of memory, once more
                try:
                    return self.try_to_ask(pairs, seconds)
                except (OSError, EOFError, TimeoutError) as error:
                    reason = error
                    self.stop()
                except BaseException:  # Ctrl-C: the helper's reply would be read as that of the next batch
                    self.stop()
                    raise
        raise RuntimeError(f"the helper process r1zero/grading/algebra.py does not work ({reason}): is memory short?")

    def try_to_ask(self, pairs, seconds):
        """Send one batch and return its verdicts."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.start()
        request = {"pairs": pairs, "seconds": seconds}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(read_line(self.process, seconds + GRACE_SECONDS))

    def start(self):
        """Start the helper, in a session of its own: Ctrl-C must reach it through this process alone."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "r1zero.grading.algebra"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.owner = os.getpid()
        read_line(self.process, START_SECONDS)  # its "ready"

    def stop(self):
        """Kill the helper and its workers, if this process started them."""
        if self.process is not None and self.owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # it did not read its last batch to the end
                    pipe.close()
        self.process = None


CLIENT = Client()
ask_helper = CLIENT.ask
atexit.register(CLIENT.stop)


def read_line(process, seconds):
    """Return the next line (bytes) that a process prints. Raises TimeoutError, or EOFError if it has ended."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        left = max(0, deadline - time.monotonic())
        readable, _, _ = select.select([process.stdout], [], [], left)
        if not readable:
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError("it has ended")
        line += piece
    return line


def compare_symbolically(gold, answer):
    """Return whether two LaTeX answers are equal: by their values, or if these do not decide it by math-verify."""
    from math_verify import verify

    gold, answer = read(gold), read(answer)
    if not gold or not answer:
        return False
    verdict = compare_values(gold[0], answer[0])
    return verify(gold, answer, timeout_seconds=None) if verdict is None else verdict


@functools.lru_cache(maxsize=1024)
def read(latex):
    """Return what math-verify reads in an answer, a sympy object and a text, or [] if it can read nothing.

    Only its LaTeX parser is used: the other one is Python's `eval`.
    """
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)


def compare_values(gold, answer):
    """Return whether two sympy objects have the same value: True, False, or None if their values do not decide it.

    Numbers are equal if their exact values are, or the first 40 digits of irrational ones. math-verify takes numbers
    below 1e-15 for zero. Formulas in variables differ if they differ at one point; there they are never called equal.
    """
    from sympy import Eq, Expr, Float, Symbol, UnevaluatedExpr

    # As math-verify does, compare x = 5 with 5, and x = 5 with x = 6, by the right sides
    names = [equation.lhs for equation in (gold, answer) if isinstance(equation, Eq)]
    gold, answer = pair = [each.rhs if isinstance(each, Eq) else each for each in (gold, answer)]
    if not all(isinstance(expression, Expr) for expression in pair):
        return None
    if any(not isinstance(name, Symbol) or name != names[0] or gold.has(name) or answer.has(name) for name in names):
        return None
    # math-verify rounds a decimal to six places, reads a name as a product of letters, and takes 9% for 9
    if any(isinstance(expression, (Float, Symbol)) or expression.has(UnevaluatedExpr) for expression in pair):
        return None
    one, other = value(gold), value(answer)
    if one is None or other is None:
        return None
    if one.is_Rational and other.is_Rational:
        same = one == other
    else:
        same = abs(one - other) < 1e-40 * max(abs(one), abs(other))
    is_formula = gold.free_symbols or answer.free_symbols
    return None if same and is_formula else bool(same)


def value(expression):
    """Return the value (sympy number) of an expression at a fixed rational point, or None if it has none there.

    The value is exact if it is rational, and otherwise has 60 digits. The value of a variable x or of x(t) depends on
    its name alone.
    """
    from sympy import Float, Rational
    from sympy.core.function import AppliedUndef

    decimals = {decimal: Rational(str(decimal)) for decimal in expression.atoms(Float)}
    calls = {call for call in expression.atoms(AppliedUndef) if all(argument.is_Atom for argument in call.args)}
    point = {}
    for name in calls | expression.free_symbols:
        point[name] = Rational(1024 + zlib.crc32(str(name).encode()) % 2048, 4096)
    try:
        found = expression.xreplace(decimals).subs(point).doit()
        if not found.is_Rational:
            found = found.evalf(60, strict=True)  # raises PrecisionExhausted, an ArithmeticError, if it may be zero
        return found if found.is_number and found.is_finite else None
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError, RecursionError):
        return None


class Worker:
    """Compare one pair after another in a forked process that can be killed at any time."""

    def __init__(self):
        self.pipe, theirs = connection.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.position = None  # index in the batch of the pair that it compares
        self.deadline = None

    def work(self, pipe):
        """Compare what comes through the pipe (in the forked process), until a signal or the closed pipe ends it."""
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
        if sys.platform == "linux":  # in case the helper is killed; elsewhere the closed pipe ends it
            end_with_parent(signal.SIGKILL)
        while True:
            pipe.send(compare_symbolically(*pipe.recv()))

    def kill(self):
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """Compare pairs side by side in workers. Replace a worker that takes too long or dies."""

    def __init__(self, size):
        self.workers = [Worker() for _ in range(size)]

    def replace(self, worker):
        """Put a fresh worker in the place of one that hangs or is dead."""
        worker.kill()
        self.workers[self.workers.index(worker)] = Worker()

    def try_each(self, pairs, positions, limit, end, listening):
        """Compare the pairs at some positions, each for `limit` seconds at most, until `end`.

        Returns {position: verdict}, without those that were not begun, and the positions that overran.
        """
        verdicts, overran, waiting = {}, [], collections.deque(positions)
        while True:
            now = time.monotonic()
            for worker in self.workers:
                if worker.position is not None and now > worker.deadline:
                    overran.append(worker.position)
                    self.replace(worker)
            now = time.monotonic()
            for worker in self.workers:
                if worker.position is None and waiting and now < end:
                    worker.position, worker.deadline = waiting.popleft(), min(now + limit, end)
                    worker.pipe.send(pairs[worker.position])
            at_work = {worker.pipe: worker for worker in self.workers if worker.position is not None}
            if not at_work:
                return verdicts, overran
            left = max(0, min(worker.deadline for worker in at_work.values()) - time.monotonic())
            for pipe in connection.wait(list(at_work), timeout=left + 0.001):
                worker = at_work[pipe]
                try:
                    verdicts[worker.position] = pipe.recv()
                    worker.position = None
                except EOFError:  # it died, say of a stack overflow in C
                    verdicts[worker.position] = False
                    self.replace(worker)
            listening()


def judge(pairs, seconds, pool, listening):
    """Compare all pairs within `seconds`: a short try for each, then a longer one for those that overran.

    Returns a list of True, False, or None for undecided. listening() raises SystemExit if the parent has gone.
    """
    end = time.monotonic() + seconds
    verdicts, overran = pool.try_each(pairs, range(len(pairs)), FIRST_SECONDS, end, listening)
    left = end - time.monotonic()
    if overran and left > 0:
        verdicts |= pool.try_each(pairs, overran, left * len(pool.workers) / len(overran), end, listening)[0]
    return [verdicts.get(position) for position in range(len(pairs))]


def serve():
    """Run the helper process: read batches of pairs as lines of JSON, and answer each with a line of verdicts."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that a stray print is not read as verdicts
    for gold, answer in WARM_UP:
        compare_symbolically(gold, answer)

    def listening():
        if os.getppid() != parent or select.select([0], [], [], 0)[0]:  # within a batch, only the end of stdin comes
            sys.exit()  # multiprocessing ends the workers

    pool = Pool(min(share_of_cores(), MOST_WORKERS))
    print("ready", file=out, flush=True)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        verdicts = judge(request["pairs"], request["seconds"], pool, listening)
        print(json.dumps(verdicts), file=out, flush=True)


if __name__ == "__main__":
    serve()

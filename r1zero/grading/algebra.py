"""Computer algebra (math-verify) in a helper process, in bounded time and from any thread.

math-verify bounds its time by signals, which work in the main thread only and bound one comparison, not a batch. So it
runs elsewhere: one helper process (`python -m r1zero.symbolic_helper`) has it loaded, forks a few workers, and kills
those that take too long. The helper starts with the first answer that needs it and ends with the process that started
it, however that ends. It needs a system with fork: Linux, macOS or WSL.
"""

import atexit
import collections
import contextlib
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
from multiprocessing import connection

from r1zero import ROOT
from r1zero.processes import end_with_parent, share_of_cores

BATCH_SECONDS = 6.0  # bound on the computer algebra of a batch, for every 64 pairs begun
FIRST_SECONDS = 0.2  # a pair's first try; then those that overran share what is left of the batch's time
START_SECONDS = 120  # within which a helper must have loaded math-verify
GRACE_SECONDS = 60  # beyond a batch's time, after which a helper counts as hung
WORKER_BYTES = 2 << 30  # address space of a worker
MOST_WORKERS = 8

WARM_UP = [  # what a fresh worker would be slow at
    (r"x^2-1", r"(x-1)(x+1)"),
    (r"\frac{2\pi}{3}", r"-\frac{\sqrt{4}}{\sqrt[3]{x}}\pi"),
    (r"[0,1)\cup(2,\infty)", r"(-\infty,1]\cup\{2\}"),
    (r"x_{0}=2 y+1", r"(1,-\frac{3}{4})"),
    (r"\sin^{2}(2 t)+\cos \theta", r"e^{-x t / 2} \ln\left(\frac{a}{b}\right)+C_{1} i"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\log_{2} 3 \cdot 10^{-5}", r"2 \times 3!+\binom{5}{2} x\le 7"),
]


class Client:
    """This process's side: it starts the helper where there is none, and asks it one batch at a time."""

    def __init__(self):
        self.process = None  # the helper, Popen
        self.owner = None  # the id of the process that started it: a fork of ours must start its own
        self.lock = threading.Lock()

    def ask(self, pairs):
        """What computer algebra says of each pair: list of True, False or None. Raises RuntimeError."""
        seconds = BATCH_SECONDS * math.ceil(len(pairs) / 64)
        with self.lock:
            for _ in range(2):  # a helper that has died since, say for want of memory, is started again once
                try:
                    return self.try_to_ask(pairs, seconds)
                except (OSError, EOFError, TimeoutError) as error:
                    reason = error
                    self.stop()
                except BaseException:  # Ctrl-C: the helper's answer would be taken for that of the next batch
                    self.stop()
                    raise
        raise RuntimeError(f"the helper process r1zero/grading/algebra.py does not work ({reason}): is memory short?")

    def try_to_ask(self, pairs, seconds):
        """Sends one batch and waits for its verdicts."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.start()
        request = {"pairs": pairs, "seconds": seconds}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(read_line(self.process, seconds + GRACE_SECONDS))

    def start(self):
        """Starts the helper, in a session of its own, so that Ctrl-C reaches it through us alone."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "r1zero.grading.algebra"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *python_path()])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.owner = os.getpid()
        read_line(self.process, START_SECONDS)  # its "ready"

    def stop(self):
        """Kills the helper and its workers, if they are ours."""
        if self.process is not None and self.owner == os.getpid():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # of a batch that it did not read to the end
                    pipe.close()
        self.process = None


CLIENT = Client()
atexit.register(CLIENT.stop)


def ask_helper(pairs):
    """What computer algebra says of each pair of LaTeX answers, in bounded time, from any thread.

    pairs: list of (gold, answer). Returns as many of True, False or None, which stands for a pair that was not decided
    in its time. Raises RuntimeError where the helper does not work.
    """
    return CLIENT.ask(pairs)


def python_path():
    """The folders that the environment variable PYTHONPATH lists."""
    listed = os.environ.get("PYTHONPATH", "")
    return listed.split(os.pathsep) if listed else []


def read_line(process, seconds):
    """The next line (bytes) that a process prints. Raises TimeoutError, or EOFError where it has ended."""
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
    """Whether math-verify finds two LaTeX answers equal. Only its LaTeX parser: the other one is Python's `eval`."""
    from math_verify import LatexExtractionConfig, parse, verify

    extraction = [LatexExtractionConfig()]
    gold = parse(f"${gold}$", extraction, parsing_timeout=None)
    answer = parse(f"${answer}$", extraction, parsing_timeout=None)
    if not gold or not answer:
        return False
    return verify(gold, answer, timeout_seconds=None)


class Worker:
    """A forked process that compares one pair after another, and can be killed in the middle of one."""

    def __init__(self, compare):
        self.pipe, theirs = connection.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.work, args=(compare, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.position = None  # of the pair at work, in its batch
        self.deadline = None

    def work(self, compare, pipe):
        """The forked process's side: it ends by a signal, or when nobody holds the pipe any more."""
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
        if sys.platform == "linux":  # should the helper be killed; elsewhere the closed pipe ends us
            end_with_parent(signal.SIGKILL)
        while True:
            pipe.send(compare(*pipe.recv()))

    def kill(self):
        """Ends the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """Workers that compare pairs side by side. One that takes too long, or dies, is replaced."""

    def __init__(self, size, compare=compare_symbolically):
        self.compare = compare
        self.workers = [Worker(compare) for _ in range(size)]

    def busy(self):
        """The workers that have a pair to compare."""
        return [worker for worker in self.workers if worker.position is not None]

    def replace(self, worker):
        """Puts a fresh worker in the place of one that hangs or is dead."""
        worker.kill()
        self.workers[self.workers.index(worker)] = Worker(self.compare)

    def assign(self, waiting, pairs, limit, end):
        """Gives each idle worker the next position of `waiting` (deque), for `limit` seconds at most, until `end`."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.position is None and waiting and now < end:
                worker.position = waiting.popleft()
                worker.deadline = min(now + limit, end)
                worker.pipe.send(pairs[worker.position])

    def collect(self):
        """dict of position to verdict of the pairs that are decided by the next deadline, perhaps none."""
        verdicts = {}
        at_work = {worker.pipe: worker for worker in self.busy()}
        next_deadline = min(worker.deadline for worker in at_work.values())
        left = max(0, next_deadline - time.monotonic())
        for pipe in connection.wait(list(at_work), timeout=left + 0.001):
            worker = at_work[pipe]
            try:
                verdicts[worker.position] = pipe.recv()
                worker.position = None
            except EOFError:  # it died, say in the depths of a parser written in C
                verdicts[worker.position] = False
                self.replace(worker)
        return verdicts

    def replace_overdue(self):
        """The positions of the pairs whose time is over. Their workers are killed and replaced."""
        overran = []
        now = time.monotonic()
        for worker in self.busy():
            if now > worker.deadline:
                overran.append(worker.position)
                self.replace(worker)
        return overran


def judge(pairs, seconds, pool, listening):
    """Verdicts of all pairs within `seconds`: a short try for each, then a longer one for those that overran.

    Returns a list of True, False or None, for undecided. listening() raises SystemExit where the parent has gone.
    """
    end = time.monotonic() + seconds
    verdicts = {}  # of position

    def try_each(positions, limit):
        overran, waiting = [], collections.deque(positions)
        while True:
            overran += pool.replace_overdue()
            pool.assign(waiting, pairs, limit, end)
            if not pool.busy():
                return overran
            verdicts.update(pool.collect())
            listening()

    overran = try_each(range(len(pairs)), FIRST_SECONDS)
    left = end - time.monotonic()
    if overran and left > 0:
        try_each(overran, left * len(pool.workers) / len(overran))
    return [verdicts.get(position) for position in range(len(pairs))]


def worker_count():
    """This process's share of the machine's cores, where several processes train on it, between 1 and MOST_WORKERS."""
    return min(share_of_cores(), MOST_WORKERS)


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

    pool = Pool(worker_count())
    print("ready", file=out, flush=True)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        verdicts = judge(request["pairs"], request["seconds"], pool, listening)
        print(json.dumps(verdicts), file=out, flush=True)


if __name__ == "__main__":
    serve()

"""Runs the Python programs that a model wrote on their tests, shut in by bubblewrap. Used by rewards.code_reward.

Each test is one process in a sandbox of its own. No file but Python's own is there, and none can be written but in a
small /tmp that goes with it. There is no network, no /proc, no environment, no second process, and nothing of the
expected output: comparison happens here. Not covered: holes in the kernel, and load (os.cpu_count() tests at a time,
each up to 1 GiB, and as much again in the kernel for a million empty files in /tmp; Sandbox says for how long).
"""

import contextlib
import fcntl
import functools
import json
import math
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from r1zero.grading.program_tests import is_expected
from r1zero.grading.seccomp_filter import MACHINES, filter_program
from r1zero.processes import share_of_cores

SECONDS = 10  # that a program has for all of its tests together
BATCH = 64  # programs
BATCH_SECONDS = 256  # that the programs of a batch have together, for every BATCH of them begun
START_SECONDS = 60  # within which a sandbox must have started
OUTPUT = 4 << 20  # bytes of a test's output that are read, or four for each expected character if that is more
THREADS = 128  # that a test may have at a time; RLIMIT_NPROC would not bind root
POLL = 0.05  # seconds between two looks at a running test
LIMITS = {  # of each test's process
    "RLIMIT_AS": 1 << 30,  # bytes of memory
    "RLIMIT_STACK": 256 << 20,  # bytes: recursion through functools.cache overflows the usual 8 MiB at depth 50,000
    "RLIMIT_CPU": 10,  # seconds
    "RLIMIT_FSIZE": 16 << 20,  # bytes in a file, and in all of /tmp
    "RLIMIT_NOFILE": 64,  # open files
    "RLIMIT_CORE": 0,
}

# What Python runs in the sandbox, with LIMITS and READY set. A program reads its input from stdin, writes to stdout.
# With the name of a function, stdin holds the arguments as a JSON list and stdout the result as JSON, as if imported.
READY = b"ready\n"  # comes before the program's own output: without it the sandbox failed, not the program
DRIVER = """
import os, resource, sys
for name, limit in LIMITS.items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
os.write(1, READY)
with open(int(sys.argv[1])) as file:
    program = compile(file.read(), "program.py", "exec")
function_name = sys.argv[2]
sys.argv = ["program.py"]
__builtins__.exit = __builtins__.quit = sys.exit  # left out by -S
module = type(sys)("solution" if function_name else "__main__")
sys.modules[module.__name__] = module
if function_name:
    import json
    result_fd = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    arguments = json.load(sys.stdin)
    exec("from typing import *", module.__dict__)  # LeetCode's signatures use List without importing it
    exec(program, module.__dict__)
    owner = module if hasattr(module, function_name) else module.Solution()
    result = json.dumps(getattr(owner, function_name)(*arguments))
    with open(result_fd, "w") as file:
        file.write(result)
    os._exit(0)
exec(program, module.__dict__)
"""


@dataclass
class Attempt:
    """A program, and how far it has come with its tests."""

    program: str
    cases: list  # of (stdin, expected)
    fn_name: str | None
    ended: int = 0  # tests that have ended, from the first on
    passed: int = 0


class Sandbox:
    """Runs programs in bubblewrap or, where that does not start and it is allowed, as plain processes.

    The tests of a program run one after the other, and several programs side by side. Time is counted while a program
    runs; the start of its sandbox is not. A program has `seconds` for all of its tests, and a batch has batch_seconds
    for every BATCH programs begun. So that none goes without, each program has a first turn: half of an even share of
    the batch's time, 2 s. Those that overran it share evenly what is left, in a second turn, in which the tests that
    have not ended run on. The second turn is a full one, 8 s, where a third of the batch overran and the others took
    a second each. A batch of endless programs takes batch_seconds divided by the number that run side by side.

    allow_unsandboxed: whether plain processes, with the rights of who trains, may take the sandbox's place.
    Raises RuntimeError, one sentence that says what to type, where bubblewrap does not start and nothing else may.
    """

    def __init__(self, allow_unsandboxed=False, seconds=SECONDS, batch_seconds=BATCH_SECONDS):
        unavailable = why_unavailable()
        if unavailable and not allow_unsandboxed:
            raise RuntimeError(unavailable)
        self.shut_in = unavailable is None
        self.seconds = seconds
        self.batch_seconds = batch_seconds

    def share_passed(self, programs, tests):
        """The share of its tests (float in 0..1) that each program (str, or None for none) passes.

        tests: one (cases, fn_name) of code_tests.parse_tests for each program. A test that has not ended when the last
        turn of its program is over has failed. Raises RuntimeError where a sandbox fails.
        """
        attempts = []
        for program, (cases, fn_name) in zip(programs, tests, strict=True):
            attempts.append(Attempt(program, cases, fn_name))
        self.run_in_turns([attempt for attempt in attempts if attempt.program is not None])
        return [attempt.passed / len(attempt.cases) for attempt in attempts]

    def run_in_turns(self, attempts):
        """Gives each of some Attempts a short turn, and those that overran it a longer one."""
        stop = threading.Event()
        # The parent that --die-with-parent means is the thread that starts bwrap: these outlive their tests.
        pool = ThreadPoolExecutor(workers())

        def take_turns(attempts, seconds):
            return sum(pool.map(lambda attempt: self.take_turn(attempt, seconds, stop), attempts))

        first = min(self.seconds, self.batch_seconds / BATCH / 2)
        try:
            spent = take_turns(attempts, first)
            overran = [attempt for attempt in attempts if attempt.ended < len(attempt.cases)]
            if overran:
                left = self.batch_seconds * math.ceil(len(attempts) / BATCH) - spent
                take_turns(overran, min(self.seconds - first, left / len(overran)))
        finally:  # after Ctrl-C, too
            stop.set()
            pool.shutdown(cancel_futures=True)

    def take_turn(self, attempt, seconds, stop):
        """Runs an Attempt's tests from the first that has not ended, for so many seconds. Returns those it took."""
        spent = 0.0
        while attempt.ended < len(attempt.cases) and spent < seconds and not stop.is_set():
            right, took = self.passes(attempt, seconds - spent, stop)
            spent += took
            if right or spent < seconds:  # otherwise the test was cut short
                attempt.passed += right
                attempt.ended += 1
        return spent

    def passes(self, attempt, seconds, stop):
        """Whether an Attempt passes its next test within so many seconds, and how many these were."""
        stdin, expected = attempt.cases[attempt.ended]
        limit = max(OUTPUT, 4 * len(json.dumps(expected)))
        output, took = run_test(attempt.program, attempt.fn_name, stdin, limit, seconds, stop, self.shut_in)
        return output is not None and is_expected(output, expected, attempt.fn_name), took


def workers():
    """How many tests run at a time: one a core, shared among the processes of a distributed training."""
    return share_of_cores()


@functools.cache
def why_unavailable():
    """None where the sandbox starts, otherwise one sentence (str) on what is wrong and what to type. Tried once."""
    otherwise = "or pass --allow_unsandboxed_code to run a model's programs as plain processes, with your rights"
    if platform.machine() not in MACHINES:
        return f"this machine is {platform.machine()}, wanted {' or '.join(MACHINES)}: use such a one, {otherwise}"
    if shutil.which("bwrap") is None:
        return f"bubblewrap (bwrap) is not installed: apt-get install bubblewrap, {otherwise}"
    trial = start("print(input())", None, "it runs", shut_in=True, stderr=subprocess.PIPE)
    try:
        output, error = trial.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        trial.kill()
        output, error = trial.communicate()
    if output == READY + b"it runs\n":
        return None
    return (
        f"bubblewrap does not start ({error.decode(errors='replace').strip()}): enable unprivileged user namespaces "
        "(sysctl -w kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0, in "
        f"Docker --security-opt seccomp=unconfined --security-opt apparmor=unconfined), {otherwise}"
    )


def interpreter():
    """The path of Python itself: a virtual environment has only a link to it, or a copy that lacks the library."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.realpath(os.path.join(sys.base_prefix, "bin", name))


def sandbox_command(filter_fd):
    """bwrap and its options as list[str]: everything unshared, and of all files only Python and its libraries shown.

    No /proc: it would show bwrap's environment, and let programs that root runs write the machine's own /proc/sys.
    """
    command = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--hostname", "sandbox", "--cap-drop", "ALL", "--seccomp", str(filter_fd)]
    shown = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", interpreter()]
    shown.append(os.path.join(os.path.realpath(sys.base_prefix), "lib"))
    for path in dict.fromkeys(shown):  # each once: for Python in /usr they repeat
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--size", str(LIMITS["RLIMIT_FSIZE"]), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return command


def memory_file(content):
    """An open file of these bytes that lies in memory and can no longer be changed, at its start."""
    file = open(os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(content)
    file.flush()
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    file.seek(0)
    return file


def start(program, fn_name, stdin, shut_in, stderr=subprocess.DEVNULL):
    """A Popen of the driver with a program (str) and its input (str). Its end is the caller's business."""
    with (
        memory_file(program.encode(errors="replace")) as program_file,
        memory_file(stdin.encode(errors="replace")) as stdin_file,
        memory_file(filter_program(platform.machine()) if shut_in else b"") as filter_file,
    ):
        command = sandbox_command(filter_file.fileno()) if shut_in else []
        command += [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c"]
        command += [f"LIMITS, READY = {LIMITS}, {READY}\n{DRIVER}", str(program_file.fileno()), fn_name or ""]
        return subprocess.Popen(
            command,
            stdin=stdin_file,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=(program_file.fileno(), filter_file.fileno()),
            env={},
            cwd=tempfile.gettempdir(),
            start_new_session=True,  # Ctrl-C reaches the training alone, which then ends its tests
        )


def run_test(program, fn_name, stdin, limit, seconds, stop, shut_in):
    """The stdout (bytes) of a program (str) that ended with exit status 0, otherwise None, and the seconds it took.

    limit: bytes of output, more fail; seconds: that it may take; stop: an Event that ends the test.
    Raises RuntimeError where the sandbox itself failed, so that no right program is scored as wrong.
    """
    process = start(program, fn_name, stdin, shut_in)
    try:
        output, took = watch(process, limit, seconds, stop)
        status = process.poll()
    finally:
        end(process, shut_in)
    if output is None:
        return None, took
    if not output.startswith(READY):
        raise RuntimeError(f"a sandbox ended with exit status {status} before it ran: no memory?")
    if status != 0:
        return None, took
    return output[len(READY) :], took


def watch(process, limit, seconds, stop):
    """The stdout (bytes) of a process that ends by itself, None where it has to be ended, for whatever reason.

    With it come the seconds since its first output, which is the driver's READY. Raises RuntimeError without any.
    """
    output, is_open = bytearray(), True
    now = time.monotonic()
    next_look = now + POLL
    began, deadline = None, now + START_SECONDS

    def took():
        return 0.0 if began is None else time.monotonic() - began

    poll = select.poll()  # select.select fails where a training has more than 1,024 open files
    poll.register(process.stdout, select.POLLIN)
    while time.monotonic() < deadline and not stop.is_set():
        if time.monotonic() > next_look:
            next_look = time.monotonic() + POLL
            if sum(family(process.pid).values()) > THREADS:
                return None, took()
        if is_open and poll.poll(1000 * POLL):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if began is None:
                began = time.monotonic()
                deadline = began + seconds
            output += chunk
            if len(output) > limit:
                return None, took()
            is_open = bool(chunk)
        if not is_open:  # it has closed its stdout, which is its end unless it goes on without
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=POLL)
                return bytes(output), took()
    if began is None and not stop.is_set():
        raise RuntimeError(f"a sandbox did not start within {START_SECONDS} s")
    return None, took()


def family(pid):
    """{pid: number of threads} of a process and those below it, parents first: bwrap, process 1, the program."""
    threads, pids = {}, [pid]
    for member in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            stat = Path(f"/proc/{member}/stat").read_text(errors="replace")
            threads[member] = int(stat.rpartition(")")[2].split()[17])  # "pid (name) state ...": see proc(5)
            pids += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
    return threads


def end(process, shut_in):
    """Kills and reaps all processes of a test."""
    if shut_in and process.poll() is None:
        # The sandbox's process 1 takes the program with it, and bwrap reaps it. Were bwrap killed, it would be left to
        # the machine's process 1, which in a container may reap nothing.
        below_bwrap = list(family(process.pid))[1:]
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if below_bwrap:
                os.kill(below_bwrap[0], signal.SIGKILL)
                process.wait(timeout=1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


SHARED = []  # the Sandbox of this process, once there is one


def shared_sandbox(allow_unsandboxed=None):
    """Return the Sandbox of this process. It is made by the first call, and anew by one that says what is allowed."""
    if not SHARED or allow_unsandboxed is not None:
        SHARED[:] = [Sandbox(bool(allow_unsandboxed))]
    return SHARED[0]

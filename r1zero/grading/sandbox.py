"""Run the Python programs that a model wrote on their tests, shut in by bubblewrap.

Each test is one process in a sandbox of its own. The process sees no file but Python's own and can write only to a
small /tmp of its own. It has no network, no /proc, no environment, no second process, and nothing of the expected
output, which is compared outside. Not covered: holes in the kernel, and load (os.cpu_count() tests at a time, each
with up to 1 GiB, and as much again in the kernel for a million empty files in /tmp).
"""

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from r1zero.grading.program_tests import is_expected
from r1zero.processes import share_of_cores

SECONDS = 10  # of a program, for all of its tests together
BATCH = 64  # programs
BATCH_SECONDS = 256  # of all programs of a batch together, for every BATCH of them begun
START_SECONDS = 60  # bound on the start of a sandbox
OUTPUT = 4 << 20  # bytes of a test's output that are read, or four for each expected character if that is more
THREADS = 128  # of a test at a time; RLIMIT_NPROC would not bind root
POLL = 0.05  # seconds between two looks at a running test
LIMITS = {  # of each test's process
    "RLIMIT_AS": 1 << 30,  # bytes of memory
    "RLIMIT_STACK": 256 << 20,  # bytes: recursion through functools.cache overflows the usual 8 MiB at depth 50,000
    "RLIMIT_CPU": 10,  # seconds
    "RLIMIT_FSIZE": 16 << 20,  # bytes in a file, and in all of /tmp
    "RLIMIT_NOFILE": 64,  # open files
    "RLIMIT_CORE": 0,
}

# The filter of system calls: no second process, no socket, no memory that RLIMIT_AS does not count
# fmt: off
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column below, AUDIT_ARCH_* of linux/audit.h
CLONE, CLONE3 = (56, 220), 435
REFUSED = {  # system calls: number on x86_64, on aarch64 (asm/unistd_64.h, asm-generic/unistd.h)
    "fork": (57, None), "vfork": (58, None), "unshare": (272, 97), "setns": (308, 268),  # processes and namespaces
    "socket": (41, 198), "socketpair": (53, 199),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),  # memory that RLIMIT_AS does not count, down to mq_open
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),  # the sandbox's process 1
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),  # keys belong to the user, not the sandbox
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}
# fmt: on

# The codes of a filter's steps, and what it may return. Source: linux/filter.h, linux/bpf_common.h, linux/seccomp.h.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # where they stand in struct seccomp_data, in bytes
X32 = 0x40000000  # the lowest number of x86_64's second numbering of the same calls
CLONE_THREAD = 0x10000  # the flag of clone that makes a thread, not a process

# What Python runs in the sandbox, with LIMITS and READY set. A program reads its input from stdin, writes to stdout.
# With the name of a function, stdin holds the arguments as a JSON list and stdout gets the result as JSON.
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
    """A program and how many of its tests have ended."""

    program: str | None
    cases: list  # of (stdin, expected)
    fn_name: str | None
    ended: int = 0  # tests that have ended, in order
    passed: int = 0


class Sandbox:
    """Run programs in bubblewrap or, if it does not start and that is allowed, as plain processes.

    The tests of a program run one after another, and as many programs side by side as there are cores. Time counts
    while a program runs, not while its sandbox starts.

    - A batch has batch_seconds for every BATCH programs begun, divided by the number that run side by side.
    - Each program has half an even share of that, 2 s, whatever the others do: the first turn.
    - The programs that overran it share evenly what is left: the second turn, in which they go on with the tests that
      have not ended. Each has its `seconds` in full if a third of the batch overran and the others took 1 s.

    allow_unsandboxed: whether plain processes, with the rights of who trains, may take the sandbox's place.
    Raises RuntimeError, one sentence that says what to type, if bubblewrap does not start and they may not.
    """

    def __init__(self, allow_unsandboxed=False, seconds=SECONDS, batch_seconds=BATCH_SECONDS):
        unavailable = why_unavailable()
        if unavailable and not allow_unsandboxed:
            raise RuntimeError(unavailable)
        self.shut_in = unavailable is None
        self.seconds = seconds
        self.batch_seconds = batch_seconds

    def share_passed(self, programs, tests):
        """Return the share of its tests (float in 0..1) that each program passes.

        programs: B strs, None for a completion without one; tests: B pairs (cases, fn_name) of parse_tests. A test
        that has not ended in its program's time has failed. Raises RuntimeError if a sandbox fails.
        """
        attempts = [Attempt(program, *row_tests) for program, row_tests in zip(programs, tests, strict=True)]
        running = [attempt for attempt in attempts if attempt.program is not None]
        left = self.batch_seconds * math.ceil(len(running) / BATCH)
        first = min(self.seconds, self.batch_seconds / BATCH / 2)
        stop = threading.Event()
        # bwrap's --die-with-parent means the thread that starts it: these threads outlive their tests
        pool = ThreadPoolExecutor(share_of_cores())
        try:
            for turn in (first, self.seconds - first):
                seconds = min(turn, left / max(len(running), 1))
                left -= sum(pool.map(self.run_tests, running, [seconds] * len(running), [stop] * len(running)))
                running = [attempt for attempt in running if attempt.ended < len(attempt.cases)]
        finally:  # after Ctrl-C, too
            stop.set()
            pool.shutdown(cancel_futures=True)
        return [attempt.passed / len(attempt.cases) for attempt in attempts]

    def run_tests(self, attempt, seconds, stop):
        """Run the tests of an Attempt that have not ended, for so many seconds. Return the seconds that they took."""
        spent = 0.0
        for stdin, expected in attempt.cases[attempt.ended :]:
            if spent >= seconds or stop.is_set():
                break
            limit = max(OUTPUT, 4 * len(json.dumps(expected)))
            arguments = attempt.program, attempt.fn_name, stdin, limit, seconds - spent, stop, self.shut_in
            output, took = run_test(*arguments)
            spent += took
            right = output is not None and is_expected(output, expected, attempt.fn_name)
            if right or spent < seconds:  # otherwise the end of the turn cut the test short
                attempt.passed += right
                attempt.ended += 1
        return spent


@functools.cache
def why_unavailable():
    """Return None if the sandbox starts, otherwise one sentence on what is wrong and what to type. Tried once."""
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
    """Return the path of Python itself: a virtual environment has a link to it, or a copy that lacks the library."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.realpath(os.path.join(sys.base_prefix, "bin", name))


def sandbox_command(filter_fd):
    """Return bwrap and its options (list[str]): unshare everything, and show only Python and its libraries.

    Not /proc: it would show bwrap's environment, and let programs that root runs write the machine's own /proc/sys.
    """
    command = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--hostname", "sandbox", "--cap-drop", "ALL", "--seccomp", str(filter_fd)]
    shown = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", interpreter()]
    shown.append(os.path.join(os.path.realpath(sys.base_prefix), "lib"))
    for path in dict.fromkeys(shown):  # each once: they repeat for Python in /usr
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--size", str(LIMITS["RLIMIT_FSIZE"]), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return command


def filter_program(machine):
    """Return the filter that the kernel runs at each system call, for a key of MACHINES: structs sock_filter as bytes.

    A step is its code (u16), how many steps to skip if it holds (u8) and if it does not (u8), and its operand (u32).
    """
    column, architecture = MACHINES[machine]
    permission_denied = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL)]
    steps += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, X32), permission_denied]
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            steps += [(EQUAL, 0, 1, numbers[column]), permission_denied]
    # A filter cannot see the flags of clone3. If it does not exist, glibc makes its threads with clone.
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    steps += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD)]
    steps += [permission_denied, (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def memory_file(content):
    """Return an open file in memory with these bytes, sealed against changes, at its start."""
    file = open(os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(content)
    file.flush()
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    file.seek(0)
    return file


def start(program, fn_name, stdin, shut_in, stderr=subprocess.DEVNULL):
    """Start the driver with a program (str) and its input (str). Return its Popen, which the caller must end."""
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
            start_new_session=True,  # Ctrl-C reaches the training alone, and that ends its tests
        )


def run_test(program, fn_name, stdin, limit, seconds, stop, shut_in):
    """Run a program (str) on an input (str). Return its stdout (bytes, None unless it ends well) and its seconds.

    limit: bytes of output; a program that prints more has failed. stop: an Event that ends the test. Raises
    RuntimeError if the sandbox itself fails, so that no right program is scored as wrong.
    """
    process = start(program, fn_name, stdin, shut_in)
    try:
        output, took = watch(process, limit, seconds, stop)
        status = process.poll()
    finally:
        end(process, shut_in)
    if output is not None and not output.startswith(READY):
        raise RuntimeError(f"a sandbox ended with exit status {status} before it ran: no memory?")
    if output is None or status != 0:
        return None, took
    return output[len(READY) :], took


def watch(process, limit, seconds, stop):
    """Return the stdout (bytes) of a process that ends by itself, None if it must be ended, and its seconds.

    Its seconds begin with its first output, the driver's READY. Raises RuntimeError if there is none.
    """
    output, is_ready, is_open = bytearray(), False, True
    began = time.monotonic()
    next_look, deadline = began + POLL, began + START_SECONDS
    poll = select.poll()  # select.select fails if a training has more than 1,024 open files
    poll.register(process.stdout, select.POLLIN)
    while time.monotonic() < deadline and not stop.is_set():
        if time.monotonic() > next_look:
            next_look = time.monotonic() + POLL
            if sum(family(process.pid).values()) > THREADS:
                return None, time.monotonic() - began
        if is_open and poll.poll(1000 * POLL):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not is_ready:
                is_ready, began = True, time.monotonic()
                deadline = began + seconds
            output += chunk
            if len(output) > limit:
                break
            is_open = bool(chunk)
        if not is_open:  # it has closed its stdout: it has ended, unless it goes on without
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=POLL)
                return bytes(output), time.monotonic() - began
    if not is_ready and not stop.is_set():
        raise RuntimeError(f"a sandbox did not start within {START_SECONDS} s")
    return None, time.monotonic() - began


def family(pid):
    """Return {pid: number of threads} of a process and its descendants: bwrap, its process 1, the program."""
    threads, pids = {}, [pid]
    for member in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            stat = Path(f"/proc/{member}/stat").read_text(errors="replace")
            threads[member] = int(stat.rpartition(")")[2].split()[17])  # "pid (name) state ...": see proc(5)
            pids += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
    return threads


def end(process, shut_in):
    """Kill and reap all processes of a test."""
    if shut_in and process.poll() is None:
        # Kill the sandbox's process 1: the program ends with it, and bwrap reaps it. If bwrap were killed, the
        # machine's process 1 would have to reap it, and in a container that may reap nothing.
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

"""Runs the Python programs that a model wrote on their tests, shut in by bubblewrap. Used by rewards.code_reward.

Each test is one process in a sandbox of its own: no file but Python's own is there and none can be written but in a
small /tmp that goes with it; there is no network, no /proc, no environment, no second process, and nothing of the
expected output: comparison happens here. Not covered: holes in the kernel, and load (os.cpu_count() tests at a time,
10 s a program, each up to 1 GiB, and as much again in the kernel for a million empty files in /tmp).
"""

import contextlib
import errno
import fcntl
import functools
import json
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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ALLOW_UNSANDBOXED_CODE = False  # set by --allow_unsandboxed_code: plain processes where bubblewrap does not start

SECONDS = 10  # wall clock that a program has for all of its tests together
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
PYTHON = os.path.realpath(sys._base_executable)  # the interpreter itself, not a virtual environment's link to it

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


def seccomp_filter(machine):
    """The program that the kernel runs at every system call, as bytes: a list of struct sock_filter.

    A step is code (u16), steps to skip if true (u8), if false (u8), operand (u32). What it loads is struct
    seccomp_data: the call's number at byte 0, the architecture at 4, the first argument at 16.
    Source: linux/filter.h, linux/bpf_common.h, linux/seccomp.h.
    """
    load, equal, at_least, any_bit, verdict = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000, 0x7FFF0000
    x32, clone_thread = 0x40000000, 0x10000
    column, architecture = MACHINES[machine]
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (verdict, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, x32), (verdict, 0, 0, refuse | errno.EPERM)]
    for number in filter(None, (numbers[column] for numbers in REFUSED.values())):
        steps += [(equal, 0, 1, number), (verdict, 0, 0, refuse | errno.EPERM)]
    # clone3's flags are out of a filter's sight; told that it does not exist, glibc makes its threads with clone.
    steps += [(equal, 0, 1, CLONE3), (verdict, 0, 0, refuse | errno.ENOSYS)]
    steps += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16), (any_bit, 1, 0, clone_thread)]
    steps += [(verdict, 0, 0, refuse | errno.EPERM), (verdict, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def sandbox_command(filter_fd):
    """bwrap and its options as list[str]: everything unshared, and of all files only Python and its libraries shown.

    No /proc: it would show bwrap's environment, and let programs that root runs write the machine's own /proc/sys.
    """
    command = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--hostname", "sandbox", "--cap-drop", "ALL", "--seccomp", str(filter_fd)]
    shown = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", PYTHON]
    for path in dict.fromkeys([*shown, os.path.join(os.path.realpath(sys.base_prefix), "lib")]):
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


def start(program, fn_name, stdin, sandboxed, stderr=subprocess.DEVNULL):
    """A Popen of the driver with a program (str) and its input (str). Its end is the caller's business."""
    with (
        memory_file(program.encode(errors="replace")) as program_file,
        memory_file(stdin.encode(errors="replace")) as stdin_file,
        memory_file(seccomp_filter(platform.machine()) if sandboxed else b"") as filter_file,
    ):
        command = sandbox_command(filter_file.fileno()) if sandboxed else []
        command += [PYTHON, "-I", "-S", "-B", "-X", "utf8", "-c"]
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


@functools.cache
def why_unavailable():
    """None where the sandbox starts, otherwise one sentence (str) on what is wrong and what to type. Tried once."""
    otherwise = "or pass --allow_unsandboxed_code to run a model's programs as plain processes, with your rights"
    if platform.machine() not in MACHINES:
        return f"this machine is {platform.machine()}, wanted {' or '.join(MACHINES)}: use such a one, {otherwise}"
    if shutil.which("bwrap") is None:
        return f"bubblewrap (bwrap) is not installed: apt-get install bubblewrap, {otherwise}"
    trial = start("print(input())", None, "it runs", sandboxed=True, stderr=subprocess.PIPE)
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


def family(pid):
    """{pid: number of threads} of a process and those below it, parents first: bwrap, process 1, the program."""
    threads, pids = {}, [pid]
    for member in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            stat = Path(f"/proc/{member}/stat").read_text(errors="replace")
            threads[member] = int(stat.rpartition(")")[2].split()[17])  # "pid (name) state ...": see proc(5)
            pids += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
    return threads


def end(process, sandboxed):
    """Kills and reaps all processes of a test."""
    if sandboxed and process.poll() is None:
        # The sandbox's process 1 takes the program with it, and bwrap reaps it. Were bwrap killed, it would be left to
        # the machine's process 1, which in a container may reap nothing.
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            for pid in list(family(process.pid))[1:2]:
                os.kill(pid, signal.SIGKILL)
                process.wait(timeout=1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def run_test(program, fn_name, stdin, limit, deadline, stop):
    """The stdout (bytes) of a program (str) that ended with exit status 0, otherwise None.

    limit: bytes of output, more fail; deadline: of time.monotonic(), in seconds; stop: an Event that ends the test.
    Raises RuntimeError where the sandbox itself failed, so that no right program is scored as wrong.
    """
    sandboxed = why_unavailable() is None
    process = start(program, fn_name, stdin, sandboxed)
    output, next_look = bytearray(), time.monotonic() + POLL
    poll = select.poll()  # select.select fails where a training has more than 1,024 open files
    poll.register(process.stdout, select.POLLIN)
    try:
        while (now := time.monotonic()) < deadline and len(output) <= limit and not stop.is_set():
            if now > next_look:
                next_look = now + POLL
                if sum(family(process.pid).values()) > THREADS:
                    return None
            if not poll.poll(1000 * POLL):
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            output += chunk
            if not chunk:
                status = process.wait(timeout=1)
                if not output.startswith(READY):
                    raise RuntimeError(f"a sandbox ended with exit status {status} before it ran: no memory?")
                return bytes(output[len(READY) :]) if status == 0 else None
        return None
    except subprocess.TimeoutExpired:  # it closed its stdout and went on
        return None
    finally:
        end(process, sandboxed)


def text_lines(text):
    """Lines without the whitespace that follows them, and without the empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def is_expected(output, expected, fn_name):
    """Whether an output (bytes) is the expected text, or with fn_name the JSON of one of the expected values."""
    text = output.decode(errors="replace")
    if fn_name is None:
        return text_lines(text) == text_lines(expected)
    try:
        result = json.loads(text)
        return any(value in (result, [result]) for value in expected)
    except (ValueError, RecursionError):
        return False


def share_passed(programs, tests):
    """The share of its tests (float in 0..1) that each program (str, or None for none) passes.

    tests: one (cases, fn_name) of parse_tests for each program. A program has SECONDS from the start of its first
    test; what has not ended then has failed. Raises RuntimeError where there is no sandbox to run them in.
    """
    if why_unavailable() and not ALLOW_UNSANDBOXED_CODE:
        raise RuntimeError(why_unavailable())
    deadlines, stop = {}, threading.Event()

    def passes(job):
        index, (stdin, expected) = job
        deadline = deadlines.setdefault(index, time.monotonic() + SECONDS)
        if time.monotonic() >= deadline:
            return False
        fn_name = tests[index][1]
        limit = max(OUTPUT, 4 * len(json.dumps(expected)))
        output = run_test(programs[index], fn_name, stdin, limit, deadline, stop)
        return output is not None and is_expected(output, expected, fn_name)

    jobs = [(i, case) for i, program in enumerate(programs) if program is not None for case in tests[i][0]]
    # The parent that --die-with-parent means is the thread that starts bwrap: these outlive their tests.
    pool = ThreadPoolExecutor(max(1, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    try:
        passed = Counter(i for (i, _), right in zip(jobs, pool.map(passes, jobs), strict=True) if right)
    finally:  # after Ctrl-C, too
        stop.set()
        pool.shutdown(cancel_futures=True)
    return [passed[i] / len(cases) for i, (cases, _) in enumerate(tests)]


def parse_tests(text):
    """Reads a row's tests: (cases, fn_name), where cases is a list of (stdin, expected) and fn_name a str or None.

    Without fn_name both are text; given as a list, its lines. With it, stdin is the JSON list of arguments, given as a
    list or as text with one JSON value a line, and expected holds the accepted results: the output as it stands, and
    as the JSON that it may be. Raises ValueError where the text is not of this form.

    >>> parse_tests('{"inputs": ["1 2"], "outputs": ["3"]}')
    ([('1 2', '3')], None)
    >>> parse_tests('{"inputs": ["[1, 2]\\\\n3"], "outputs": ["6"], "fn_name": "total"}')
    ([('[[1, 2], 3]', ['6', 6])], 'total')

    Source: prime_code/testing_util.py in verl, for PRIME-RL/Eurus-2-RL-Data.
    """
    try:
        tests = json.loads(text)
        inputs, outputs, fn_name = tests["inputs"], tests["outputs"], tests.get("fn_name")
    except (ValueError, TypeError, KeyError) as error:
        wanted = '{"inputs": [...], "outputs": [...]}'
        raise ValueError(f"tests are {str(text)[:80]!r} ({error!r}), wanted the JSON of {wanted}") from error
    if not (isinstance(inputs, list) and isinstance(outputs, list) and 0 < len(inputs) == len(outputs)):
        raise ValueError(
            f"tests have inputs {str(inputs)[:80]} and outputs {str(outputs)[:80]}, wanted two lists of one length"
        )
    if fn_name is None:
        return [(as_text(given), as_text(output)) for given, output in zip(inputs, outputs, strict=True)], None
    if not (isinstance(fn_name, str) and fn_name.isidentifier()):
        raise ValueError(f"tests have fn_name {fn_name!r}, wanted the name of a function")
    return [(as_arguments(given), as_results(output)) for given, output in zip(inputs, outputs, strict=True)], fn_name


def as_text(value):
    """The text (str) of an input or output that is given as it stands or as a list of its lines."""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"a test has {str(value)[:80]}, wanted text or a list of lines")
    return "\n".join(lines)


def as_arguments(value):
    """The JSON list (str) of a call's arguments."""
    try:
        if isinstance(value, str):
            value = [json.loads(line) for line in value.split("\n") if line.strip()]
    except ValueError as error:
        raise ValueError(f"a call has arguments {value[:80]!r}, wanted one JSON value a line") from error
    if not isinstance(value, list):
        raise ValueError(f"a call has arguments {str(value)[:80]}, wanted a list of them")
    return json.dumps(value)


def as_results(value):
    """The results (list) that are right where a call's output is given as `value`."""
    results = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            results.append(json.loads(value))
    return results


def python_block(text):
    """The content of the last complete ```python block, or None where there is none. A fence ends or begins a line.

    >>> python_block("First:\\n```python\\nprint(1)\\n```\\nBetter:\\n```python\\nprint(2)\\n```\\n")
    'print(2)'
    """
    block = lines = None
    for line in text.split("\n"):
        fence = line.strip().lower() if "```" in line else ""
        if fence.endswith("```python"):
            lines = []
        elif lines is not None and fence.startswith("```"):
            block, lines = "\n".join(lines), None
        elif lines is not None:
            lines.append(line)
    return block

"""Programs in the sandbox: right ones pass, hostile ones score 0.   bash tests/run.sh tests/test_sandbox.py

Skipped where bubblewrap does not start, but not in continuous integration (CI=true), where that is a failure. Programs
that must pass have PATIENCE, which only a hang meets, even on a busy machine; what must be ended has little time.
"""

import contextlib
import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import uuid
from pathlib import Path

import pytest

from r1zero import ROOT
from r1zero.grading import sandbox, seccomp_filter
from r1zero.grading.program_tests import parse_tests
from r1zero.grading.sandbox import Sandbox, family, run_test, why_unavailable

IN_CI = os.environ.get("CI") == "true"
PATIENCE = 120  # seconds
PATIENT = {"seconds": PATIENCE, "batch_seconds": 2 * sandbox.BATCH * PATIENCE}  # in the first turn already


@pytest.fixture(autouse=True)
def marker(monkeypatch):
    """A word in the command line of every process that a test starts; after the test, none may be left."""
    word = f"marker-{uuid.uuid4().hex}"
    monkeypatch.setattr(sandbox, "DRIVER", f"# {word}\n{sandbox.DRIVER}")
    yield word
    assert wait_until(lambda: not processes_with(word))


@pytest.fixture
def shut_in():
    """The sandbox."""
    if why_unavailable() and not IN_CI:
        pytest.skip(why_unavailable())
    return Sandbox(**PATIENT)


@pytest.fixture
def no_bubblewrap(monkeypatch):
    """bubblewrap is not found."""
    monkeypatch.setenv("PATH", "/nonexistent")
    why_unavailable.cache_clear()
    yield
    why_unavailable.cache_clear()


@pytest.fixture
def plain(no_bubblewrap):
    """What runs in place of the sandbox where bubblewrap is not found and plain processes are allowed."""
    return Sandbox(allow_unsandboxed=True, **PATIENT)


def processes_with(marker):
    """Ids of all processes on the machine whose command line holds the marker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until(condition):
    give_up = time.monotonic() + PATIENCE
    while not (holds := condition()) and time.monotonic() < give_up:
        time.sleep(0.05)
    return holds


def share(box, program, *cases):
    """The share of (stdin, expected) cases that one program passes."""
    return box.share_passed([textwrap.dedent(program)], [(list(cases), None)])[0]


def share_of_each(box, programs, case):
    """{name: share} of programs, given as {name: program}, that run side by side on one case."""
    texts = [textwrap.dedent(program) for program in programs.values()]
    shares = box.share_passed(texts, [([case], None)] * len(texts))
    return dict(zip(programs, shares, strict=True))


def score_call(box, program, expected, *arguments):
    """1.0 where the program's solve(*arguments) is what the JSON text `expected` says."""
    tests = {"inputs": ["\n".join(map(json.dumps, arguments))], "outputs": [expected], "fn_name": "solve"}
    return box.share_passed([textwrap.dedent(program)], [parse_tests(json.dumps(tests))])[0]


def lines_printed(box, program):
    """The lines that a program prints, which must end with exit status 0."""
    arguments = "", sandbox.OUTPUT, PATIENCE, threading.Event(), box.shut_in
    output, _ = run_test(textwrap.dedent(program), None, *arguments)
    assert output is not None, "the program failed"
    return output.decode().splitlines()


@pytest.mark.skipif(not IN_CI, reason="CI=true is not set: here a missing sandbox skips tests")
def test_continuous_integration_has_a_sandbox():
    assert why_unavailable() is None


# Ordinary programs


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("print(sum(map(int, input().split())))", id="input()"),
        pytest.param("import sys\nprint(sum(map(int, sys.stdin.read().split())))", id="sys.stdin"),
        pytest.param("import sys\nprint(sum(map(int, sys.stdin.buffer.readline().split())))", id="sys.stdin.buffer"),
        pytest.param("print(sum(map(int, open(0).read().split())))", id="open(0)"),
        pytest.param("import os\nprint(sum(map(int, os.read(0, os.fstat(0).st_size).split())))", id="os.read"),
        pytest.param("import sys\nsys.stdout.write(str(sum(map(int, input().split()))))", id="no newline at the end"),
        pytest.param("print(sum(map(int, input().split())), end='  \\r\\n\\n \\n')", id="whitespace at the end"),
        pytest.param("print(sum(map(int, input().split())))\nexit()", id="exit()"),
        pytest.param(
            "if __name__ == '__main__':\n    print(sum(map(int, input().split())))", id="a block for __main__"
        ),
        pytest.param(
            """
            import sys, threading
            sys.setrecursionlimit(10**6)
            threading.stack_size(2**27)
            def depth(n):
                return n and 1 + depth(n - 1)
            def main():
                print(sum(map(int, input().split())) + depth(10**5) - 10**5)
            thread = threading.Thread(target=main)
            thread.start()
            thread.join()
            """,
            id="a thread with a larger stack",
        ),
        pytest.param(
            """
            import functools, sys
            sys.setrecursionlimit(10**6)
            @functools.cache
            def depth(n):
                return n and 1 + depth(n - 1)
            print(sum(map(int, input().split())) + depth(10**5) - 10**5)
            """,
            id="deep recursion through functools.cache",
            marks=pytest.mark.skipif(
                sys.version_info[:2] in ((3, 12), (3, 13)), reason="a limit of its own that a program cannot raise"
            ),
        ),
        pytest.param(
            "import bisect, collections, decimal, fractions, heapq, itertools, math, random, re, string, typing\n"
            "print(sum(map(int, input().split())))",
            id="the standard library",
        ),
        pytest.param(
            """
            from __future__ import annotations
            from dataclasses import dataclass
            @dataclass
            class Pair:
                a: int
                b: int
            print(sum(map(int, input().split())))
            """,
            id="a dataclass with postponed annotations",
        ),
        pytest.param(
            """
            import os, time
            os.write(1, str(sum(map(int, input().split()))).encode())
            os.close(1)
            time.sleep(1.2)
            os._exit(0)
            """,
            id="an end some time after the output is closed",
        ),
    ],
)
def test_right_program_passes(program, shut_in):
    assert share(shut_in, program, ("1 2\n", "3"), ("10 20\n", "30\n")) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("print(4)", id="another number"),
        pytest.param("print(3, 3)", id="a word too many"),
        pytest.param("print()\nprint(3)", id="an empty line before"),
        pytest.param("", id="an empty program"),
        pytest.param("print(3", id="a syntax error"),
        pytest.param("print(3)\n\0", id="a NUL character"),
        pytest.param("print(3)\n1 / 0", id="an error after the right output"),
        pytest.param("import sys\nprint(3)\nsys.exit(1)", id="an exit status after the right output"),
        pytest.param("import sys\nprint(3, file=sys.stderr)", id="on stderr"),
        pytest.param("import numpy\nprint(3)", id="a package that is not part of Python"),
        pytest.param("(" * 10**5, id="too deep for the compiler"),
    ],
)
def test_wrong_program_scores_zero(program, shut_in):
    assert share(shut_in, program, ("1 2\n", "3")) == 0.0


def test_share_of_passed_tests_is_the_score(shut_in):
    cases = ("1", "1"), ("2", "4"), ("3", "9"), ("0", "0")
    assert share(shut_in, "print(int(input()) ** 2)", *cases) == 1.0
    assert share(shut_in, "print(int(input()))", *cases) == 0.5
    assert share(shut_in, "print(1 // int(input()))", *cases) == 0.25


def test_text_of_any_script_and_size_passes_through(shut_in):
    text = "\u00e9\u4e2d\U0001f600 " * 10**5
    assert share(shut_in, "print(input())", (text, text)) == 1.0


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param("def solve(a, b): return a + b", "[1, 2, 3]", id="a function"),
        pytest.param("def solve(a, b): return tuple(a + b)", "[1, 2, 3]", id="a tuple counts as a list"),
        pytest.param("def solve(a, b): return a + b", "[[1, 2, 3]]", id="an output in a list of its own"),
        pytest.param("class Solution:\n    def solve(self, a, b): return a + b", "[1, 2, 3]", id="a method"),
        pytest.param(
            "class Solution:\n    def solve(self, a: List[int], b: List[int]) -> Optional[List[int]]: return a + b",
            "[1, 2, 3]",
            id="LeetCode's signatures without their import",
        ),
        pytest.param("def solve(a, b):\n    print('[0]')\n    return a + b", "[1, 2, 3]", id="prints are no result"),
        pytest.param("def solve(a, b): return a + b\nif __name__ == '__main__': input()", "[1, 2, 3]", id="imported"),
        pytest.param("def solve(a, b): return {1: a, 'b': b}", '{"1": [1, 2], "b": [3]}', id="a dictionary"),
        pytest.param("def solve(a, b): return 'text'", '"text"', id="a string in JSON"),
        pytest.param("def solve(a, b): return 'text'", "text", id="a string that is no JSON"),
        pytest.param("def solve(a, b): return None", "null", id="None"),
        pytest.param(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass Pair:\n    a: list\n    b: list\n"
            "def solve(a, b):\n    pair = Pair(a, b)\n    return pair.a + pair.b",
            "[1, 2, 3]",
            id="a dataclass with postponed annotations",
        ),
    ],
)
def test_right_function_passes(program, expected, shut_in):
    assert score_call(shut_in, program, expected, [1, 2], [3]) == 1.0
    assert score_call(shut_in, program, "[1, 2, 3, 4]", [1, 2], [3]) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("def solve(a, b): return b + a", id="another result"),
        pytest.param("def solve(a): return [1, 2, 3]", id="another number of arguments"),
        pytest.param("def other(a, b): return a + b", id="another name"),
        pytest.param("class Solution:\n    def other(self, a, b): return a + b", id="another name of the method"),
        pytest.param("def solve(a, b): return {1, 2, 3}", id="no JSON"),
        pytest.param("def solve(a, b): return solve(a, b)", id="endless recursion"),
        pytest.param("def solve(a, b): return float('nan')", id="NaN"),
        pytest.param("def solve(a, b):\n    raise SystemExit(0)", id="an exit"),
    ],
)
def test_wrong_function_scores_zero(program, shut_in):
    assert score_call(shut_in, program, "[1, 2, 3]", [1, 2], [3]) == 0.0


def test_none_instead_of_a_program_scores_zero(shut_in):
    tests = ([("", "")], None)
    assert shut_in.share_passed([None, "pass", None], [tests] * 3) == [0.0, 1.0, 0.0]
    assert shut_in.share_passed([], []) == []


def test_one_of_more_processes_a_machine_still_has_a_worker(shut_in, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert share(shut_in, "print(input())", ("1", "1"), ("2", "2")) == 1.0


# Hostile programs: what they reach for

OUT_OF_REACH = {  # code that succeeds in a plain process, and how the kernel refuses it in the sandbox
    "a secret file": ("open({secret!r}).read()", "FileNotFoundError"),
    "the user's names": ("open('/etc/passwd').read()", "FileNotFoundError"),
    "the project's own files": ("open({project!r}).read()", "FileNotFoundError"),
    "the parent's environment": ("open('/proc/{pid}/environ', 'rb').read()", "FileNotFoundError"),
    "its own entry in /proc": ("open('/proc/self/status').read()", "FileNotFoundError"),
    "a socket": ("import socket; socket.socket()", "PermissionError"),
    "a socket of the machine's own": ("import socket; socket.socket(socket.AF_UNIX)", "PermissionError"),
    "a pair of sockets": ("import socket; socket.socketpair()", "PermissionError"),
    "a listener on this machine": (
        "import socket; socket.create_connection(('127.0.0.1', {port}))",
        "PermissionError",
    ),
    "a second process": ("import os\nif os.fork() == 0: os._exit(0)", "PermissionError"),
    "another program": (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)",
        "PermissionError",
    ),
    "a file in memory": ("import os; os.memfd_create('x')", "PermissionError"),
    "a new file": ("open({new_file!r}, 'w').write('x')", "FileNotFoundError"),
    "a signal to the parent": ("import os; os.kill({pid}, 0)", "ProcessLookupError"),
}
FOR_ROOT_ALONE = {
    "the environment of process 1": ("open('/proc/1/environ', 'rb').read()", "FileNotFoundError"),
    "the machine's settings": ("open('/proc/sys/vm/swappiness', 'r+').close()", "FileNotFoundError"),
}
TRY_EACH = """
for name, attack in {attacks}.items():
    try:
        exec(attack)
    except OSError as error:
        print(f"{{name}}: {{type(error).__name__}}")
    else:
        print(f"{{name}}: succeeds")
"""


@pytest.fixture
def places(tmp_path):
    """What the attacks aim at: a secret file, a listener, this process."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {
            "secret": str(secret),
            "project": sandbox.__file__,
            "pid": os.getpid(),
            "port": listener.getsockname()[1],
            "new_file": str(tmp_path / "new"),
        }


def test_program_cannot_reach(shut_in, places, tmp_path):
    table = OUT_OF_REACH | FOR_ROOT_ALONE
    attacks = {name: attack.format(**places) for name, (attack, _) in table.items()}
    printed = lines_printed(shut_in, TRY_EACH.format(attacks=attacks))
    assert printed == [f"{name}: {refusal}" for name, (_, refusal) in table.items()]
    assert os.listdir(tmp_path) == ["secret.txt"]


def test_same_attacks_succeed_in_a_plain_process(plain, places):
    attacks = {name: attack.format(**places) for name, (attack, _) in OUT_OF_REACH.items()}
    printed = lines_printed(plain, TRY_EACH.format(attacks=attacks))
    assert printed == [f"{name}: succeeds" for name in attacks]


def test_environment_is_empty(shut_in, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert share(shut_in, "import os\nprint(os.environ.keys() - {'PWD', 'LC_CTYPE'})", ("", "set()")) == 1.0


def test_environment_of_a_plain_process_is_empty(plain, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = "import os\nprint(os.environ.keys() - {'LC_CTYPE'})"  # set by Python itself
    assert share(plain, program, ("", "set()")) == 1.0


def test_every_system_call_on_the_list_is_refused(shut_in):
    machine = os.uname().machine
    column = seccomp_filter.MACHINES[machine][0]
    calls = {name: numbers[column] for name, numbers in seccomp_filter.REFUSED.items() if numbers[column] is not None}
    calls["clone"] = seccomp_filter.CLONE[column]
    expected = [f"{name}: -1, errno {errno.EPERM}" for name in calls] + [f"clone3: -1, errno {errno.ENOSYS}"]
    calls["clone3"] = seccomp_filter.CLONE3
    program = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {calls}.items():
            result = libc.syscall(number, 0, 0, 0, 0, 0)
            print(f"{{name}}: {{result}}, errno {{ctypes.get_errno()}}")
    """
    assert lines_printed(shut_in, program) == expected


def test_program_can_write_only_to_a_tmp_of_its_own(shut_in, tmp_path):
    """Tries the usual places and all folders that it finds, those within Python's packages left out."""
    name = f"new-{uuid.uuid4().hex}"
    program = f"""
        import os
        folders = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/proc", {str(tmp_path)!r}]
        for folder, subfolders, _ in os.walk("/"):
            folders.append(folder)
            subfolders[:] = subfolders if folder.count("/") < 4 else []
        assert len(folders) > 20 and not os.listdir("/tmp")
        for folder in dict.fromkeys(folders):
            try:
                open(os.path.join(folder, {name!r}), "w")
            except OSError:
                continue
            print(folder)
    """
    assert lines_printed(shut_in, program) == ["/tmp"]
    assert lines_printed(shut_in, program) == ["/tmp"], "the second test does not find the first one's file"
    assert not [folder for folder in ("/tmp", "/var/tmp", "/dev/shm", tmp_path) if (Path(folder) / name).exists()]


def test_program_cannot_kill_those_who_run_it(shut_in):
    targets = ["os.getppid(), 9", "0, 9", "1, 9", "-1, 9", "-1, 15", "-1, 19"]
    targets += [f"{os.getpid()}, 9", f"{-os.getpgid(0)}, 9"]
    programs = {f"os.kill({target})": f"import os\nos.kill({target})\nprint('wrong')" for target in targets}
    programs |= {"good": "print('right')", "good, too": "print('right')"}
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        shares = share_of_each(shut_in, programs, ("", "right"))
        assert shares == dict.fromkeys(programs, 0.0) | {"good": 1.0, "good, too": 1.0}
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# Hostile programs: what they use up. Each bomb prints what is expected where nothing stops it.

CPU_BOMB = "while time.process_time() < 10: pass"
THREAD_BOMB = f"""
import threading
threading.stack_size(1 << 15)
while time.monotonic() - started < {PATIENCE / 2}:
    try:
        threading.Thread(target=time.sleep, args=[10**6], daemon=True).start()
    except RuntimeError:
        time.sleep(1)
"""
MEMORY_BOMB = """
x = []
for _ in range(2048):
    x.append(bytes(1 << 20))
"""
BOMBS = {
    "the processor": CPU_BOMB,
    "forks without end": "while time.process_time() < 10: os.fork()",
    "forks without end, undeterred": """
while time.process_time() < 10:
    try:
        os.fork()
    except OSError:
        pass
""",
    "two gigabytes at once": "x = bytearray(1 << 31)",
    "two gigabytes in parts": MEMORY_BOMB,
    "memory without end, undeterred": """
x = []
while time.process_time() < 10:
    try:
        x.append(bytearray(1 << 20))
    except MemoryError:
        pass
""",
    "two gigabytes of shared memory": "import mmap\nmmap.mmap(-1, 1 << 31)",
    "threads without end": THREAD_BOMB,
    "output without end": "while time.process_time() < 10: os.write(1, b'x' * (1 << 20))",
    "lines without end": "while time.process_time() < 10: print('x' * 10**6)",
    "signals to everybody": "os.kill(-1, 9)\nos.kill(os.getppid(), 9)",
}
PLAIN_BOMBS = {
    "the processor": CPU_BOMB,
    "memory": MEMORY_BOMB,
    "output": "while time.process_time() < 10: print('x' * 10**6)",
    "a file": "import tempfile\ntempfile.TemporaryFile().write(bytes(17 << 20))",
    "threads": THREAD_BOMB,
}


def with_good_programs(bombs):
    """The bombs as whole programs, and after each a good program."""
    programs = {}
    for name, bomb in bombs.items():
        programs[name] = f"import os, time\nstarted = time.monotonic()\n{bomb}\nprint('done', flush=True)\nos._exit(0)"
        programs[f"good, after {name}"] = "print('done')"
    return programs


def test_bombs_score_zero_and_do_not_harm_the_good_programs_of_their_batch(shut_in, monkeypatch):
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_CPU", 1)
    programs = with_good_programs(BOMBS)
    expected = {name: float(name.startswith("good")) for name in programs}
    assert share_of_each(shut_in, programs, ("", "done")) == expected


def test_limits_hold_in_plain_processes(plain, monkeypatch):
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_CPU", 1)
    programs = with_good_programs(PLAIN_BOMBS)
    expected = {name: float(name.startswith("good")) for name in programs}
    assert share_of_each(plain, programs, ("", "done")) == expected


def test_disk_cannot_be_filled(shut_in):
    program = """
        import os
        written = 0
        try:
            for i in range(64):
                with open(f"/tmp/{i}", "wb", buffering=0) as file:
                    written += file.write(bytes(1 << 20))
        except OSError:
            pass
        print(written >> 20)
    """
    assert share(shut_in, program, ("", "16")) == 1.0


def test_gigabyte_of_output_is_not_kept_in_memory(shut_in):
    tracemalloc.start()
    try:
        assert share(shut_in, "for _ in range(1024): print('x' * (1 << 20))", ("", "x")) == 0.0
        assert tracemalloc.get_traced_memory()[1] < 8 * sandbox.OUTPUT
    finally:
        tracemalloc.stop()


def test_output_longer_than_the_limit_passes_where_it_is_expected(shut_in, monkeypatch):
    monkeypatch.setattr(sandbox, "OUTPUT", 1000)
    text = "\u4e2d" * 10**5
    assert share(shut_in, "print(input())", (text, text)) == 1.0
    assert share(shut_in, "print('x' * 2000)", ("", "x")) == 0.0


ENDLESS = {
    "sleep": "import time\nprint('done', flush=True)\ntime.sleep(1000)",
    "a loop": "print('done', flush=True)\nwhile True: pass",
    "all signals ignored": """
        import os, signal
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        print('done', flush=True)
        while True: signal.pause()
    """,
    "stopped by its own signal": "import os\nprint('done', flush=True)\nos.kill(os.getpid(), 19)",
    "stdout closed": "import os, time\nprint('done', flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(1000)",
    "at exit": "import atexit, time\nprint('done')\natexit.register(time.sleep, 1000)",
    "a thread that stays": (
        "import threading, time\nprint('done')\nthreading.Thread(target=time.sleep, args=[1000]).start()"
    ),
    "one long operation": "import sys\nsys.set_int_max_str_digits(0)\nprint('done', flush=True)\nstr(9**10**8)",
}


def test_endless_program_is_ended(shut_in, monkeypatch):
    monkeypatch.setattr(sandbox, "workers", lambda: len(ENDLESS))  # all at a time
    shut_in.seconds = 1.5
    assert share_of_each(shut_in, ENDLESS, ("", "done")) == dict.fromkeys(ENDLESS, 0.0)


def test_time_is_shared_by_all_tests_of_a_program(shut_in):
    shut_in.seconds = 1
    assert share(shut_in, "import time\ntime.sleep(0.1)", *[("", "")] * 100) < 0.5


def test_plain_process_is_ended_at_its_deadline_with_its_children(plain):
    plain.seconds = 1
    assert share(plain, "import os, time\nos.fork()\ntime.sleep(1000)", ("", "")) == 0.0


# Hostile programs: the time of a whole batch, on a made-up clock


@pytest.fixture
def simulated(no_bubblewrap, monkeypatch):
    """score(programs) -> (shares, seconds that all tests took), where a program is (its tests, seconds of each)."""

    def score(programs):
        took = []

        def run_test(program, fn_name, stdin, limit, seconds, stop, shut_in):
            needed = float(program)
            took.append(min(needed, seconds))
            return b"" if needed <= seconds else None, took[-1]

        monkeypatch.setattr(sandbox, "run_test", run_test)
        tests = [([("", "")] * number, None) for number, _ in programs]
        shares = Sandbox(allow_unsandboxed=True).share_passed([str(each) for _, each in programs], tests)
        return shares, sum(took)

    return score


ENDLESS_ONE = (8, math.inf)


@pytest.mark.parametrize(
    ("programs", "shares", "seconds"),
    [
        pytest.param([ENDLESS_ONE] * 64, [0] * 64, 256, id="endless ones"),
        pytest.param(
            [ENDLESS_ONE] * 56 + [(16, 0.125)] * 8, [0] * 56 + [1] * 8, 256, id="right ones after endless ones"
        ),
        pytest.param([(16, 0.125)] * 8 + [ENDLESS_ONE] * 56, [1] * 8 + [0] * 56, 256, id="right ones before them"),
        pytest.param([ENDLESS_ONE] * 64 + [(2, 1)], [0] * 64 + [1], 512, id="a batch that is a little larger"),
        pytest.param([ENDLESS_ONE] * 20 + [(2, 0.5)] * 44, [0] * 20 + [1] * 44, 20 * 10 + 44, id="a third endless"),
        pytest.param([(1, 8)] * 20 + [(2, 0.5)] * 44, [1] * 64, 20 * 10 + 44, id="a third that needs a second turn"),
        pytest.param([(1, 4)] * 64, [0] * 64, 256, id="more slow ones than a batch has time for"),
        pytest.param([(1, 8)], [1], 10, id="a slow one alone"),
        pytest.param([(1, 8.5)], [0], 10, id="one that is too slow"),
        pytest.param([(80, 0.125)], [1], 10, id="many tests, of which none runs twice"),
        pytest.param([(160, 0.125)], [0.5], 10, id="more tests than there is time for"),
        pytest.param([(4, 0.125)] * 640, [1] * 640, 320, id="ten batches of quick ones"),
        pytest.param([], [], 0, id="none"),
    ],
)
def test_each_program_has_a_first_turn_and_those_that_overran_share_what_is_left(simulated, programs, shares, seconds):
    assert simulated(programs) == (shares, pytest.approx(seconds))


@pytest.mark.slow
def test_right_programs_pass_beside_64_endless_ones(shut_in, monkeypatch):
    monkeypatch.setattr(sandbox, "workers", lambda: 24)  # the endless ones sleep
    shut_in.batch_seconds = 2 * PATIENCE
    programs = ["import time\ntime.sleep(1000)"] * 64
    for place in (0, 20, 40, 67):
        programs.insert(place, "print('right')")
    shares = shut_in.share_passed(programs, [([("", "right")], None)] * 68)
    assert [place for place, share in enumerate(shares) if share] == [0, 20, 40, 67]


# Hostile programs: results they would like to have


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("print(True)\nprint('1.0')\nprint('passed')", id="a verdict is printed"),
        pytest.param("print('ready')", id="the driver's own message is printed"),
        pytest.param("import os\nos._exit(0)", id="an exit without output"),
        pytest.param("raise SystemExit(0)", id="an exit"),
        pytest.param(
            """
            import os
            for fd in range(1024):
                for text in (b"ready\\n", b"true\\n", b"{\\"passed\\": true}\\n", b"\\0" * 100):
                    try:
                        os.write(fd, text)
                    except OSError:
                        pass
            """,
            id="written to every file that is open",
        ),
        pytest.param("import atexit, os\natexit.register(os._exit, 0)", id="an exit at exit"),
        pytest.param(
            """
            import builtins, json, sys
            json.dumps = json.loads = lambda *args, **kwargs: True
            builtins.print = builtins.all = builtins.any = builtins.exit = sys.exit = lambda *args, **kwargs: True
            class Equal(str):
                __eq__ = lambda self, other: True
                __hash__ = str.__hash__
            builtins.str = Equal
            print(Equal())
            """,
            id="comparison is patched",
        ),
    ],
)
def test_result_cannot_be_forged(program, shut_in):
    assert share(shut_in, program, ("1 2", "3")) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("def solve(x): return True", id="True is returned"),
        pytest.param("print('true')\nprint('[42]')\ndef solve(x): return None", id="a result is printed"),
        pytest.param(
            "class Equal(int):\n    __eq__ = lambda self, other: True\ndef solve(x): return Equal(0)",
            id="equal to all",
        ),
        pytest.param("import json\njson.dumps = lambda result: 'true'\ndef solve(x): return 0", id="json is patched"),
        pytest.param("import json\njson.dumps = lambda result: '[' * 10**6\ndef solve(x): return 0", id="too deep"),
        pytest.param("import json\njson.dumps = lambda result: '9' * 10**6\ndef solve(x): return 0", id="too long"),
        pytest.param("import os\nos.write(1, b'true')\nos._exit(0)", id="an exit before the call"),
        pytest.param(
            """
            import os
            for fd in range(1024):
                try:
                    os.write(fd, b"true")
                except OSError:
                    pass
            os._exit(0)
            """,
            id="written to every file that is open",
        ),
    ],
)
def test_result_of_a_function_cannot_be_forged(program, shut_in):
    assert score_call(shut_in, program, "[42]", 1) == 0.0


def test_expected_output_is_nowhere_in_the_sandbox(shut_in):
    program = """
        import gc, os, re, sys
        texts = [repr(sys.orig_argv), repr(sys.argv), repr(os.environ), repr(os.uname())]
        for fd in range(1024):
            try:
                texts.append(repr(os.pread(fd, 1 << 20, 0)))
            except OSError:
                pass
        frame = sys._getframe()
        while frame:
            texts += [repr(frame.f_globals), repr(frame.f_locals)]
            frame = frame.f_back
        texts += map(repr, gc.get_objects())
        print((re.findall("hidden-[0-9]+", "".join(texts)) or ["not found"])[0])
    """
    assert share(shut_in, program, ("hidden-123456", "hidden-123456")) == 1.0  # so it would be found
    assert share(shut_in, program, ("", "hidden-123456")) == 0.0
    assert share(shut_in, program, ("", "not found")) == 1.0


# The sandbox's own end

ENDLESS_PARENT = """
import os
from r1zero.grading import sandbox
sandbox.DRIVER = f"# {os.environ['MARKER']}\\n{sandbox.DRIVER}"
program = "import threading, time; threading.Thread(target=time.sleep, args=[1000]).start(); time.sleep(1000)"
sandbox.Sandbox(seconds=1000, batch_seconds=10**6).share_passed([program] * 3, [([("", "")] * 3, None)] * 3)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_program_outlives_the_process_that_runs_it(number, marker, shut_in):
    environment = os.environ | {"MARKER": marker, "LOCAL_WORLD_SIZE": "1000", "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_PARENT], env=environment, stderr=subprocess.PIPE, text=True
    )

    def program_runs():
        """bwrap, the sandbox's process 1 and the program are there, and the program has started its thread."""
        pids = processes_with(marker)
        return len(pids) >= 3 and any(family(pid).get(pid) == 2 for pid in pids)

    try:
        assert wait_until(program_runs)
        parent.send_signal(number)
        _, error = parent.communicate(timeout=PATIENCE)
        assert parent.returncode == -number
        assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
        assert wait_until(lambda: not processes_with(marker))
    finally:
        parent.kill()
        parent.wait()


def test_ended_tests_leave_no_open_files_threads_or_children(shut_in):
    shut_in.seconds = 0.5
    tests = ([("", "")] * 4, None)

    def holdings():
        children = Path("/proc/self/task").glob("*/children")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), "".join(map(Path.read_text, children))

    before = holdings()
    shut_in.share_passed(["pass", "while True: pass", "1 / 0"], [tests] * 3)
    assert holdings() == before


def test_sandbox_that_fails_is_an_error_and_no_score(shut_in, monkeypatch):
    monkeypatch.setattr(sandbox, "sandbox_command", lambda filter_fd: ["/bin/false"])
    with pytest.raises(RuntimeError, match="exit status 1 before it ran"):
        share(shut_in, "print(1)", ("", "1"))


# Without bubblewrap


def test_without_bubblewrap_there_is_no_sandbox_unless_plain_processes_are_allowed(no_bubblewrap):
    with pytest.raises(RuntimeError, match=r"bubblewrap.*apt-get install bubblewrap.*--allow_unsandboxed_code"):
        Sandbox()
    allowed = Sandbox(allow_unsandboxed=True, **PATIENT)
    assert not allowed.shut_in and share(allowed, "print(input())", ("1", "1")) == 1.0


def test_programs_are_shut_in_where_plain_processes_are_allowed_but_bubblewrap_starts(shut_in, tmp_path):
    allowed = Sandbox(allow_unsandboxed=True, **PATIENT)
    assert allowed.shut_in and share(allowed, f"open({str(tmp_path / 'new')!r}, 'w')", ("", "")) == 0.0
    assert not list(tmp_path.iterdir())


def test_bubblewrap_that_does_not_start_is_named_with_its_reason(no_bubblewrap, monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="No permissions to create new namespace.*user namespaces") as refusal:
        Sandbox()
    assert "--allow_unsandboxed_code" in str(refusal.value)


def test_other_machines_are_told_so(no_bubblewrap, monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert "riscv64" in why_unavailable()
    plain = Sandbox(allow_unsandboxed=True, **PATIENT)
    assert share(plain, "print(input())", ("1", "1")) == 1.0


def test_plain_processes_run_ordinary_programs(plain):
    assert share(plain, "print(int(input()) ** 2)", ("3", "9"), ("4", "15")) == 0.5
    assert score_call(plain, "class Solution:\n    def solve(self, a): return a[::-1]", "[2, 1]", [1, 2]) == 1.0
    assert share(plain, "1 / 0", ("", "")) == 0.0

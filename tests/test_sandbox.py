"""Programs in the sandbox: right ones pass, hostile ones score 0.   bash tests/run.sh tests/test_sandbox.py

Skipped where bubblewrap does not start, but not in continuous integration (CI=true), where that is a failure.
"""

import contextlib
import doctest
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import uuid
from pathlib import Path

import pytest

import sandbox
from sandbox import parse_tests, python_block, share_passed

IN_CI = os.environ.get("CI") == "true"
needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None and not IN_CI, reason=str(sandbox.why_unavailable())
)
PATIENCE = 60  # seconds after which something hangs, on a busy machine, too


def share(program, *cases, fn_name=None):
    """The share of (stdin, expected) cases that one program passes."""
    return share_passed([textwrap.dedent(program)], [(list(cases), fn_name)])[0]


def score_call(program, expected, *arguments):
    """1.0 where the program's solve(*arguments) is what the JSON text `expected` says."""
    tests = {"inputs": ["\n".join(map(json.dumps, arguments))], "outputs": [expected], "fn_name": "solve"}
    return share_passed([textwrap.dedent(program)], [parse_tests(json.dumps(tests))])[0]


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


@pytest.fixture(autouse=True)
def marker(monkeypatch):
    """A word in the command line of every process that a test starts; after the test, none may be left."""
    word = f"marker-{uuid.uuid4().hex}"
    monkeypatch.setattr(sandbox, "DRIVER", f"# {word}\n{sandbox.DRIVER}")
    yield word
    assert not processes_with(word)


@pytest.fixture
def plain_processes(monkeypatch):
    """bubblewrap is not found, and plain processes are allowed."""
    monkeypatch.setattr(sandbox, "ALLOW_UNSANDBOXED_CODE", True)
    monkeypatch.setenv("PATH", "/nonexistent")
    sandbox.why_unavailable.cache_clear()
    yield
    sandbox.why_unavailable.cache_clear()


@pytest.mark.skipif(not IN_CI, reason="CI=true is not set: here a missing sandbox skips tests")
def test_continuous_integration_has_a_sandbox():
    assert sandbox.why_unavailable() is None


# Ordinary programs


@needs_sandbox
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
    ],
)
def test_right_program_passes(program):
    assert share(program, ("1 2\n", "3"), ("10 20\n", "30\n")) == 1.0


@needs_sandbox
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
def test_wrong_program_scores_zero(program):
    assert share(program, ("1 2\n", "3")) == 0.0


@needs_sandbox
def test_share_of_passed_tests_is_the_score():
    cases = ("1", "1"), ("2", "4"), ("3", "9"), ("0", "0")
    assert share("print(int(input()) ** 2)", *cases) == 1.0
    assert share("print(int(input()))", *cases) == 0.5
    assert share("print(1 // int(input()))", *cases) == 0.25


@needs_sandbox
def test_text_of_any_script_and_size_passes_through():
    text = "\u00e9\u4e2d\U0001f600 " * 10**5
    assert share("print(input())", (text, text)) == 1.0


@needs_sandbox
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
def test_right_function_passes(program, expected):
    assert score_call(program, expected, [1, 2], [3]) == 1.0
    assert score_call(program, "[1, 2, 3, 4]", [1, 2], [3]) == 0.0


@needs_sandbox
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
def test_wrong_function_scores_zero(program):
    assert score_call(program, "[1, 2, 3]", [1, 2], [3]) == 0.0


@needs_sandbox
def test_none_instead_of_a_program_scores_zero():
    tests = ([("", "")], None)
    assert share_passed([None, "pass", None], [tests] * 3) == [0.0, 1.0, 0.0]
    assert share_passed([], []) == []


@needs_sandbox
def test_one_of_more_processes_a_machine_still_has_a_worker(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert share("print(input())", ("1", "1"), ("2", "2")) == 1.0


# Hostile programs. Each attack ends with exit status 0 where it succeeds, so that its test fails.

OUT_OF_REACH = {
    "a secret file": "print(open({secret!r}).read())",
    "the user's names": "open('/etc/passwd').read()\nprint('done')",
    "the project's own files": "open({project!r}).read()\nprint('done')",
    "the parent's environment": "open('/proc/{pid}/environ', 'rb').read()\nprint('done')",
    "the environment of process 1": "open('/proc/1/environ', 'rb').read()\nprint('done')",
    "its own entry in /proc": "open('/proc/self/status').read()\nprint('done')",
    "the machine's settings": "open('/proc/sys/vm/swappiness', 'r+').close()\nprint('done')",
    "a socket": "import socket\nsocket.socket()\nprint('done')",
    "a socket of the machine's own": "import socket\nsocket.socket(socket.AF_UNIX)\nprint('done')",
    "a pair of sockets": "import socket\nsocket.socketpair()\nprint('done')",
    "a listener on this machine": "import socket\nsocket.create_connection(('127.0.0.1', {port}))\nprint('done')",
    "a second process": "import os\nif os.fork() == 0: os._exit(0)\nprint('done')",
    "another program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)\nprint('done')",
    "a file in memory": "import os\nos.memfd_create('x')\nprint('done')",
    "a new file": "open({new_file!r}, 'w').write('x')\nprint('done')",
    "a signal to the parent": "import os\nos.kill({pid}, 0)\nprint('done')",
}


@pytest.fixture
def places(tmp_path):
    """What the attacks aim at: a secret file, a listener, this process."""
    secret = tmp_path / "secret.txt"
    secret.write_text("done")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {
            "secret": str(secret),
            "project": sandbox.__file__,
            "pid": os.getpid(),
            "port": listener.getsockname()[1],
            "new_file": str(tmp_path / "new"),
        }


@needs_sandbox
@pytest.mark.parametrize("attack", OUT_OF_REACH.values(), ids=OUT_OF_REACH.keys())
def test_program_cannot_reach(attack, places, tmp_path):
    attack = attack.format(**places)
    refused = f"try:\n{textwrap.indent(attack, '    ')}\nexcept OSError as error:\n    print(type(error).__name__)"
    assert share(attack, ("", "done")) == 0.0
    errors = ("FileNotFoundError", "PermissionError", "ProcessLookupError", "OSError")
    assert sum(share(refused, ("", name)) for name in errors) == 1.0  # refused by the kernel, not failed by mistake
    assert os.listdir(tmp_path) == ["secret.txt"]


@pytest.mark.parametrize("name", OUT_OF_REACH.keys() - {"the environment of process 1", "the machine's settings"})
def test_same_attack_succeeds_in_a_plain_process(name, places, plain_processes, monkeypatch):
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_FSIZE", 1 << 20)
    assert share(OUT_OF_REACH[name].format(**places), ("", "done")) == 1.0


@needs_sandbox
def test_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert share("import os\nprint(os.environ.keys() - {'PWD', 'LC_CTYPE'})", ("", "set()")) == 1.0


def test_environment_of_a_plain_process_is_empty(monkeypatch, plain_processes):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert share("import os\nprint(os.environ.keys() - {'LC_CTYPE'})", ("", "set()")) == 1.0  # set by Python itself


@needs_sandbox
def test_every_system_call_on_the_list_is_refused():
    column = sandbox.MACHINES[os.uname().machine][0]
    numbers = [numbers[column] for numbers in sandbox.REFUSED.values() if numbers[column] is not None]
    numbers += [sandbox.CLONE[column], sandbox.CLONE3]
    program = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for number in {numbers}:
            print(libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno())
    """
    expected = [f"-1 {errno.EPERM}"] * (len(numbers) - 1) + [f"-1 {errno.ENOSYS}"]
    assert share(program, ("", "\n".join(expected))) == 1.0


@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_filter_allows_threads_and_refuses_processes(machine):
    """Runs the filter as the kernel would, also that of the machine at which we are not."""
    filter_bytes = sandbox.seccomp_filter(machine)
    steps = list(struct.iter_unpack("HBBI", filter_bytes))

    def verdict(number, argument=0, architecture=None):
        data = struct.pack("IIQQ", number, architecture or sandbox.MACHINES[machine][1], 0, argument)
        at = value = 0
        while True:
            code, if_true, if_false, operand = steps[at]
            if code == 0x06:
                return operand
            if code == 0x20:
                value = struct.unpack_from("I", data, operand)[0]
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                at += if_true if holds else if_false
            at += 1

    allow, refuse, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
    names = "clone fork socket socketpair memfd_create shmget ptrace unshare keyctl io_uring_setup read openat".split()
    x86_64 = (56, 57, 41, 53, 319, 29, 101, 272, 250, 425, 0, 257)
    aarch64 = (220, 220, 198, 199, 279, 194, 117, 97, 219, 425, 63, 56)  # which has no fork
    number = dict(zip(names, {"x86_64": x86_64, "aarch64": aarch64}[machine], strict=True))
    assert verdict(number["clone"], signal.SIGCHLD) == refuse  # os.fork
    assert verdict(number["clone"], 0x4100 | signal.SIGCHLD) == refuse  # subprocess
    assert verdict(number["clone"], 0x3D0F00) == allow  # a thread as glibc makes it
    assert verdict(435) == 0x00050000 | errno.ENOSYS  # clone3
    assert {verdict(number[name]) for name in names[:-2]} == {refuse}
    assert {verdict(number[name]) for name in names[-2:]} == {allow}
    assert verdict(0x40000000 + 41) == refuse  # socket in the x32 numbering
    assert verdict(0, architecture=0x40000003) == kill  # 32-bit x86


@needs_sandbox
def test_program_can_write_only_to_a_tmp_of_its_own(tmp_path):
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
        print("nowhere else")
    """
    outcome = share(program, ("", "/tmp\nnowhere else"), ("", "/tmp\nnowhere else"))
    assert outcome == 1.0, "nor does the second test find the first one's file"
    assert not [folder for folder in ("/tmp", "/var/tmp", "/dev/shm", tmp_path) if (Path(folder) / name).exists()]


@needs_sandbox
def test_disk_cannot_be_filled():
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
    assert share(program, ("", "16")) == 1.0


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import time\nprint('done', flush=True)\ntime.sleep(1000)", id="sleep"),
        pytest.param("print('done', flush=True)\nwhile True: pass", id="a loop"),
        pytest.param(
            """
            import os, signal
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except OSError:
                    pass
            print('done', flush=True)
            while True: signal.pause()
            """,
            id="all signals ignored",
        ),
        pytest.param("import os\nprint('done', flush=True)\nos.kill(os.getpid(), 19)", id="stopped by its own signal"),
        pytest.param(
            "import os, time\nprint('done', flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(1000)",
            id="stdout closed",
        ),
        pytest.param("import atexit, time\nprint('done')\natexit.register(time.sleep, 1000)", id="at exit"),
        pytest.param(
            "import threading, time\nprint('done')\nthreading.Thread(target=time.sleep, args=[1000]).start()",
            id="a thread that stays",
        ),
        pytest.param(
            "import sys\nsys.set_int_max_str_digits(0)\nprint('done', flush=True)\nstr(9**10**8)",
            id="one long operation",
        ),
    ],
)
def test_endless_program_is_ended(program, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1.5)
    started = time.monotonic()
    assert share(program, *[("", "done")] * 3) == 0.0
    assert time.monotonic() - started < PATIENCE


@needs_sandbox
def test_deadline_is_shared_by_all_tests_of_a_program(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 4)
    started = time.monotonic()
    assert 0 < share("import time\ntime.sleep(float(input()))", *[("0", "")] * 4, *[("3", "")] * 100) < 0.5
    assert time.monotonic() - started < PATIENCE


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import os\nwhile True: os.fork()", id="forks without end"),
        pytest.param(
            """
            import os
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
            """,
            id="forks without end, undeterred",
        ),
        pytest.param("x = bytearray(1 << 31)\nprint('done')", id="two gigabytes at once"),
        pytest.param("x = []\nwhile True: x.append(bytes(1 << 20))", id="memory without end"),
        pytest.param(
            """
            x = []
            while True:
                try:
                    x.append(bytearray(1 << 20))
                except MemoryError:
                    pass
            """,
            id="memory without end, undeterred",
        ),
        pytest.param("import mmap\nmmap.mmap(-1, 1 << 31)\nprint('done')", id="two gigabytes of shared memory"),
        pytest.param("import os\nwhile True: os.write(1, b'x' * (1 << 20))", id="output without end"),
    ],
)
def test_resources_are_bounded(program, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 2)
    tests = ([("", "done")], None)
    assert share_passed([textwrap.dedent(program), "print('done')"], [tests] * 2) == [0.0, 1.0]


THREADS_WITHOUT_END = """
import threading, time
threading.stack_size(1 << 15)
while True:
    try:
        threading.Thread(target=time.sleep, args=[10**6]).start()
    except RuntimeError:
        time.sleep(1)
"""


@needs_sandbox
def test_program_with_too_many_threads_is_ended_before_its_time(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 100 * PATIENCE)
    started = time.monotonic()
    assert share(THREADS_WITHOUT_END, ("", "")) == 0.0
    assert time.monotonic() - started < PATIENCE


@needs_sandbox
def test_gigabyte_of_output_is_not_kept_in_memory():
    tracemalloc.start()
    try:
        assert share("for _ in range(1024): print('x' * (1 << 20))", ("", "x")) == 0.0
        assert tracemalloc.get_traced_memory()[1] < 8 * sandbox.OUTPUT
    finally:
        tracemalloc.stop()


@needs_sandbox
def test_output_longer_than_the_limit_passes_where_it_is_expected(monkeypatch):
    monkeypatch.setattr(sandbox, "OUTPUT", 1000)
    text = "\u4e2d" * 10**5
    assert share("print(input())", (text, text)) == 1.0
    assert share("print('x' * 2000)", ("", "x")) == 0.0


@needs_sandbox
@pytest.mark.parametrize(
    "target", ["os.getppid(), 9", "0, 9", "1, 9", "-1, 9", "-1, 15", "-1, 19", "{pid}, 9", "{group}, 9"]
)
def test_program_cannot_kill_those_who_run_it(target):
    target = target.format(pid=os.getpid(), group=-os.getpgid(0))
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        assert share(f"import os\nos.kill({target})\nprint(input())", ("wrong", "right")) == 0.0
        assert share("print(input())", ("right", "right")) == 1.0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@needs_sandbox
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
def test_result_cannot_be_forged(program):
    assert share(program, ("1 2", "3")) == 0.0


@needs_sandbox
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
def test_result_of_a_function_cannot_be_forged(program):
    assert score_call(program, "[42]", 1) == 0.0


@needs_sandbox
def test_expected_output_is_nowhere_in_the_sandbox():
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
    assert share(program, ("hidden-123456", "hidden-123456")) == 1.0  # so it would be found
    assert share(program, ("", "hidden-123456")) == 0.0
    assert share(program, ("", "not found")) == 1.0


@needs_sandbox
def test_bombs_do_not_harm_the_good_programs_of_their_batch(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 3)
    good = "print(input())"
    programs = [
        "while True: pass",
        good,
        "import os\nwhile True: os.fork()",
        "x = []\nwhile True: x.append(bytes(1 << 20))",
        good,
        "while True: print('x' * 10**6)",
        None,
        "import os\nos.kill(-1, 9)\nos.kill(os.getppid(), 9)",
        good,
    ]
    started = time.monotonic()
    shares = share_passed(programs, [([("1", "1"), ("2", "2")], None)] * len(programs))
    assert shares == [float(program is good) for program in programs]
    assert time.monotonic() - started < PATIENCE


# The sandbox's own end

ENDLESS_PARENT = """
import os, sys
import sandbox
assert sandbox.why_unavailable() is None
sandbox.DRIVER = f"# {os.environ['MARKER']}\\n{sandbox.DRIVER}"
sandbox.SECONDS = 1000
sandbox.share_passed(["import time; time.sleep(1000)"] * 3, [([("", "")] * 3, None)] * 3)
"""


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_program_outlives_the_process_that_runs_it(number, marker):
    environment = {
        **os.environ,
        "MARKER": marker,
        "LOCAL_WORLD_SIZE": "1000",
        "PYTHONPATH": str(Path(sandbox.__file__).parent),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_PARENT], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        # bwrap, the sandbox's process 1 and the program itself, which is then past its first output to the parent
        assert wait_until(lambda: len(processes_with(marker)) >= 3)
        time.sleep(1)
        parent.send_signal(number)
        _, error = parent.communicate(timeout=PATIENCE)
        assert parent.returncode == -number
        assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
        assert wait_until(lambda: not processes_with(marker))
    finally:
        parent.kill()
        parent.wait()


@needs_sandbox
def test_ended_tests_leave_no_open_files_threads_or_children(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    tests = ([("", "")] * 4, None)

    def holdings():
        children = Path("/proc/self/task").glob("*/children")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), "".join(map(Path.read_text, children))

    before = holdings()
    share_passed(["pass", "while True: pass", "1 / 0"], [tests] * 3)
    assert holdings() == before


@needs_sandbox
def test_sandbox_that_fails_is_an_error_and_no_score(monkeypatch):
    monkeypatch.setattr(sandbox, "sandbox_command", lambda filter_fd: ["/bin/false"])
    with pytest.raises(RuntimeError, match="exit status 1 before it ran"):
        share("print(1)", ("", "1"))


# Without bubblewrap


def test_without_bubblewrap_nothing_is_run_unless_allowed(plain_processes, monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "ALLOW_UNSANDBOXED_CODE", False)
    program = f"open({str(tmp_path / 'ran')!r}, 'w')"
    with pytest.raises(RuntimeError, match=r"bubblewrap.*apt-get install bubblewrap.*--allow_unsandboxed_code"):
        share(program, ("", ""))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(sandbox, "ALLOW_UNSANDBOXED_CODE", True)
    assert share(program, ("", "")) == 1.0
    assert (tmp_path / "ran").exists()


def test_bubblewrap_that_does_not_start_is_named_with_its_reason(plain_processes, monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    why = sandbox.why_unavailable()
    for words in ("No permissions to create new namespace", "user namespaces", "--allow_unsandboxed_code"):
        assert words in why


def test_other_machines_are_told_so(plain_processes, monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert "riscv64" in sandbox.why_unavailable()
    assert share("print(input())", ("1", "1")) == 1.0  # as a plain process


def test_plain_processes_run_ordinary_programs(plain_processes):
    assert share("print(int(input()) ** 2)", ("3", "9"), ("4", "15")) == 0.5
    assert score_call("class Solution:\n    def solve(self, a): return a[::-1]", "[2, 1]", [1, 2]) == 1.0
    assert share("1 / 0", ("", "")) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("while True: pass", id="the processor"),
        pytest.param("x = []\nwhile True: x.append(bytes(1 << 20))", id="memory"),
        pytest.param("while True: print('x' * 10**6)", id="output"),
        pytest.param("import tempfile\ntempfile.TemporaryFile().write(bytes(17 << 20))", id="a file"),
        pytest.param(THREADS_WITHOUT_END, id="threads"),
    ],
)
def test_limits_hold_in_plain_processes(program, plain_processes, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 100 * PATIENCE)
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_CPU", 2)
    started = time.monotonic()
    assert share(program, ("", "")) == 0.0
    assert time.monotonic() - started < PATIENCE


def test_plain_process_is_ended_at_its_deadline_with_its_children(plain_processes, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    assert share("import os, time\nos.fork()\ntime.sleep(1000)", ("", "")) == 0.0


# Tests as text, and programs in a completion


@pytest.mark.parametrize(
    ("tests", "parsed"),
    [
        pytest.param({"inputs": ["1\n"], "outputs": ["2\n"]}, ([("1\n", "2\n")], None), id="text"),
        pytest.param({"inputs": [["1", "2"]], "outputs": [["3"]]}, ([("1\n2", "3")], None), id="lists of lines"),
        pytest.param({"inputs": [""], "outputs": ["2"], "fn_name": None}, ([("", "2")], None), id="fn_name is null"),
        pytest.param(
            {"inputs": [[[1, 2], "x"]], "outputs": [[3]], "fn_name": "f"},
            ([('[[1, 2], "x"]', [[3]])], "f"),
            id="a list of arguments",
        ),
        pytest.param(
            {"inputs": ['[1, 2]\n"x"\n'], "outputs": ["3"], "fn_name": "f"},
            ([('[[1, 2], "x"]', ["3", 3])], "f"),
            id="an argument a line",
        ),
        pytest.param({"inputs": [""], "outputs": ["x"], "fn_name": "f"}, ([("[]", ["x"])], "f"), id="no arguments"),
    ],
)
def test_tests_are_read(tests, parsed):
    assert parse_tests(json.dumps(tests)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{'inputs': ['1'], 'outputs': ['2']}", id="no JSON"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param('{"inputs": ["1"]}', id="no outputs"),
        pytest.param('{"outputs": ["1"]}', id="no inputs"),
        pytest.param('{"inputs": [], "outputs": []}', id="no tests"),
        pytest.param('{"inputs": ["1", "2"], "outputs": ["1"]}', id="an output too few"),
        pytest.param('{"inputs": "1", "outputs": "1"}', id="no lists"),
        pytest.param('{"inputs": [1], "outputs": ["1"]}', id="an input that is no text"),
        pytest.param('{"inputs": ["1"], "outputs": [["1", 2]]}', id="a line that is no text"),
        pytest.param('{"inputs": ["1"], "outputs": ["1"], "fn_name": "f()"}', id="a name that is none"),
        pytest.param('{"inputs": ["1"], "outputs": ["1"], "fn_name": 1}', id="a name that is a number"),
        pytest.param('{"inputs": ["[1"], "outputs": ["1"], "fn_name": "f"}', id="arguments that are no JSON"),
        pytest.param('{"inputs": [1], "outputs": ["1"], "fn_name": "f"}', id="arguments that are no list"),
        pytest.param(None, id="None"),
    ],
)
def test_unreadable_tests_are_an_error_that_says_what_is_wanted(text):
    with pytest.raises(ValueError, match="wanted"):
        parse_tests(text)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        pytest.param("```python\nprint(1)\n```", "print(1)", id="a block"),
        pytest.param("So:\n```python\na\n\n  b\n```\nDone.", "a\n\n  b", id="lines between text"),
        pytest.param("```python\na\n```\n```python\nb\n```", "b", id="the last block counts"),
        pytest.param("```python\na\n```\n```python\nb", "a", id="the last complete block counts"),
        pytest.param("```python\na\n```python\nb\n```", "b", id="a block begun anew"),
        pytest.param("```Python \r\na\r\n``` \r\n", "a\r", id="capitals and carriage returns"),
        pytest.param("<answer>```python\na\n```</answer>", "a", id="in tags"),
        pytest.param("```python\nx = '```'\n```", "x = '```'", id="a fence within a line"),
        pytest.param("```python\n```", "", id="an empty block"),
        pytest.param("```python\na\n```\n```text\nb\n```", "a", id="a block in another language"),
        pytest.param("```\na\n```", None, id="no language"),
        pytest.param("```py\na\n```", None, id="another name of the language"),
        pytest.param("```python3\na\n```", None, id="a version"),
        pytest.param("```python\na", None, id="never closed"),
        pytest.param("print(1)", None, id="no block"),
        pytest.param("", None, id="empty"),
        pytest.param("```python\n" * 10**5, None, id="never closed, many times"),
        pytest.param("```" * 10**6, None, id="a megabyte of fences"),
        pytest.param("```python\na\n```\n" * 10**5, "a", id="many blocks"),
    ],
)
def test_last_complete_python_block_is_the_program(text, program):
    started = time.monotonic()
    assert python_block(text) == program
    assert time.monotonic() - started < PATIENCE


def test_examples_in_docstrings_hold():
    assert doctest.testmod(sandbox).failed == 0

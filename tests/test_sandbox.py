"""Programs in the sandbox: right ones pass, hostile ones score 0.   bash tests/run.sh tests/test_sandbox.py

Most programs stand in tests/cases/programs.txt, and in out_of_reach.tsv what succeeds in a plain process, and how the
kernel refuses it in the sandbox. Skipped if bubblewrap does not start, but a failure in continuous integration
(CI=true). Programs that must pass have PATIENCE, which only a hang meets; those that must be ended have little time.
"""

import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import tracemalloc
import uuid
from pathlib import Path

import psutil
import pytest
from conftest import CASES, ENVIRONMENT, PATIENCE, each_case, rows_of, wait_until, write_commands

from r1zero.grading import sandbox
from r1zero.grading.program_tests import is_expected, parse_tests
from r1zero.grading.sandbox import Sandbox, family, run_test, why_unavailable

PATIENT = {"seconds": PATIENCE, "batch_seconds": 2 * sandbox.BATCH * PATIENCE}  # in the first turn already


@pytest.fixture(autouse=True)
def marker(monkeypatch):
    """A word in the command line of every process that a test starts; after the test, none may be left."""
    word = f"marker-{uuid.uuid4().hex}"
    monkeypatch.setattr(sandbox, "DRIVER", f"# {word}\n{sandbox.DRIVER}")
    yield word
    wait_until(lambda: not processes_with(word))


@pytest.fixture
def shut_in():
    if why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(why_unavailable())
    box = Sandbox(allow_unsandboxed=True, **PATIENT)
    assert box.shut_in, "as bubblewrap starts"
    return box


@pytest.fixture
def plain(no_bubblewrap):
    """What runs in place of the sandbox if bubblewrap is not found and plain processes are allowed."""
    return Sandbox(allow_unsandboxed=True, **PATIENT)


def processes_with(marker):
    """Ids of all processes on the machine whose command line holds the marker."""
    every = psutil.process_iter(["cmdline"])
    return [process.pid for process in every if marker in "".join(process.info["cmdline"] or ())]


def share(box, program, *cases):
    """The share of (stdin, expected) cases that one program passes."""
    return box.share_passed([program], [(list(cases), None)])[0]


def share_of_each(box, batch, case):
    """{name: share} of programs, given as {name: program}, that run side by side on one case."""
    shares = box.share_passed(list(batch.values()), [([case], None)] * len(batch))
    return dict(zip(batch, shares, strict=True))


def lines_printed(program, shut_in=True):
    """The lines that a program prints, which must end with exit status 0."""
    output, _ = run_test(program, None, "", sandbox.OUTPUT, PATIENCE, threading.Event(), shut_in)
    assert output is not None, "the program failed"
    return output.decode().splitlines()


def programs(*kinds):
    """{name: program} of the programs of some kinds in tests/cases/programs.txt."""
    parts = [part.partition("\n") for part in (CASES / "programs.txt").read_text().split("\n### ")[1:]]
    titles = [(*title.split(": ", 1), program) for title, _, program in parts]
    return {name: program for kind, name, program in titles if kind in kinds}


KINDS = {  # of programs: the tests, and the share of them that each program passes
    "right": ({"inputs": ["1 2\n", "10 20\n"], "outputs": ["3", "30\n"]}, 1.0),
    "wrong": ({"inputs": ["1 2\n"], "outputs": ["3"]}, 0.0),
    "right function": ({"inputs": ["[1, 2]\n[3]"] * 2, "outputs": ["[1, 2, 3]", "[1, 2, 3, 4]"]}, 0.5),
    "wrong function": ({"inputs": ["1\n2"], "outputs": ["[42]"]}, 0.0),
}
PROGRAMS = {(kind, name): program for kind in KINDS for name, program in programs(kind).items()}
PROGRAMS |= {("wrong", "nothing"): "", ("wrong", "a NUL"): "print(3)\n\0", ("wrong", "too deep"): "(" * 10**5}
PROGRAMS |= {("wrong", "a lone surrogate"): "print(3)\ud800"}
if sys.version_info[:2] in ((3, 12), (3, 13)):  # which have a limit of their own that a program cannot raise
    del PROGRAMS["right", "deep recursion through functools.cache"]


@pytest.mark.parametrize(("kind", "name"), PROGRAMS)
def test_right_program_passes_and_wrong_or_forging_one_scores_zero(kind, name, shut_in):
    tests, expected = KINDS[kind]
    tests = tests | {"fn_name": "solve" if "function" in kind else None}
    assert shut_in.share_passed([PROGRAMS[kind, name]], [parse_tests(json.dumps(tests))]) == [expected]


def test_share_of_passed_tests_is_the_score(shut_in, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")  # one of more processes than cores still has a worker
    cases = ("1", "1"), ("2", "4"), ("3", "9"), ("0", "0")
    assert share(shut_in, "print(int(input()))", *cases) == 0.5
    text = "\u00e9\u4e2d\U0001f600 " * 10**6  # more than sandbox.OUTPUT
    assert shut_in.share_passed([None, "print(input())"], [([(text, text)], None)] * 2) == [0.0, 1.0]
    assert shut_in.share_passed([], []) == []


def test_expected_output_is_nowhere_in_the_sandbox(shut_in):
    program = programs("search")["what looks like the expected output"]
    assert share(shut_in, program, ("hidden-123456", "hidden-123456")) == 1.0  # so it would be found
    assert share(shut_in, program, ("", "hidden-123456")) == 0.0


# What hostile programs reach for


def test_program_reaches_nothing_outside_that_a_plain_process_reaches(shut_in, tmp_path):
    """A secret file, a listener and this process, among others."""
    (tmp_path / "secret.txt").write_text("secret")
    table = rows_of("out_of_reach.tsv")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        aims = {"secret": str(tmp_path / "secret.txt"), "new_file": str(tmp_path / "new"), "pid": os.getpid()}
        aims |= {"project": sandbox.__file__, "port": listener.getsockname()[1]}
        attacks = {attack["what"]: json.loads(attack["code"]).format(**aims) for attack in table}
        program = (
            f"for name, attack in {attacks}.items():\n"
            "    try:\n        exec(attack)\n        print(f'{name}: succeeds')\n"
            "    except OSError as error:\n        print(f'{name}: {type(error).__name__}')"
        )
        assert lines_printed(program) == [f"{attack['what']}: {attack['refusal']}" for attack in table]
        assert os.listdir(tmp_path) == ["secret.txt"]
        reached = lines_printed(program, shut_in=False)
    assert {f"{attack['what']}: succeeds" for attack in table if attack["who"] == "anybody"} <= set(reached)


# fork, socket, socketpair, memfd_create, shmget, ptrace, unshare, keyctl, io_uring_setup; read and openat
X86 = ("x86_64", 0xC000003E, 56, [57, 41, 53, 319, 29, 101, 272, 250, 425, 0x40000000 + 41], [0, 257])
ARM = ("aarch64", 0xC00000B7, 220, [198, 199, 279, 194, 117, 97, 219, 425], [63, 56])


@pytest.mark.parametrize(("machine", "architecture", "clone", "refused", "allowed"), [X86, ARM])
def test_filter_allows_threads_and_refuses_processes(machine, architecture, clone, refused, allowed):
    """Runs the filter as the kernel would."""
    steps = list(struct.iter_unpack("HBBI", sandbox.filter_program(machine)))

    def verdict(number, argument=0, architecture=architecture):
        data = struct.pack("IIQQ", number, architecture, 0, argument)  # struct seccomp_data, as far as it is read
        at = value = 0
        while True:
            code, if_true, if_false, operand = steps[at]
            if code == 0x06:
                return operand
            if code == 0x20:
                (value,) = struct.unpack_from("I", data, operand)
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                at += if_true if holds else if_false
            at += 1

    allow, refuse = 0x7FFF0000, 0x00050000
    assert verdict(clone, signal.SIGCHLD) == refuse | errno.EPERM  # os.fork
    assert verdict(clone, 0x3D0F00) == allow  # a thread as glibc makes it
    assert verdict(435) == refuse | errno.ENOSYS  # clone3
    listed = {numbers[sandbox.MACHINES[machine][0]] for numbers in sandbox.REFUSED.values()} - {None}
    assert {verdict(number) for number in {*refused, *listed}} == {refuse | errno.EPERM}
    assert {verdict(number) for number in allowed} == {allow}
    assert verdict(0, architecture=0x40000003) == 0x80000000, "32-bit x86 is killed"


def test_program_can_write_only_to_a_tmp_of_its_own_with_sixteen_megabytes(shut_in, tmp_path):
    name = f"new-{uuid.uuid4().hex}"
    program = programs("search")["places to write to"].replace("NAME", name).replace("FOLDER", str(tmp_path))
    assert lines_printed(program) == ["/tmp", "16"]
    assert lines_printed(program) == ["/tmp", "16"], "the second test does not find the first one's files"
    assert not [folder for folder in ("/tmp", "/var/tmp", "/dev/shm", tmp_path) if (Path(folder) / name).exists()]


def test_program_cannot_kill_those_who_run_it(shut_in):
    targets = ["os.getppid(), 9", "0, 9", "1, 9", "-1, 9", "-1, 19", f"{os.getpid()}, 9", f"{-os.getpgid(0)}, 9"]
    batch = {f"os.kill({target})": f"import os\nos.kill({target})\nprint('wrong')" for target in targets}
    batch["good"] = "print('right')"
    assert share_of_each(shut_in, batch, ("", "right")) == dict.fromkeys(batch, 0.0) | {"good": 1.0}


# What hostile programs use up


@pytest.mark.parametrize(("box", "bombs"), [("shut_in", "bomb in the sandbox"), ("plain", "bomb in a plain process")])
def test_bombs_score_zero_and_do_not_harm_the_good_programs_of_their_batch(request, monkeypatch, box, bombs):
    box = request.getfixturevalue(box)
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_CPU", 1)
    batch = {}
    for name, bomb in programs("bomb", bombs).items():
        batch[name] = f"import os, time\nstarted = time.monotonic()\n{bomb}\nprint('done', flush=True)\nos._exit(0)"
        batch[f"good, after {name}"] = "print('done')"
    expected = {name: float(name.startswith("good")) for name in batch}
    assert share_of_each(box, batch, ("", "done")) == expected


def test_more_output_than_expected_is_not_kept_in_memory(shut_in):
    tracemalloc.start()
    try:
        assert share(shut_in, "for _ in range(1024): print('x' * (1 << 20))", ("", "x")) == 0.0
        assert tracemalloc.get_traced_memory()[1] < 8 * sandbox.OUTPUT
    finally:
        tracemalloc.stop()


def test_endless_program_is_ended_and_leaves_no_open_files_threads_or_children(shut_in, monkeypatch):
    def holdings():
        children = Path("/proc/self/task").glob("*/children")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), "".join(map(Path.read_text, children))

    before, endless = holdings(), programs("endless")
    monkeypatch.setattr(sandbox, "share_of_cores", lambda: len(endless))  # all at a time
    shut_in.seconds = 1.5
    assert share_of_each(shut_in, endless, ("", "done")) == dict.fromkeys(endless, 0.0)
    assert share(shut_in, "import time\ntime.sleep(0.1)", *[("", "")] * 100) < 0.5, "the time is for all of its tests"
    assert holdings() == before


@each_case("sandbox_turns.tsv")
def test_each_program_has_a_first_turn_and_those_that_overran_share_what_is_left(no_bubblewrap, monkeypatch, case):
    """On a made-up clock. programs: how many, of how many tests, each of so many seconds, and their share passed."""
    took = []

    def run_test(program, fn_name, stdin, limit, seconds, stop, shut_in):
        took.append(min(float(program), seconds))
        return b"" if float(program) <= seconds else None, took[-1]

    monkeypatch.setattr(sandbox, "run_test", run_test)
    batch = [row for number, *row in json.loads(case["programs"]) for _ in range(number)]
    tests = [([("", "")] * number, None) for number, _, _ in batch]
    shares = Sandbox(allow_unsandboxed=True).share_passed([str(each) for _, each, _ in batch], tests)
    assert shares == [share for _, _, share in batch] and sum(took) == pytest.approx(float(case["seconds"]))


# The sandbox's own end

ENDLESS_PARENT = """
import os
from r1zero.grading import sandbox
sandbox.share_of_cores = lambda: 1
sandbox.DRIVER = f"# {os.environ['MARKER']}\\n{sandbox.DRIVER}"
program = "import threading, time; threading.Thread(target=time.sleep, args=[1000]).start(); time.sleep(1000)"
sandbox.Sandbox(seconds=1000, batch_seconds=10**6).share_passed([program] * 3, [([("", "")] * 3, None)] * 3)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_program_outlives_the_process_that_runs_it(begin, number, marker, shut_in, monkeypatch):
    """The fixture `marker` waits for their end."""
    monkeypatch.setitem(ENVIRONMENT, "MARKER", marker)
    run = begin([sys.executable, "-c", ENDLESS_PARENT])
    # bwrap, the sandbox's process 1 and the program, which has started its thread
    run.await_(lambda: any(family(pid).get(pid) == 2 for pid in processes_with(marker)))
    run.process.send_signal(number)
    assert run.process.wait(PATIENCE) == -number


def test_sandbox_that_fails_is_an_error_and_no_score(shut_in, monkeypatch):
    monkeypatch.setattr(sandbox, "sandbox_command", lambda filter_fd: ["/bin/false"])
    with pytest.raises(RuntimeError, match="exit status 1 before it ran"):
        share(shut_in, "print(1)", ("", "1"))


def test_missing_or_broken_bubblewrap_or_another_machine_is_an_error_that_says_what_to_type(monkeypatch, tmp_path):
    def refused():
        why_unavailable.cache_clear()
        with pytest.raises(RuntimeError, match="--allow_unsandboxed_code") as error:
            Sandbox()
        return str(error.value)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "bubblewrap (bwrap) is not installed: apt-get install bubblewrap" in refused()
    (tmp_path / "bash").symlink_to("/bin/bash")
    write_commands(tmp_path, bwrap="echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    assert "No permissions to create new namespace): enable unprivileged user namespaces" in refused()
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert "this machine is riscv64" in refused()
    why_unavailable.cache_clear()


def test_plain_processes_run_ordinary_programs_and_are_ended_with_their_children(plain):
    assert not plain.shut_in
    assert share(plain, "import os; os.environ['PATH']", ("", "")) == 0.0, "the environment is empty"
    assert share(plain, "print(int(input()) ** 2)", ("3", "9"), ("4", "15")) == 0.5
    plain.seconds = 1
    assert share(plain, "import os, time\nos.fork()\ntime.sleep(1000)", ("", "")) == 0.0


# A row's tests are read, and outputs compared with them


@each_case("program_tests.tsv")
def test_tests_are_read_and_outputs_compared(case):
    """An output is compared with the lines 1 and 2, a result with [1, 2]."""
    given, expected = json.loads(case["given"]), json.loads(case["expected"])
    match case["kind"]:
        case "tests":
            assert json.loads(json.dumps(parse_tests(given))) == expected
        case "no tests":
            with pytest.raises(ValueError, match="wanted"):
                parse_tests(given)
        case "output":
            assert is_expected(given.encode(errors="surrogateescape"), "1\n2", None) == expected
        case "result":
            assert is_expected(given.encode(errors="surrogateescape"), ["[1, 2]", [1, 2]], "f") == expected


def test_result_that_cannot_be_read_is_not_expected_and_one_in_a_list_of_its_own_is():
    for too_deep_or_too_long in (b"[" * 10**6, b"9" * 10**6):
        assert not is_expected(too_deep_or_too_long, ["[1, 2]", [1, 2]], "f")
    assert is_expected(b"[1, 2]", ["[[1, 2]]", [[1, 2]]], "f")

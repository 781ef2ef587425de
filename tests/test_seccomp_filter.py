"""The filter of system calls, run here as the kernel would.   bash tests/run.sh tests/test_seccomp_filter.py

That the kernel applies it stands in test_sandbox.py.
"""

import errno
import signal
import struct

import pytest

from r1zero.grading import seccomp_filter

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
DOES_NOT_EXIST = 0x00050000 | errno.ENOSYS
NUMBERS = {  # of system calls on x86_64, on aarch64, which has no fork
    "clone": (56, 220),
    "fork": (57, 220),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "ptrace": (101, 117),
    "unshare": (272, 97),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "read": (0, 63),
    "openat": (257, 56),
}


def verdict(steps, architecture, number, argument=0):
    """What the filter's steps return for a system call."""
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


@pytest.mark.parametrize("machine", seccomp_filter.MACHINES)
def test_filter_allows_threads_and_refuses_processes(machine):
    steps = list(struct.iter_unpack("HBBI", seccomp_filter.filter_program(machine)))
    column, architecture = seccomp_filter.MACHINES[machine]
    number = {name: numbers[column] for name, numbers in NUMBERS.items()}
    assert verdict(steps, architecture, number["clone"], signal.SIGCHLD) == REFUSE  # os.fork
    assert verdict(steps, architecture, number["clone"], 0x4100 | signal.SIGCHLD) == REFUSE  # subprocess
    assert verdict(steps, architecture, number["clone"], 0x3D0F00) == ALLOW  # a thread as glibc makes it
    assert verdict(steps, architecture, 435) == DOES_NOT_EXIST  # clone3
    allowed = {name for name in NUMBERS if verdict(steps, architecture, number[name]) == ALLOW}
    refused = {name for name in NUMBERS if verdict(steps, architecture, number[name]) == REFUSE}
    assert allowed == {"read", "openat"} and refused == NUMBERS.keys() - allowed
    assert verdict(steps, architecture, 0x40000000 + 41) == REFUSE  # socket in the x32 numbering
    assert verdict(steps, 0x40000003, 0) == KILL  # 32-bit x86

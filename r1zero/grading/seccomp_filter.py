"""The filter of system calls for programs in the sandbox: no second process, no socket, no memory that is not counted.

bubblewrap hands it to the kernel, which runs it at every system call of the program.
"""

import errno
import struct

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


def refused_numbers(machine):
    """The numbers (list[int]) that the calls of REFUSED have on a machine."""
    column = MACHINES[machine][0]
    numbers = [columns[column] for columns in REFUSED.values()]
    return [number for number in numbers if number is not None]


def filter_program(machine):
    """The filter for a machine (a key of MACHINES) as bytes: a list of struct sock_filter.

    A step is its code (u16), how many steps to skip if it holds (u8) and if it does not (u8), and its operand (u32).
    """
    column, architecture = MACHINES[machine]
    permission_denied = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL)]
    steps += [(LOAD, 0, 0, NUMBER)]
    steps += [(AT_LEAST, 0, 1, X32), permission_denied]
    for number in refused_numbers(machine):
        steps += [(EQUAL, 0, 1, number), permission_denied]
    # The flags of clone3 are out of a filter's sight. Told that it does not exist, glibc makes its threads with clone.
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    steps += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD)]
    steps += [permission_denied, (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)

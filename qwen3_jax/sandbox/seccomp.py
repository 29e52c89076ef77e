"""A seccomp filter for programs that models write, as the bytes of a BPF program (Linux, seccomp(2)).

It refuses system calls by number with an error that a program can handle: namespaces and mounts, tracing other processes,
kernel modules and keys, clocks, memory that no limit of the sandbox counts (memfd, System V), and sockets other than AF_UNIX.
All others are allowed: the filter is one layer besides namespaces and limits.
"""

import errno
import os
import struct
from pathlib import Path

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {  # system call: its number on x86_64, on aarch64
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "personality": (135, 92), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip
_REFUSED_ON_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154}
_CLONE, _CLONE3, _SOCKET, _IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag of clone(2)
_AF_UNIX, _TIOCSTI, _X32 = 1, 0x5412, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # places in struct seccomp_data, little-endian


def filter_program() -> bytes | None:
    """The filter as an array of struct sock_filter; None where there is none: another processor, a kernel without seccomp."""
    machine = os.uname().machine
    status = Path("/proc/self/status")
    if machine not in _AUDIT_ARCH or not status.exists() or "\nSeccomp:" not in status.read_text(encoding="ascii"):
        return None
    return assemble(machine)


def assemble(machine: str) -> bytes:
    """The filter for "x86_64" or "aarch64"."""
    column = list(_AUDIT_ARCH).index(machine)
    refused = [numbers[column] for numbers in _REFUSED.values()]
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        refused += _REFUSED_ON_X86.values()
        program += [(_AT_LEAST, 0, 1, _X32), _refuse(errno.ENOSYS)]  # the same calls under other numbers
    for number in refused:
        program += [(_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    program += [
        (_EQUAL, 0, 1, _CLONE3[column]),
        _refuse(errno.ENOSYS),
    ]  # its flags lie in memory; libc falls back to clone
    program += _argument(_CLONE[column], _FIRST_ARGUMENT, (_ANY_BIT, 0, 1, _NEW_NAMESPACES), errno.EPERM)
    program += _argument(_SOCKET[column], _FIRST_ARGUMENT, (_EQUAL, 1, 0, _AF_UNIX), errno.EAFNOSUPPORT)
    program += _argument(_IOCTL[column], _SECOND_ARGUMENT, (_EQUAL, 0, 1, _TIOCSTI), errno.EPERM)
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _refuse(error: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, _ERRNO | error


def _argument(number: int, place: int, test: tuple[int, int, int, int], error: int) -> list[tuple[int, int, int, int]]:
    """Refuse one system call where `test`, a jump over the next instruction or not, says so of one of its arguments."""
    return [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, place), test, _refuse(error), (_RETURN, 0, 0, _ALLOW)]

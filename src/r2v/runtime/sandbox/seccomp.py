"""The system-call filter of sandboxed programs: a BPF program that answers "not permitted" to what no honest one needs.

What is denied reaches beyond the sandbox (ptrace, other processes' memory), changes it (mounts, namespaces), or has a long
record of kernel bugs (bpf, io_uring, userfaultfd, keyctl). Sockets are limited to some address families.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

DENIED = {
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "open_by_handle_at": 304,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "syslog": 103,
        "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438, "open_by_handle_at": 265,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "syslog": 116,
        "bpf": 280, "userfaultfd": 282, "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294,
    },
}  # fmt: skip
DENIED_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442)
"""io_uring and the newer mount calls have one number on all architectures."""
CLONE3 = 435
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE = {"x86_64": 56, "aarch64": 220}
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}."""
X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def program(families: Sequence[int]) -> bytes | None:
    """The filter as an array of `struct sock_filter`, or None on an architecture whose call numbers are not known here.

    `families`: address families for which sockets may be opened.
    """
    machine = platform.machine()
    if machine not in DENIED:
        return None
    denied = _ret(_ERROR | errno.EPERM)
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, AUDIT_ARCH[machine], 1, 0), _ret(_KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        code += [_op(_AT_LEAST, X32, 0, 1), denied]
    for number in (*DENIED[machine].values(), *DENIED_EVERYWHERE):
        code += [_op(_EQUAL, number, 0, 1), denied]
    # glibc goes back to clone, whose flags can be read, when clone3 does not exist.
    code += [_op(_EQUAL, CLONE3, 0, 1), _ret(_ERROR | errno.ENOSYS)]
    code += [_op(_EQUAL, CLONE[machine], 0, 4), _op(_LOAD, _FIRST_ARGUMENT)]
    code += [_op(_ANY_BIT, NEW_NAMESPACES, 0, 1), denied, _ret(_ALLOW)]
    code += [_op(_EQUAL, SOCKET[machine], 0, 2 + 2 * len(families)), _op(_LOAD, _FIRST_ARGUMENT)]
    for family in families:
        code += [_op(_EQUAL, family, 0, 1), _ret(_ALLOW)]
    return b"".join([*code, denied, _ret(_ALLOW)])


def _op(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, k)


def _ret(value: int) -> bytes:
    return _op(_RETURN, value)

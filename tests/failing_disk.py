"""The real command on a disk that begins to fail: at SIGUSR1 the kernel refuses this process's writes, or its fsyncs.

    python tests/failing_disk.py fsync|write MOMENT_FILE ARGUMENTS OF recycledb…

A seccomp filter answers the system calls that SQLite writes by (pwrite64), or those that make writes durable (fsync, fdatasync), with
ENOSPC or EIO. That is Linux's own doing, for all threads of this process and for no other; nothing of ours or of SQLite's is changed.
MOMENT_FILE gets the moment (CLOCK_MONOTONIC) at which it began. Sockets and pipes are written to by other calls.

`fill` is for a process that is about to become the command: no byte can be written to a file any more, as on a full disk.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import time
from pathlib import Path

# By machine: AUDIT_ARCH, the numbers of seccomp, pwrite64, fsync and fdatasync; the number of write.
CALLS = {"x86_64": (0xC000003E, 317, 18, 74, 75), "aarch64": (0xC00000B7, 277, 68, 82, 83)}
WRITE = {"x86_64": 1, "aarch64": 64}
LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER, RETURN = 0x20, 0x15, 0x25, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, |JGT|K, BPF_RET|K
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NO_NEW_PRIVILEGES, SET_MODE_FILTER, ALL_THREADS = 38, 1, 1


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(numbers: tuple[int, ...], error: int) -> None:
    """Let the kernel answer these system calls of this process with `error` from now on."""
    machine = CALLS[platform.machine()][0]
    steps = [(LOAD, 0, 0, 4), (JUMP_IF_EQUAL, 0, len(numbers) + 1, machine), (LOAD, 0, 0, 0)]
    steps += [(JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | error)]
    # A foreign architecture jumps to ALLOW, the last but one; a number that is listed to ERRNO, the last.
    install(steps)


def fill() -> None:
    """Let the kernel answer this process's writes to any descriptor above stderr's with ENOSPC."""
    machine = CALLS[platform.machine()][0]
    install(
        [
            (LOAD, 0, 0, 4),
            (JUMP_IF_EQUAL, 0, 4, machine),
            (LOAD, 0, 0, 0),
            (JUMP_IF_EQUAL, 0, 2, WRITE[platform.machine()]),
            (LOAD, 0, 0, 16),  # the first argument, the descriptor
            (JUMP_IF_GREATER, 1, 0, 2),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, ERRNO | errno.ENOSPC),
        ]
    )


def install(steps: list[tuple[int, int, int, int]]) -> None:
    """Put a filter in force, for good."""
    seccomp = CALLS[platform.machine()][1]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if libc.syscall(seccomp, SET_MODE_FILTER, ALL_THREADS, ctypes.byref(Program(len(steps), code))):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    """Run the command."""
    what, moment = sys.argv[1], Path(sys.argv[2])
    write, *sync = CALLS[platform.machine()][2:]

    def begin(number: int, frame: object) -> None:
        if what == "fsync":
            refuse(tuple(sync), errno.EIO)
        else:
            refuse((write,), errno.ENOSPC)
        descriptor = os.open(moment, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, f"{time.monotonic()}".encode())
        os.close(descriptor)

    signal.signal(signal.SIGUSR1, begin)
    sys.argv[1:] = sys.argv[3:]
    from recycledb.cli import main as command

    command()


if __name__ == "__main__":
    main()

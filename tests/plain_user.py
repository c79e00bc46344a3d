"""Run commands in one process, one JSON list a line on stdin, as a user whom the permissions of files bind.

Root gives up those of its capabilities that pass over permissions; it stays the owner of its files, and may read them as such. After
each command a line says `CODE n`; `CANNOT` alone where root may not do that.
"""

import ctypes
import json
import os
import platform
import struct
import sys

CAPSET = {"x86_64": 126, "aarch64": 91}
VERSION_3 = 0x20080522
KEPT = ~0b1111 & 0xFFFFFFFF  # without CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH and FOWNER


def give_up_powers() -> bool:
    """Let permissions bind this process; say whether that worked."""
    if os.geteuid() != 0:
        return True
    if platform.machine() not in CAPSET:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", VERSION_3, 0)
    current = ctypes.create_string_buffer(24)
    if libc.syscall(CAPSET[platform.machine()] - 1, header, current):  # capget is the call before
        return False
    effective, permitted, inheritable, *high = struct.unpack("6I", current.raw)
    less = struct.pack("6I", effective & KEPT, permitted & KEPT, inheritable & KEPT, *high)
    return not libc.syscall(CAPSET[platform.machine()], header, less)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    from recycledb.cli import commands
    from recycledb.errors import RecycledbError

    try:
        commands.app(arguments, standalone_mode=False)
    except RecycledbError as error:
        print(f"recycledb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if not give_up_powers():
        print("CANNOT")
        os._exit(0)
    for line in sys.stdin:
        code = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        print("CODE", code, flush=True)
    sys.stdout.flush()
    os._exit(0)  # see recycledb.cli

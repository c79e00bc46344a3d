"""Whether a worker lives: its process where that can be looked up, else its heartbeat.

Invariant: a worker is taken for dead only where that is known: a process of this very boot and these very namespaces that is gone or
another one by now. Of every other, and where the system does not say, the heartbeat decides.
"""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

HEARTBEAT_S = 20.0
HEARTBEAT_TIMEOUT_S = 120.0
CLOCKS_DIFFER_S = 600.0  # two machines' clocks, at most: an older heartbeat was silent before we looked
LOOK_COUNTS_S = (
    2 * HEARTBEAT_S
)  # of the time between two looks: we may have been stopped ourselves, along with the other

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT_STATE, _STAT_STARTED = 0, 19  # of /proc/PID/stat, counted after the command's closing bracket


class Host(NamedTuple):
    """Where a process id means one process: a boot of a machine, and the namespaces that ids and start times are counted in."""

    name: str
    boot_id: str = ""  # "" where the system does not say, as in the rows of earlier releases
    namespaces: str = ""

    @property
    def known(self) -> bool:
        """Whether a process that has the same host can be looked up by its id."""
        return bool(self.boot_id and self.namespaces)

    def __str__(self) -> str:
        """Return the host as a worker's row has it."""
        return f"{self.name} {self.boot_id}/{self.namespaces}" if self.known else self.name

    @classmethod
    def parse(cls, stored: str) -> "Host":
        """Return the host of a worker's row."""
        name, _, rest = stored.partition(" ")
        return cls(name, *rest.split("/", 1)) if "/" in rest else cls(name)


class Silence(NamedTuple):
    """How long nothing was heard of a worker."""

    age_s: float  # of its heartbeat, by its clock and ours: negative where its clock is ahead
    unchanged_s: float | None = None  # by our own clock, since we first saw this heartbeat; None at first sight


@dataclass
class Watch:
    """What this process has seen of others' heartbeats, so that they are judged by our clock alone."""

    _seen: dict[str, tuple[str, float, float]] = field(
        default_factory=dict
    )  # worker: heartbeat, unchanged for, seen at

    def silence(self, worker: str, heartbeat_at: str, now: float | None = None) -> Silence:
        """Return how long a worker was silent, and remember that it was looked at `now`."""
        now = time.monotonic() if now is None else now
        before = self._seen.get(worker)
        if before is None or before[0] != heartbeat_at:
            self._seen[worker] = (heartbeat_at, 0.0, now)
            return Silence(_age_s(heartbeat_at), None if before is None else 0.0)
        unchanged = before[1] + min(now - before[2], LOOK_COUNTS_S)
        self._seen[worker] = (heartbeat_at, unchanged, now)
        return Silence(_age_s(heartbeat_at), unchanged)


def is_alive(host: Host, started: str, here: Host, found: str | None, silence: Silence) -> bool:
    """Say whether a worker lives, that ran on `host` and started then.

    `found` is what `find_process` says of its process id here: ids are used again, so one that is there is not enough.
    """
    if host == here and here.known:
        if found is None:
            return False
        if found and started:
            return found == started
    if silence.unchanged_s is not None:
        return silence.unchanged_s < HEARTBEAT_TIMEOUT_S
    one_clock = host.boot_id != "" and host.boot_id == here.boot_id
    return silence.age_s < (HEARTBEAT_TIMEOUT_S if one_clock else CLOCKS_DIFFER_S)


def find_process(pid: int) -> str | None:
    """Return when a process of ours or anyone's started, in the kernel's ticks; '' where that is hidden, None where there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):  # someone else's process, or a damaged row
        pass
    # /proc may be the one of another PID namespace, where the same id is another process.
    return process_start(str(pid)) if _link("/proc/self") == str(os.getpid()) else ""


def process_start(process: str) -> str | None:
    """Return when a process started; '' where that cannot be read, None where it has ended and is only not yet reaped."""
    try:
        stat = Path("/proc", process, "stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STAT_STATE] in "ZX" else fields[_STAT_STARTED]


@cache
def this_host() -> Host:
    """Return where this process runs."""
    name = socket.gethostname().replace(" ", "-")
    if sys.platform == "darwin":  # which has no PID namespaces
        return Host(name, _mac_boot_id(), "none")
    try:
        boot_id = _BOOT_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        boot_id = ""
    pids, times = _link("/proc/self/ns/pid"), _link("/proc/self/ns/time")  # the latter since Linux 5.6
    return Host(name, boot_id, pids and f"{pids},{times}")


def _mac_boot_id() -> str:
    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _age_s(heartbeat_at: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(heartbeat_at)).total_seconds()
    except (ValueError, TypeError):  # a damaged row: whether it changes will tell
        return 0.0

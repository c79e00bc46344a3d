"""Decide whether a worker is alive: by its process if that can be looked up, else by its heartbeat.

Invariant: a process id proves that a worker is dead only in the same boot and namespaces: the process no longer exists, or the id now
belongs to another one. In every other case, and if the system gives no information, the heartbeat decides.
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
CLOCKS_DIFFER_S = 600.0  # most that two machines' clocks differ: a heartbeat older than this has stopped
LOOK_COUNTS_S = (
    2 * HEARTBEAT_S
)  # most that the time between two checks counts: this process may have been suspended too

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT_STATE, _STAT_STARTED = 0, 19  # of /proc/PID/stat, counted after the command's closing bracket


class Host(NamedTuple):
    """The scope in which a process id is unique: a boot of a machine, and the namespaces of process ids and start times."""

    name: str
    boot_id: str = ""  # "" if unknown, as in rows of earlier releases
    namespaces: str = ""

    @property
    def known(self) -> bool:
        """Whether a process that has the same host can be looked up by its id."""
        return bool(self.boot_id and self.namespaces)

    def __str__(self) -> str:
        """Return the host in the form stored in `worker`."""
        return f"{self.name} {self.boot_id}/{self.namespaces}" if self.known else self.name

    @classmethod
    def parse(cls, stored: str) -> "Host":
        """Parse a host as stored in `worker`."""
        name, _, rest = stored.partition(" ")
        return cls(name, *rest.split("/", 1)) if "/" in rest else cls(name)


class Silence(NamedTuple):
    """How long a worker's heartbeat has not changed."""

    age_s: float  # of its heartbeat, by its clock and ours, or the store's for both: negative if its clock is ahead
    unchanged_s: float | None = None  # by our own clock, since this heartbeat was first read; None on the first read


@dataclass
class Watch:
    """The heartbeats of other processes that this process has read, so that their age is measured by our clock alone."""

    _seen: dict[str, tuple[str, float, float]] = field(
        default_factory=dict
    )  # worker: heartbeat, unchanged for, seen at

    def silence(self, worker: str, heartbeat_at: str, now: float | None = None, *, clock: str | None = None) -> Silence:
        """Return how long a worker has been silent, and remember that it was checked at `now`.

        `clock` is the store's time, by which heartbeats are written; None for that of this host.
        """
        now = time.monotonic() if now is None else now
        before = self._seen.get(worker)
        if before is None or before[0] != heartbeat_at:
            self._seen[worker] = (heartbeat_at, 0.0, now)
            return Silence(_age_s(heartbeat_at, clock), None if before is None else 0.0)
        unchanged = before[1] + min(now - before[2], LOOK_COUNTS_S)
        self._seen[worker] = (heartbeat_at, unchanged, now)
        return Silence(_age_s(heartbeat_at, clock), unchanged)


def is_alive(
    host: Host, started: str, here: Host, found: str | None, silence: Silence, *, one_clock: bool = False
) -> bool:
    """Return whether a worker that was started on `host` at `started` is alive.

    `found` is the result of `find_process` for its process id here: ids are reused, so a process with this id is not enough.
    `one_clock` says that heartbeats are written by the store's clock, the same for all hosts.
    """
    if host == here and here.known:
        if found is None:
            return False
        if found and started:
            return found == started
    if silence.unchanged_s is not None:
        return silence.unchanged_s < HEARTBEAT_TIMEOUT_S
    one_clock = one_clock or (host.boot_id != "" and host.boot_id == here.boot_id)
    return silence.age_s < (HEARTBEAT_TIMEOUT_S if one_clock else CLOCKS_DIFFER_S)


def find_process(pid: int) -> str | None:
    """Return a process's start time in kernel ticks; '' if it is hidden, None if there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):  # someone else's process, or a damaged row
        pass
    # /proc may belong to another PID namespace, in which the same id is another process.
    return process_start(str(pid)) if _link("/proc/self") == str(os.getpid()) else ""


def process_start(process: str) -> str | None:
    """Return when a process started; '' if that cannot be read, None if it has ended but is not yet reaped."""
    try:
        stat = Path("/proc", process, "stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STAT_STATE] in "ZX" else fields[_STAT_STARTED]


@cache
def this_host() -> Host:
    """Return the host of this process."""
    name = socket.gethostname().replace(" ", "-")
    if sys.platform == "darwin":  # macOS has no PID namespaces
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


def _age_s(heartbeat_at: str, clock: str | None) -> float:
    try:
        now = datetime.now(UTC) if clock is None else datetime.fromisoformat(clock)
        return (now - datetime.fromisoformat(heartbeat_at)).total_seconds()
    except (ValueError, TypeError):  # a damaged row: only whether it changes counts
        return 0.0

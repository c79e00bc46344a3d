"""Which writing processes still live: on this machine by process id and start time, on others by heartbeat."""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path


def process_started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; '' where that cannot be told (no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22, counted after the command's closing bracket


def is_alive(host: str, pid: int, started: str, heartbeat_at: str, timeout_s: float) -> bool:
    """Say whether a worker lives. A process id alone is not enough: ids are used again."""
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # someone else's process: it lives
        if started:
            return process_started(pid) == started
    age = datetime.now(UTC) - datetime.fromisoformat(heartbeat_at)
    return age.total_seconds() < timeout_s

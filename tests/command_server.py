"""Runs the command for tests: each run is a process of its own, forked from one that has the library loaded already.

A run differs from a user's only in what was imported before it; tests/test_imports.py starts interpreters of its own. Reads
one JSON object a line (arguments, cwd, env, out, err, full) and answers each with the exit code; with `start` it answers at once
with the process's number, and {"wait": number} has the exit code when it is there. `out` and `err` may be a terminal; with `full` the
run can write no byte to a file.
"""

import json
import os
import signal
import sys

import failing_disk

import recycledb.adding
import recycledb.inspecting
import recycledb.selection.query
import recycledb.selection.select
import recycledb.store.duckdb
import recycledb.store.sqlite
import recycledb.sync
from recycledb.cli import commands, main

LOADED = (recycledb, commands)


def become(job: dict[str, object]) -> None:
    """Make this process what a shell would have started: arguments, folder, environment, files."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
    os.chdir(str(job["cwd"]))
    os.environ.clear()
    os.environ.update(job["env"])  # type: ignore[call-overload]
    sys.argv = ["recycledb", *job["arguments"]]  # type: ignore[misc]
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_NOCTTY),
        (2, job["err"], os.O_WRONLY | os.O_NOCTTY),
    ):
        os.dup2(os.open(str(name), flags), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # knows whether it is a terminal, a file or a pipe
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if job.get("full"):
        failing_disk.fill()


for line in sys.stdin:
    job = json.loads(line)
    child = job.get("wait") or os.fork()
    if child == 0:
        become(job)
        main()
        break
    print(child if "start" in job else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

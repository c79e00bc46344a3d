"""Starts Python for tests as forks of one process that has the libraries loaded already: `python fork_server.py SOCKET MODULE…`.

A fork differs from a fresh interpreter only in what was imported before it; tests/test_imports.py starts interpreters of its own.
Each message on SOCKET is a JSON object. One with `arguments` comes with the descriptors that become stdin, stdout and stderr, and is
answered with the process's number; `arguments` are Python's own: `-c CODE …` or `FILE …`. {"wait": number} is answered with the
exit code, once the process has ended.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any


def become(job: dict[str, Any], descriptors: list[int]) -> None:
    """Make this process what a shell would have started: arguments, folder, environment, files."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.path[1:1] = filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # knows whether it is a terminal, a file or a pipe
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if job["full"]:
        import failing_disk

        failing_disk.fill()


def run(arguments: list[str]) -> None:
    """Do what `python ARGUMENTS` does."""
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


def serve(line: socket.socket) -> list[str] | None:
    """Answer until the test's end of the line is closed; in a child return what it is to run."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 3)
        if not message:
            return None
        job = json.loads(message)
        if "wait" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                line.close()
                become(job, descriptors)
                return list(job["arguments"])
            for descriptor in descriptors:
                os.close(descriptor)
        line.send(b"%d" % answer)


def main() -> None:
    """Load the libraries, then serve."""
    for name in sys.argv[2:]:
        module, _, attribute = name.partition(":")  # transformers loads some of its modules only when they are named
        loaded = importlib.import_module(module)
        if attribute:
            getattr(loaded, attribute)
    gc.freeze()  # a child's collections would copy every page
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        run(arguments)


main()

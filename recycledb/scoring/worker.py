"""A scoring process: one replica of the model on a few CPU cores, with pipes to the engine.

The matrix multiplications of a small model do not keep two cores busy; two processes of one core each do. Started as
`python -m recycledb.scoring.worker`, it reads pickled frames from standard input (first a `Setup`, then packs) and
writes the result of each to standard output, in the same order.

Invariant: a worker never outlives its engine. Its input ends when the engine closes it or dies, in any way; the thread
that reads the input then ends the process at once, even in the middle of a pack. It holds no state that could be lost:
a pack without a result was simply not computed. The engine handles the signals that end a run.
"""

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from recycledb.errors import StudentError
from recycledb.scoring.frames import Failure, Ready, Setup, read_frame, write_frame
from recycledb.scoring.packs import Work


def main() -> None:
    """Compute packs until the engine has ended."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # service managers send them to every process of a service
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    # The engine's process has said what there is to say about this model.
    logging.getLogger().addHandler(logging.NullHandler())
    # Output that a library prints must not end up between the frames.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, questions), daemon=True).start()
    try:
        lane = _load(questions.get())
    except StudentError as error:
        write_frame(answers, Failure(str(error), known=True))
        return
    write_frame(answers, Ready(lane.kernel))
    while True:
        write_frame(answers, _answer(lane, questions.get()))


def _receive(stream: IO[bytes], questions: queue.SimpleQueue[Any]) -> None:
    """Queue the frames; when the engine has ended, end this process at once."""
    try:
        while True:
            questions.put(read_frame(stream))
    except (EOFError, OSError):
        os._exit(0)


def _load(setup: Setup) -> Any:
    import torch

    from recycledb.scoring.kernels import choose
    from recycledb.scoring.lanes import LocalLane
    from recycledb.scoring.network import load_network, resolve_dtype

    torch.set_num_threads(setup.threads)
    device = torch.device("cpu")
    network = load_network(setup.model, setup.revision, resolve_dtype(setup.dtype), device)
    return LocalLane(choose(network, setup.max_length), device)


def _answer(lane: Any, batch: Sequence[Work]) -> Any:
    try:
        outputs = lane.outputs(batch)
    except StudentError as error:
        return Failure(str(error), known=True)
    except Exception as error:  # the engine raises it again: every pack must get a result
        return Failure(f"{type(error).__name__}: {error}", known=False)
    return outputs


if __name__ == "__main__":
    main()

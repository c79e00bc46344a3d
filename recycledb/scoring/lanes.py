"""Where packs are computed: a lane is one replica of the model, and computes one pack at a time.

Invariant: a lane returns an output for every work of a pack, however little memory there is: a pack that does not fit is
halved, and so is the lane's budget for later packs. A single text that does not fit ends the run with a StudentError.
"""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from recycledb.errors import StudentError
from recycledb.pretrained.loader import is_out_of_memory
from recycledb.scoring.frames import Failure, Ready, Setup, read_frame, write_frame
from recycledb.scoring.kernels import Kernel
from recycledb.scoring.outputs import Output
from recycledb.scoring.packs import Work

log = logging.getLogger(__name__)

# The environment of a process that computes on CPU. Every layer allocates and frees large tensors; by default malloc maps and unmaps memory
# for each of them, which was measured to take a tenth of the time, so freed memory is kept instead.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


class LaneLost(Exception):  # noqa: N818 - not an error of the run: the pack is computed on another lane
    """A lane is gone with the machine or process that it was on, and the pack that it had was not computed."""


class Lane(Protocol):
    """One replica of the model; `kernel` says how it computes."""

    kernel: str

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        """Return each work's output; raise LaneLost where another lane has to compute them."""
        ...

    def close(self) -> None:
        """Free what the lane holds."""
        ...


class LocalLane:
    """A replica in this process, on one device or sharded over several."""

    def __init__(self, kernel: Kernel, device: torch.device, threads: int | None = None) -> None:
        """Compute on `threads` CPU threads; None leaves torch's setting unchanged."""
        self.kernel = f"{device.type}/{kernel.name}"
        self._threads = threads
        self._kernel: Kernel | None = kernel
        self._device = device
        self._budget: int | None = None  # tokens; None until memory has run out once

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        if self._budget is not None and len(batch) > 1 and size(batch) > self._budget:
            return self._halves(batch)
        try:
            return self._compute(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(batch)
        # Outside the handler, so that the traceback no longer keeps the failed computation's tensors alive.
        return self._halves(batch)

    def close(self) -> None:
        self._kernel = None

    @torch.inference_mode()
    def _compute(self, batch: Sequence[Work]) -> list[Output]:
        if self._kernel is None:
            raise StudentError("the engine is closed")
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # OpenMP keeps this setting per thread
        return self._kernel.outputs(batch)

    def _shrink(self, batch: Sequence[Work]) -> None:
        if len(batch) == 1:
            raise StudentError(
                f"out of memory on {self._device} with a single text of {len(batch[0].ids)} tokens: "
                "use dtype bfloat16, a smaller max_length or a device with more memory"
            )
        self._budget = size(batch) // 2
        log.warning("out of memory on %s: continuing with packs of at most %d tokens", self._device, self._budget)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _halves(self, batch: Sequence[Work]) -> list[Output]:
        middle = len(batch) // 2
        return self.outputs(batch[:middle]) + self.outputs(batch[middle:])


class WorkerLane:
    """A replica in a separate process, on a few CPU cores (worker.py)."""

    def __init__(self, setup: Setup) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "recycledb.scoring.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_worker_environment(setup.threads),
            start_new_session=True,  # Ctrl-C and the end of the terminal are the engine's to handle
        )
        self.pid = self._process.pid
        self.kernel = "cpu/starting"
        self._ask(setup)

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded; raise StudentError where loading fails."""
        ready = self._reply()
        assert isinstance(ready, Ready)
        self.kernel = ready.kernel

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        self._ask(list(batch))
        outputs: list[Output] = self._reply()
        return outputs

    def close(self) -> None:
        self._process.kill()  # it holds no state, and may be in the middle of a pack
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # flushing to a dead process fails
                    stream.close()

    def _ask(self, question: Any) -> None:
        try:
            write_frame(_open(self._process.stdin), question)
        except OSError as error:
            raise StudentError(self._exit_reason()) from error

    def _reply(self) -> Any:
        try:
            reply = read_frame(_open(self._process.stdout))
        except (EOFError, OSError) as error:
            raise StudentError(self._exit_reason()) from error
        if isinstance(reply, Failure):
            raise StudentError(reply.message if reply.known else f"a scoring process failed: {reply.message}")
        return reply

    def _exit_reason(self) -> str:
        return (
            f"scoring process {self.pid} ended with status {self._process.wait()} (-9 often means that the system ran "
            "out of memory): stored results are kept; run sync again on a machine with more free memory"
        )


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise OSError("the worker has no pipe")
    return stream


def _worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this package importable, its number of threads, malloc settings, and other libraries silent."""
    package_root = str(Path(__file__).parents[2])
    paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    silent = (
        {} if log.isEnabledFor(logging.DEBUG) else {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "critical"}
    )
    return {
        **silent,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **ALLOCATION,
    }


def size(batch: Sequence[Work]) -> int:
    """Return the tokens of a pack, without padding and without sharing prefixes."""
    return sum(len(work.ids) for work in batch)

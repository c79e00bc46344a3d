"""The scoring engine: requests in, sums of token losses out, pack by pack as they are computed.

Invariant: a number depends on its token sequence, the model and the dtype, not on the other sequences of its pack or on
the order of requests (in float32 to 1e-4 relative, and far closer in practice; in bfloat16 within the bound that the
tests state). Equal work is done once. Requests are read lazily; tokenisation runs ahead of the model, and the model
ahead of the consumer. This module does not use the store: a callback returns known sums, and new ones are yielded.

Packs are computed on a replica of the model on each visible GPU (a thread each), or on one model sharded over all GPUs
where it does not fit on one; on CPU first in this process, then in a process for each core once a run has lasted a
while.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from recycledb.errors import RecycledbError, StudentError
from recycledb.scoring.cluster import SINGLE_THREADED_PARAMETERS
from recycledb.scoring.frames import Setup
from recycledb.scoring.kernels import Kernel, choose
from recycledb.scoring.lanes import LocalLane, WorkerLane
from recycledb.scoring.network import Network, load_network, positions, resolve_device, resolve_dtype
from recycledb.scoring.packs import Batch, Work, by_beginning, by_length
from recycledb.scoring.peak import measure_peak
from recycledb.scoring.pool import LanePool
from recycledb.scoring.requests import Progress, Request, Result, TokenCount
from recycledb.scoring.scorer import Scorer
from recycledb.scoring.tokeniser import Tokeniser, count_tokens

__all__ = ["Engine", "Progress", "Request", "Result", "TokenCount", "count_tokens"]

log = logging.getLogger(__name__)

# Tokens of a pack. On CPU about what fits the cache; on a GPU some tenths of a second of work, within these bounds.
_CPU_BUDGET = 2048
_GPU_BATCH_FLOPS = 2e14
_GPU_BUDGETS = (4096, 131_072)

# A worker takes seconds to start, so a short run does not start any. More workers than this were not measured.
_WORKERS_AFTER_SECONDS = 15.0
_MOST_WORKERS = 8
_WORKER_OVERHEAD_BYTES = 1 << 30

_OTHER_TOKENIZER = (
    "they do not belong together: copy the tokenizer files that the model was trained with into its folder"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token costs: the parameters that every token goes through, and those that only targets go through."""

    parameters: int
    body: int
    head: int
    vocabulary: int
    weight_bytes: int

    def flops(self, tokens: int, targets: int) -> float:
        """Return the multiplications and additions with weights, without those of attention scores."""
        return 2.0 * self.body * tokens + 2.0 * self.head * targets


class Engine(Scorer):
    """A student ready to score: a tokenizer, and one or more lanes that compute packs in parallel."""

    def __init__(
        self, tokeniser: Tokeniser, pool: LanePool, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(tokeniser, pool)
        self.tokeniser = tokeniser
        self.shape = shape
        self.device = device
        self.dtype = dtype
        self.budget = _gpu_budget(shape) if device.type == "cuda" else _CPU_BUDGET
        self._setup: Setup | None = None  # how to start workers; None where none are to be started
        self._n_workers = 0
        self._workers_after_s = _WORKERS_AFTER_SECONDS
        self._packed = all("packed" in lane.kernel for lane in pool.lanes)
        self._starting: threading.Thread | None = None
        self._coming: list[WorkerLane] = []  # being started
        self._closing = False

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        prompt: str = "vicuna",
        max_length: int = 2048,
        dtype: str = "float32",
        device: str | None = None,
        workers: int | None = None,
        workers_after_s: float | None = None,
        sharded: bool | None = None,
    ) -> Self:
        """Load a Hugging Face causal language model from a folder or the Hub.

        `device` None uses all visible GPUs, else the CPU; `cuda` all GPUs, `cuda:N` one. `sharded` spreads one model
        over all GPUs; None does so where a replica does not fit on one. `workers` is the number of processes on CPU: 0
        computes in this process alone, None starts one for each core once a run has lasted a while, a number starts that
        many at once. `workers_after_s` sets after how many seconds they start, in both cases. Raises StudentError where
        model, device or dtype are not available, or where the model has fewer positions than `max_length`.
        """
        target, number_type = resolve_device(device), resolve_dtype(dtype)
        tokeniser = Tokeniser.load(model, revision, prompt, max_length)
        networks = load_replicas(model, revision, number_type, _devices(target), sharded)
        engine = cls.over(networks, tokeniser, model)
        if target.type == "cpu":
            engine._n_workers = _worker_count(engine.shape) if workers is None else workers
            threads = max(1, _cores() // max(1, engine._n_workers))
            engine._setup = Setup(model, revision, dtype, max_length, threads) if engine._n_workers else None
            if workers_after_s is not None:
                engine._workers_after_s = workers_after_s
        if workers and workers_after_s is None and engine._setup is not None:
            engine._start_workers(engine._setup)
        return engine

    @classmethod
    def over(cls, networks: Sequence[Network], tokeniser: Tokeniser, name: str = "a model") -> Self:
        """Make an engine over replicas that are already loaded in this process."""
        require_fit(name, tokeniser, positions(networks[0].model), networks[0].vocabulary)
        kernels: list[Kernel] = [choose(network, tokeniser.max_length) for network in networks]
        shape = shape_of(networks[0])
        lanes = [
            LocalLane(kernel, network.device, threads_of(shape))
            for kernel, network in zip(kernels, networks, strict=True)
        ]
        engine = cls(tokeniser, LanePool(lanes), shape, networks[0].device, networks[0].dtype)
        where = ", ".join(str(network.device) for network in networks)
        log.info("scoring with %s on %s in %s, kernel %s", name, where, networks[0].dtype, lanes[0].kernel)
        return engine

    @property
    def parameters(self) -> int:
        """Return the model's number of parameters, shared ones once."""
        return self.shape.parameters

    def batches(self, works: Iterable[Work]) -> list[Batch]:
        """Return packs in the order that suits the kernel: by prefix where it shares prefixes, else by length."""
        works = list(works)
        for work in works:
            if int(work.ids.max()) >= self.shape.vocabulary:
                raise StudentError(
                    f"the tokenizer gave token {int(work.ids.max())}, but the model has {self.shape.vocabulary}: {_OTHER_TOKENIZER}"
                )
        return list(by_beginning(works, self.budget) if self._packed else by_length(works, self.budget))

    def note_duration(self, seconds: float) -> None:
        """Start workers in the background once a run has lasted long enough for them to pay off."""
        if seconds < self._workers_after_s or self._setup is None or self._starting is not None:
            return
        self._starting = threading.Thread(
            target=self._try_workers, args=(self._setup,), name="start-workers", daemon=True
        )
        self._starting.start()

    def flops(self, tokens: int, targets: int) -> float:
        return self.shape.flops(tokens, targets)

    def begin_peak(self) -> Callable[[], float] | None:
        peak = measure_peak(self.device, self.dtype) * (len(self.pool.lanes) if self.device.type == "cuda" else 1)
        started = time.monotonic()
        return lambda: peak * (time.monotonic() - started)

    def close(self, *, at_once: bool = False) -> None:
        self._closing = True
        while self._starting is not None and self._starting.is_alive():
            for worker in list(self._coming):  # do not wait until a large model has loaded for nothing
                worker.close()
            self._starting.join(0.1)
        super().close(at_once=at_once)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _try_workers(self, setup: Setup) -> None:
        try:
            self._start_workers(setup)
        except (RecycledbError, OSError, ValueError) as error:  # ValueError: its pipes were closed
            if not self._closing:
                log.warning("scoring goes on in one process: %s", error)

    def _start_workers(self, setup: Setup) -> None:
        """Start the workers, and retire this process's own lane once all are ready."""
        workers = self._coming
        try:
            for _ in range(self._n_workers):
                if not self._closing:
                    workers.append(WorkerLane(setup))
            for worker in workers:
                worker.wait_until_ready()
        except BaseException:
            for worker in workers:
                worker.close()
            raise
        self._setup = None
        self.pool.replace(workers)
        log.info("scoring goes on in %d processes of %d threads", len(workers), setup.threads)


def _devices(target: torch.device) -> list[torch.device]:
    if str(target) == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [target]


def load_replicas(
    model: str, revision: str | None, dtype: torch.dtype, devices: Sequence[torch.device], sharded: bool | None
) -> list[Network]:
    """Load the model onto each device, or once over all of them where it does not fit on one."""
    if sharded:
        return [load_network(model, revision, dtype, devices[0], sharded=True)]
    try:
        return [load_network(model, revision, dtype, device) for device in devices]
    except StudentError as error:
        if sharded is False or len(devices) < 2 or not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
    log.warning("%s does not fit on one GPU: it is spread over %d", model, len(devices))
    torch.cuda.empty_cache()
    return [load_network(model, revision, dtype, devices[0], sharded=True)]


def require_fit(name: str, tokeniser: Tokeniser, positions: int | None, rows: int) -> None:
    """Raise StudentError where a model has fewer positions than `max_length`, or fewer rows of embeddings than the tokenizer has tokens."""
    if positions is not None and positions < tokeniser.max_length:
        raise StudentError(
            f"max_length is {tokeniser.max_length}, but {name!r} has {positions} positions: set max_length = {positions}"
        )
    known = int(getattr(tokeniser.tokenizer, "vocab_size", 0))
    if known > rows:  # without added tokens, which the texts need not contain
        raise StudentError(f"the tokenizer of {name!r} has {known} tokens, but the model {rows}: {_OTHER_TOKENIZER}")


def shape_of(network: Network) -> Shape:
    """Return what a token costs in a loaded model."""
    parameters = list(network.model.parameters())
    embeddings = {id(p) for m in network.model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    output = network.model.get_output_embeddings()
    head = {id(p) for p in output.parameters()} if output is not None else set()
    return Shape(
        parameters=sum(p.numel() for p in parameters),
        body=sum(p.numel() for p in parameters if id(p) not in embeddings | head),
        head=sum(p.numel() for p in output.parameters()) if output is not None else 0,
        vocabulary=network.vocabulary,
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


def threads_of(shape: Shape) -> int | None:
    """Return 1 for a small model, whose second thread is idle (and on a busy machine its threads wait for each other); else None."""
    return 1 if shape.parameters < SINGLE_THREADED_PARAMETERS else None


def _gpu_budget(shape: Shape) -> int:
    least, most = _GPU_BUDGETS
    return int(min(max(_GPU_BATCH_FLOPS / (2 * shape.parameters), least), most))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has this call
        return os.cpu_count() or 1


def _worker_count(shape: Shape) -> int:
    """Return how many worker processes to use: one for each core if that many models fit in memory; else none."""
    count = min(_cores(), _MOST_WORKERS)
    needed = count * (shape.weight_bytes + _WORKER_OVERHEAD_BYTES)
    available = _available_bytes()
    return count if count > 1 and (available is None or needed < available) else 0


def _available_bytes() -> int | None:
    """Return how much memory is available without swapping; None where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] * 1024 if kibibytes else None

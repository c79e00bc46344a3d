"""Where batches are computed: a lane is one replica of the model, and computes one batch at a time.

Invariant: a lane gives every work of a batch its sum, whatever memory there is: a batch that does not fit is halved, and
so is the lane's budget for the batches to come. A single text that does not fit ends the run with a StudentError.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from recycledb.errors import StudentError
from recycledb.scoring.batching import Work
from recycledb.scoring.kernels import Kernel

log = logging.getLogger(__name__)


class Lane(Protocol):
    """One replica of the model; `kernel` says how it computes."""

    kernel: str

    def sums(self, batch: Sequence[Work]) -> list[float]:
        """Return each work's sum of losses."""
        ...

    def close(self) -> None:
        """Free what the lane holds."""
        ...


class LocalLane:
    """A replica in this process, on one device or sharded over several."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self.kernel = f"{device.type}/{kernel.name}"
        self._kernel: Kernel | None = kernel
        self._device = device
        self._budget: int | None = None  # tokens; None until memory has run out once

    def sums(self, batch: Sequence[Work]) -> list[float]:
        if self._budget is not None and len(batch) > 1 and size(batch) > self._budget:
            return self._halves(batch)
        try:
            return self._compute(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(batch)
        # Outside the handler, where the failed computation's tensors are no longer held by its traceback.
        return self._halves(batch)

    def close(self) -> None:
        self._kernel = None

    @torch.inference_mode()
    def _compute(self, batch: Sequence[Work]) -> list[float]:
        if self._kernel is None:
            raise StudentError("the engine is closed")
        return self._kernel.sums(batch)

    def _shrink(self, batch: Sequence[Work]) -> None:
        if len(batch) == 1:
            raise StudentError(
                f"out of memory on {self._device} with a single text of {len(batch[0].ids)} tokens: "
                "use dtype bfloat16, a smaller max_length or a device with more memory"
            )
        self._budget = size(batch) // 2
        log.warning("out of memory on %s: going on with batches of at most %d tokens", self._device, self._budget)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _halves(self, batch: Sequence[Work]) -> list[float]:
        middle = len(batch) // 2
        return self.sums(batch[:middle]) + self.sums(batch[middle:])


def size(batch: Sequence[Work]) -> int:
    """Return a batch's tokens, neither padded nor shared."""
    return sum(len(work.ids) for work in batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch ran out of memory; on CPU it raises a bare RuntimeError."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "out of memory" in text

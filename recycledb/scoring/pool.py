"""The lanes of an engine: which of them computes the next pack, and what happens where one is lost or comes later.

Invariant: each pack that is submitted gets one result, whichever lanes are lost meanwhile: a pack whose lane was lost is computed on
another one. A pack that loses several lanes one after the other ends the run, since it may itself be the reason (too little memory for
it, for example); so does the loss of the last lane where no other is expected.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from recycledb.errors import StudentError
from recycledb.scoring.lanes import Lane, LaneLost
from recycledb.scoring.outputs import Output
from recycledb.scoring.packs import Work

MOST_LOSSES = 3  # lanes that one pack may lose

_MOST_THREADS = 1024  # they are started when they are needed: two for each lane
_CHECK_S = 0.1


class Source(Protocol):
    """Where further lanes come from while the engine runs."""

    def close(self) -> None:
        """Bring no more lanes."""
        ...


class Outputs(NamedTuple):
    """What a lane returned for a pack, and how it computed it."""

    outputs: list[Output]
    kernel: str


class LanePool:
    """Lanes that compute one pack each at a time; they may be lost, and others may be added, at any time."""

    def __init__(self, lanes: Sequence[Lane] = (), source: Source | None = None) -> None:
        self._lanes = list(lanes)
        self._retired: list[Lane] = []
        self._idle: deque[Lane] = deque(lanes)
        self._source = source
        self._error: StudentError | None = None
        self._loss: LaneLost | None = None  # the last: told by the packs that waited for that lane too
        self._closing = False
        self._change = threading.Condition()
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="score")
        self._lane_seconds, self._counted = 0.0, time.monotonic()

    @property
    def lanes(self) -> list[Lane]:
        """The lanes in use now."""
        with self._change:
            return list(self._lanes)

    @property
    def lane_seconds(self) -> float:
        """The seconds that lanes have been there, added up over them."""
        with self._change:
            self._count_seconds()
            return self._lane_seconds

    def submit(self, works: Sequence[Work], ended: Callable[[], bool]) -> "Future[Outputs | None]":
        """Return a future of a pack's outputs, computed on the next idle lane; of None if the run has `ended` by then."""
        return self._threads.submit(self._compute, works, ended)

    def add(self, lane: Lane) -> None:
        """Use one more lane from now on; one that comes after the end is closed."""
        with self._change:
            self._count_seconds()
            late = self._closing
            if not late:
                self._lanes.append(lane)
                self._idle.append(lane)
                self._change.notify()
        if late:
            lane.close()

    def replace(self, lanes: Sequence[Lane]) -> None:
        """Use these lanes instead of the present ones, each of which is closed once it is idle."""
        with self._change:
            self._count_seconds()
            self._retired += self._lanes
            self._lanes = list(lanes)
            self._idle.extend(lanes)
            self._change.notify_all()

    def drop(self, lane: Lane, loss: LaneLost) -> bool:
        """Stop using a lane that is gone; tell whether it was in use."""
        with self._change:
            self._loss = loss
            self._count_seconds()
            known = lane in self._lanes
            self._lanes = [each for each in self._lanes if each is not lane]
            self._idle = deque(each for each in self._idle if each is not lane)
            self._change.notify_all()
        lane.close()
        return known

    def fail(self, error: StudentError) -> None:
        """End the run with an error, unless lanes are left: no other lane will come."""
        with self._change:
            self._error = error
            self._change.notify_all()

    def close(self, *, at_once: bool = False) -> None:
        """Close all lanes; with `at_once`, without waiting for packs in progress."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._source is not None:
            self._source.close()
        if at_once:  # which ends the calls that threads wait for, where a lane is elsewhere
            self._threads.shutdown(wait=False, cancel_futures=True)
        else:
            self._threads.shutdown(wait=True, cancel_futures=True)
        with self._change:
            lanes = [*self._lanes, *self._retired]
            self._lanes, self._retired = [], []
            self._idle.clear()
        for lane in lanes:
            lane.close()

    def _compute(self, works: Sequence[Work], ended: Callable[[], bool]) -> Outputs | None:
        losses: list[LaneLost] = []
        while (lane := self._take(ended, losses)) is not None:
            try:
                return Outputs(lane.outputs(works), lane.kernel)
            except LaneLost as loss:
                losses.append(loss)
                self.drop(lane, loss)
            finally:
                self._give_back(lane)
        return None

    def _take(self, ended: Callable[[], bool], losses: Sequence[LaneLost]) -> Lane | None:
        """Wait for an idle lane and return it, or None once the run has ended; StudentError where none will come."""
        if len(losses) >= MOST_LOSSES:
            raise StudentError(
                f"{len(losses)} replicas were lost one after the other while they computed the same pack ({losses[-1]}): "
                "give each replica more memory, or set a smaller max_length"
            ) from losses[-1]
        while True:
            if ended():
                return None
            with self._change:
                if self._closing:
                    return None
                if not self._lanes and (self._error is not None or self._source is None):
                    raise self._error or StudentError(f"no replica is left: {self._loss or 'none was given'}")
                if not self._idle:
                    self._change.wait(_CHECK_S)
                    continue
                lane = self._idle.popleft()
                if lane not in self._retired:
                    return lane
            lane.close()  # which frees its model

    def _give_back(self, lane: Lane) -> None:
        with self._change:
            if lane in self._lanes or lane in self._retired:
                self._idle.append(lane)
                self._change.notify()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self._lane_seconds += len(self._lanes) * (now - self._counted)
        self._counted = now

"""What a running sync has left to do: a plan made in the background, from which new rows are counted down.

Invariant: a plan is made by one thread, while a sync runs and somebody looks, at most so often that it takes half a percent of the time.
It is what recycledb.toml asks for now; the running sync may have been started with other options.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

from recycledb.errors import RecycledbError
from recycledb.sync import plan as plans
from recycledb.sync.plan import Plan
from recycledb.sync.target import resolve
from recycledb.view.running import Run, Statistics
from recycledb.workspace import Workspace

SHARE = 0.005
LEAST_S = 60.0  # between two plans
UNKNOWN = "recycledb.toml cannot be used as it is; recycledb status says why"


@dataclass(frozen=True)
class Made:
    """A plan, and what had been done when it was made."""

    plan: Plan
    steps: dict[str, int]  # replies that need no other one, by step
    statistics: int


def settled(run: Run) -> dict[str, int]:
    """Return the questions that this run has settled, by step: errors are asked again."""
    return {step: counts["ok"] + counts["failed"] for step, counts in run.steps.items()}


class Forecast:
    """The newest plan for a running sync."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.problem: str | None = None
        self._made: Made | None = None
        self._thread: threading.Thread | None = None
        self._due = 0.0

    def update(self, run: Run, statistics: Statistics) -> None:
        """Make another plan if that is due, in a thread of its own."""
        if self._thread is not None and self._thread.is_alive():
            return
        if time.monotonic() < self._due or statistics.number is None:
            return
        before = settled(run), statistics.number
        self._thread = threading.Thread(target=self._work, args=before, name="forecast", daemon=True)
        self._thread.start()

    def _work(self, steps: dict[str, int], statistics: int) -> None:
        began = time.monotonic()
        try:
            store = self.workspace.store
            self._made = Made(plans.make(store, resolve(self.workspace.config)), steps, statistics)
            self.problem = None
        except (RecycledbError, OSError):  # its text may name folders of this machine
            self._made, self.problem = None, UNKNOWN
        took = time.monotonic() - began
        self._due = began + max(LEAST_S, took / SHARE)

    def left(self, run: Run, statistics: Statistics, now: float) -> dict[str, Any]:
        """Return what is left by the plan and by the rows since, and how long that takes at the present rates."""
        made = self._made
        if made is None:
            return {"why": self.problem or "counting what is missing"}
        done = {step: count - made.steps.get(step, 0) for step, count in settled(run).items()}
        planned: dict[str, int] = {}
        for ask in made.plan.asks:
            planned[ask.step] = planned.get(ask.step, 0) + ask.calls
        questions, usd, known = 0, 0.0, True
        mean = run.mean_usd()  # for steps that had no reply when the plan was made
        for ask in made.plan.asks:
            # Those in flight when the plan was made are not part of it, but are answered first.
            left = max(0, planned[ask.step] - done.get(ask.step, 0)) * ask.calls / planned[ask.step] if ask.calls else 0
            questions += round(left)
            each = mean if ask.cost_usd is None or not ask.calls else ask.cost_usd / ask.calls
            known = known and (each is not None or not left)
            usd += (each or 0.0) * left
        facts = sum(each.statistics for each in made.plan.scores) + sum(each.facts for each in made.plan.measures)
        new = max(0, (statistics.number or 0) - made.statistics)
        follow = sum(each.follow for each in made.plan.scores)
        scores = max(0, facts - new)
        rate, per_s = run.rate(now), statistics.rate()
        return {
            "why": None,
            "questions": questions,
            "seconds": questions / rate if questions and rate else None,
            "usd": usd if known else None,
            "statistics": scores,
            "statistics_to_follow": max(0, follow - max(0, new - facts)) if questions else 0,
            "statistics_seconds": scores / per_s if scores and per_s else None,
        }

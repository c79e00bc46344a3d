"""What a sync says of itself while it works: plain numbers, which the command line draws and --json prints."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far one step of one run has come. `total` may grow, since replies bring further questions."""

    step: str
    who: str
    total: int
    done: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    cost_usd: float | None = None  # what is known of it
    cost_unknown: int = 0  # replies whose cost is unknown
    utilisation: float | None = None  # scoring: share of the hardware's measured matmul peak
    ended: bool = False
    started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Rows a second."""
        return (self.done + self.failed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the step is done at this rate."""
        left = max(0, self.total - self.done - self.failed)
        return left / self.rate if self.rate > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Return the state as one JSON event."""
        return {
            "event": "progress",
            "step": self.step,
            "who": self.who,
            "done": self.done,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "total": self.total,
            "rate": round(self.rate, 3),
            "tokens": self.tokens,
            "tokens_per_minute": round(self.tokens / self.seconds * 60) if self.seconds > 0 else 0,
            "cost_usd": self.cost_usd,
            "cost_unknown": self.cost_unknown,
            "utilisation": self.utilisation,
            "ended": self.ended,
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
        }


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Listen to nothing."""

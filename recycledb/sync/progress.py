"""The progress of a sync and the counts of its questions: plain numbers, which the command line displays."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from recycledb.reflection.teachers import Reply
from recycledb.sync.refusals import same_error

TEXTS_MOST = 1_000  # different errors that are counted by their text


@dataclass
class Progress:
    """The progress of one step of one run. `total` may grow, since replies bring further questions."""

    step: str
    who: str
    total: int
    done: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    cost_usd: float | None = None  # the known part
    cost_unknown: int = 0  # replies of unknown cost
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
        """Seconds until the step is done at the present rate."""
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


@dataclass
class Asked:
    """Counts of one run of questions."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    errors: int = 0
    variants: int = 0
    ratings: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None  # the known part
    charged_usd: float = 0.0  # the reservations of replies of unknown cost
    unknown: int = 0  # replies of unknown cost
    stopped: str | None = None  # why it ended before everything was asked
    reasons: dict[str, int] = field(default_factory=dict)  # by the kind of error
    examples: dict[str, str] = field(default_factory=dict)  # the first error of each kind, in full
    texts: dict[str, tuple[int, str]] = field(
        default_factory=dict, repr=False
    )  # errors that are alike: how many, and the first

    def note_failure(self, reply: Reply) -> None:
        """Count a failed reply, by the kind of its error and by its text."""
        error = reply.error or reply.status.value
        key = same_error(error)
        if key in self.texts or len(self.texts) < TEXTS_MOST:
            count, first = self.texts.get(key, (0, error))
            self.texts[key] = count + 1, first
        kind = reply.kind or reply.status.value
        self.reasons[kind] = self.reasons.get(kind, 0) + 1
        self.examples.setdefault(kind, reply.error or kind)

    def add_cost(self, reply: Reply, reserved: float | None) -> None:
        """Add the cost of a reply, or charge its reservation where the cost is unknown; a reservation of 0 means that it was free."""
        if reply.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + reply.cost_usd
        elif reserved != 0.0:
            self.charged_usd += reserved or 0.0
            self.unknown += 1


def commonest(asked: Iterable[Asked]) -> tuple[int, str] | None:
    """Return the most frequent error of these runs of questions: how many alike, and the first; None without an error."""
    sums: dict[str, tuple[int, str]] = {}
    for each in asked:
        for key, (count, first) in each.texts.items():
            before, text = sums.get(key, (0, first))
            sums[key] = before + count, text
    return max(sums.values(), key=lambda found: found[0], default=None)


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore the progress."""

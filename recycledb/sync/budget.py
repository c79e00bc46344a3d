"""Money: what a run may still spend, counting what is under way.

Invariant: a question is asked only when the most that it can cost still fits, so the cap is never overshot, whatever length the
replies have.
"""

from collections.abc import Mapping, Sequence

from recycledb.config import TeacherConfig
from recycledb.errors import ConfigError
from recycledb.reflection.teachers import Reply
from recycledb.schema import ReplyStatus

BILLED_UNSEEN = {"timeout", "connection", "bad_body"}  # may be billed although no usage came back


class Budget:
    """A hard cap on dollars: what a question may cost at most is set aside before it is asked."""

    def __init__(self, teacher: TeacherConfig, limit: float | None) -> None:
        self.limit, self.spent, self.reserved = limit, 0.0, 0.0
        self._prices = (teacher.price_in, teacher.price_out)
        self._completion = teacher.request_params.get("max_completion_tokens") or teacher.request_params.get(
            "max_tokens"
        )
        if limit is None:
            return
        if None in self._prices:
            raise ConfigError(f"--max-cost needs prices: set price_in and price_out under [teachers.{teacher.name}]")
        if not self._completion:
            raise ConfigError(
                f"--max-cost needs a bound on answers: set max_tokens in params of [teachers.{teacher.name}]"
            )

    def most(self, messages: Sequence[Mapping[str, str]]) -> float:
        """Return the most that a question can cost: no token is shorter than a byte, no answer longer than allowed."""
        if self.limit is None:
            return 0.0
        price_in, price_out = self._prices
        prompt = sum(len(message["content"].encode()) + 16 for message in messages) + 16
        return (prompt * (price_in or 0.0) + (self._completion or 0) * (price_out or 0.0)) / 1e6

    def reserve(self, amount: float) -> bool:
        """Set an amount aside, if the budget still holds it."""
        if self.limit is not None and self.spent + self.reserved + amount > self.limit:
            return False
        self.reserved += amount
        return True

    def release(self, amount: float) -> None:
        """Give back what was set aside for a question that was not asked."""
        self.reserved -= amount

    def settle(self, reserved: float, reply: Reply) -> bool:
        """Replace what was set aside by what was paid, or keep it where that is unknown; return whether it is known."""
        self.reserved -= reserved
        if reply.cost_usd is not None:
            self.spent += reply.cost_usd
            return True
        if reply.status is ReplyStatus.OK or reply.text is not None or reply.kind in BILLED_UNSEEN:
            self.spent += reserved
            return False
        return True

"""Money: what a run may still spend, counting what is under way.

Invariant: a question is asked only when the most that it can cost still fits, so the cap is never overshot, whatever length the
replies have.
"""

import os
from collections.abc import Mapping, Sequence

from recycledb.config import TeacherConfig
from recycledb.errors import ConfigError
from recycledb.reflection.teachers import Reply
from recycledb.reflection.teachers.prices import Cost, find_cost
from recycledb.schema import ReplyStatus

OPENAI_URL = "https://api.openai.com/v1"
BILLED_UNSEEN = {"timeout", "connection", "bad_body", "server_error"}  # may be billed although no usage came back


# Tokens of a chat template round a message, and round them all (some put in a system prompt of their own): more than any we know.
MESSAGE_TOKENS, CONVERSATION_TOKENS = 32, 256


def price_of(teacher: TeacherConfig) -> Cost | None:
    """Return the price of a request to a teacher, by its configuration or a price table; None where it is unknown."""
    address = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    return find_cost(teacher, address) if teacher.provider == "openai" else None


def longest_answer(teacher: TeacherConfig) -> int | None:
    """Return how many tokens all answers to one request can have together; None where nothing bounds them."""
    params = teacher.request_params
    bound = params.get("max_completion_tokens") or params.get("max_tokens")
    return int(bound) * int(params.get("n") or 1) if bound else None


class Budget:
    """A hard cap on dollars: what a question may cost at most is set aside before it is asked."""

    def __init__(self, teacher: TeacherConfig, limit: float | None) -> None:
        self.limit, self.spent, self.reserved = limit, 0.0, 0.0
        self._price, self._longest = (None, None) if limit is None else (price_of(teacher), longest_answer(teacher))
        if limit is None:
            return
        if self._price is None:
            raise ConfigError(
                f"--max-cost needs prices: set price_in and price_out under [teachers.{teacher.name}], "
                "or install genai-prices, if it knows the model"
            )
        if not self._longest:
            raise ConfigError(
                f"--max-cost needs a bound on answers: set max_tokens in params of [teachers.{teacher.name}]"
            )

    def most(self, messages: Sequence[Mapping[str, str]]) -> float:
        """Return the most that a question can cost: no token is shorter than a byte, no answer longer than allowed."""
        if self._price is None or self._longest is None:
            return 0.0
        prompt = sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages) + CONVERSATION_TOKENS
        return max(self._price(prompt, self._longest, cached) for cached in (0, prompt))

    @property
    def reached(self) -> str:
        """What is said when nothing more can be afforded."""
        limit = self.limit or 0.0
        return f"the budget of ${limit:.2f} is reached" if limit >= 1 else f"the budget of ${limit:.6f} is reached"

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

"""Budgets: what a run, and what a whole store, may still spend.

Invariant: a question is asked only when the most that it can cost fits into the budget, so a budget is not exceeded, however long
the replies are and however the requests end. An unknown cost never counts as 0. What a claimed request counts as:

| how it ended | counts as | because |
|---|---|---|
| a completion, whole or truncated, with plausible usage | its cost by that usage | where usage is ambiguous, the higher cost |
| no usage, or impossible counts; empty, refused, filtered | its reservation | tokens were generated |
| 200 with an invalid body; 5xx, 408, 409; a timeout; a broken connection | its reservation | tokens may have been generated |
| 400, 413, 422: a filtered or too long prompt, a bad request | its reservation | Azure bills prompts that its filter rejects |
| 401, 402, 403, 404, 405, 429, a redirect; a code for quota, model, parameter | 0 | rejected before any work |
| the connection could not be made | 0 | nothing was sent |
| a batch's line batch_expired or batch_cancelled; a batch that failed as a whole or was never submitted | 0 | it was not started |
| no reply is stored: in flight, lost with its process, in a batch | its reservation | it may have been sent |
| a teacher in this process, or a recording | 0 | nobody bills it |

A client cannot know whether a server keeps to its prices and to the limit on completion tokens, counts correctly, or bills for
other things than tokens (searches, a more expensive tier). A reply that cost more than its reservation is counted in full, and
later reservations grow by the same factor; only the questions in flight at that moment can exceed the budget.
"""

import json
import math
import os
import time
import unicodedata
from collections.abc import Mapping, Sequence

from recycledb.config import DEFAULT_PARAMS, TeacherConfig
from recycledb.errors import ConfigError
from recycledb.reflection.teachers import Reply
from recycledb.reflection.teachers.prices import Cost, dearest, find_cost
from recycledb.store import Store
from recycledb.store.spending import Spending, Unpriced, overrun, spent_at_the_same_time

LOOK_ELSEWHERE_S = 5.0
OPENAI_URL = "https://api.openai.com/v1"

# Tokens that a chat template adds per message and per conversation (some add a system prompt): more than any that we know.
MESSAGE_TOKENS, CONVERSATION_TOKENS = 32, 256


def price_of(teacher: TeacherConfig) -> Cost | None:
    """Return the price of a request to a teacher, from its configuration or a price table; None where it is unknown."""
    if teacher.provider != "openai":
        return lambda prompt, completion, cached: 0.0  # in this process, or from a file
    address = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    return find_cost(teacher, address)


def longest_answer(teacher: TeacherConfig) -> int | None:
    """Return the most completion tokens of one request, over all its choices; None where nothing limits them."""
    return _longest(teacher.request_params)


def _longest(params: Mapping[str, object]) -> int | None:
    bound = _count(
        params.get("max_completion_tokens") or params.get("max_tokens")
    )  # -1 means "no limit" to some servers
    answers = [_count(params[key]) for key in ("n", "best_of") if params.get(key) is not None]
    if bound is None or None in answers:
        return None
    # Rejected tokens of a prediction are billed like completion tokens.
    predicted = len(json.dumps(params["prediction"])) if "prediction" in params else 0
    return (bound + predicted) * max([1, *(number for number in answers if number)])


def _count(value: object) -> int | None:
    """Return `value` as a positive int, None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 2**53:
        return int(value) if value == int(value) else None
    return None


def dollars(amount: float) -> str:
    """Format an amount: to the cent, or to a millionth of a dollar where it is less than one dollar."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.6f}"


def described(known_usd: float | None, unknown: int) -> str:
    """Format what was paid: never $0 where costs are unknown; "" where nothing was paid."""
    count = f"{unknown:,} {'request' if unknown == 1 else 'requests'} of unknown cost" if unknown else ""
    if not known_usd:
        return "cost unknown" if unknown else ""
    return " + ".join(part for part in (f"${known_usd:,.4f}", count) if part)


def budget_line(spending: Spending) -> str:
    """Return one line about the store's budget: its limit, what is spent, and what is left."""
    spent = _said(spending.recorded_usd, spending.charged_usd, spending.unknown)
    if spending.unpriced:
        left = f"nothing left until model {spending.unpriced[0].model!r} has prices in recycledb.toml"
    else:
        left = f"{dollars(spending.left_usd or 0.0)} left"
    return f"budget of the store: {dollars(spending.limit_usd or 0.0)} ([sync] budget_usd): {spent}, {left}"


class Budget:
    """The budgets of a run and of its store: the most that a question can cost is reserved before it is asked.

    The run's budget is enforced here; the store's by each claim, in its transaction: see `Spending`, which `begin` measures.
    """

    def __init__(
        self,
        teacher: TeacherConfig,
        limit: float | None,
        *,
        store_limit: float | None = None,
        teachers: Sequence[TeacherConfig] = (),
        teacher_ids: Sequence[str] = (),
    ) -> None:
        self._ids = teacher_ids or (teacher.teacher_id,)
        self.teacher, self.limit, self.store_limit = teacher, limit, store_limit
        self.spent, self.reserved = 0.0, 0.0  # spent: known and charged together
        self.before = 0.0  # spent by other parts of the run, which ask other teachers or other things
        self.elsewhere = 0.0  # spent by other runs at the same time, in other processes or on other hosts
        self.charged, self.unknown = 0.0, 0  # for replies of unknown cost, and their number
        self.spending: Spending | None = None  # of the store, once measured, where it has a budget
        self._teachers = [teacher, *teachers]
        self._price, self._longest = price_of(teacher), longest_answer(teacher)
        self._around = CONVERSATION_TOKENS + _parameter_tokens(teacher.request_params)
        self._look_at = 0.0
        self._overrun = 1.0  # the highest ratio of a reply's cost to its computed maximum
        for cap, given in (("--max-cost", limit), ("[sync] budget_usd", store_limit)):
            if given is not None:
                self._check(cap, given)

    def _check(self, cap: str, limit: float) -> None:
        name = self.teacher.name
        if not (math.isfinite(limit) and limit >= 0):
            raise ConfigError(f"{cap} is {limit}; give an amount of dollars, for example 5")
        if self._price is None:
            raise ConfigError(
                f"{cap} needs prices: set price_in and price_out under [teachers.{name}], "
                "or install genai-prices, if it knows the model"
            )
        if not self._longest and self.teacher.provider == "openai":
            raise ConfigError(f"{cap} needs a bound on answers: set max_tokens in params of [teachers.{name}]")

    def begin(self, store: Store) -> None:
        """Sum what the store has spent, before the first claim of a run; ConfigError where some requests have no price."""
        if self.limit is None and self.store_limit is None:
            return
        self._overrun = max(self._overrun, store.ask(lambda conn: overrun(conn, self._ids)))
        if self.store_limit is not None:
            self.spending = measure(store, self.store_limit, self._teachers)
            require_prices(self.spending)

    def look_elsewhere(self, store: Store, worker: str, *, at_once: bool = False) -> None:
        """Sum what runs at the same time as this worker's have spent, now and then: `--max-cost` holds over all of them."""
        if self.limit is not None and (at_once or time.monotonic() >= self._look_at):
            self.elsewhere = store.ask(lambda conn: spent_at_the_same_time(conn, worker))
            self._look_at = time.monotonic() + LOOK_ELSEWHERE_S

    @property
    def priced(self) -> bool:
        """Whether prices are known."""
        return self._price is not None

    def most(self, messages: Sequence[Mapping[str, str]]) -> float | None:
        """Return the most that a question can cost (a token has at least a byte, a completion is within its limit); None if unknown."""
        base = self._most(messages)
        return None if base is None else base * self._overrun

    def _most(self, messages: Sequence[Mapping[str, str]]) -> float | None:
        if self.teacher.provider != "openai":
            return 0.0
        if self._price is None or self._longest is None:
            return None
        prompt = sum(_bytes(message["content"]) + MESSAGE_TOKENS for message in messages) + self._around
        most = dearest(self._price, prompt, self._longest)
        return most if math.isfinite(most) else None

    @property
    def reached(self) -> str:
        """The message for a run whose budget has no room for the next question."""
        spent = _said(self.before + self.spent - self.charged, self.charged, self.unknown)
        if self.elsewhere:
            spent += f", and {dollars(self.elsewhere)} by other runs at the same time"
        return (
            f"the budget of {dollars(self.limit or 0.0)} is reached (--max-cost, for this run): {spent}; "
            "the next question might exceed it; run sync again to continue"
        )

    @property
    def store_reached(self) -> str:
        """The message for a store whose budget has no room for the next question."""
        found = self.spending or Spending()
        spent = _said(found.recorded_usd, found.charged_usd, found.unknown)
        return (
            f"the budget of {dollars(self.store_limit or 0.0)} is reached ([sync] budget_usd, for the whole store): {spent}; "
            "the next question might exceed it; raise budget_usd in recycledb.toml to continue"
        )

    def reserve(self, amount: float | None) -> bool:
        """Reserve an amount of the run's budget; return whether it fits."""
        spent = self.before + self.elsewhere + self.spent + self.reserved
        if self.limit is not None and (amount is None or spent + amount > self.limit):
            return False
        self.reserved += amount or 0.0
        return True

    def release(self, amount: float | None) -> None:
        """Release the reservation of a question that was not asked."""
        self.reserved -= amount or 0.0

    def settle(self, reserved: float | None, reply: Reply, messages: Sequence[Mapping[str, str]]) -> bool:
        """Replace a reservation by the cost of the reply, or charge it where the cost is unknown; return whether it is known."""
        self.release(reserved)
        if reply.cost_usd is not None:
            self.spent += reply.cost_usd
            if reserved is not None and reply.cost_usd > reserved:
                self._overrun = max(self._overrun, reply.cost_usd / (self._most(messages) or math.inf))
            return True
        return self.charge(reserved)

    def charge(self, reserved: float | None) -> bool:
        """Count a reservation as spent, for a reply of unknown cost; return whether the cost is known after all, as 0."""
        if reserved == 0.0:
            return True
        self.spent += reserved or 0.0
        self.charged += reserved or 0.0
        self.unknown += 1
        return False


def measure(store: Store, limit: float | None, teachers: Sequence[TeacherConfig]) -> Spending:
    """Return what a store's requests have cost; where no cost is recorded, by the present prices of `teachers`."""
    prices: dict[str, Cost] = {}
    for teacher in teachers:
        if teacher.provider == "openai" and teacher.model not in prices and (price := price_of(teacher)):
            prices[teacher.model] = price

    def charge(requests: Unpriced) -> float | None:
        price = prices.get(requests.model)
        return None if price is None else _charge(requests, price)

    spending = Spending(limit, charge=charge)
    store.ask(spending.measure)
    return spending


def require_prices(spending: Spending) -> None:
    """Raise ConfigError where stored requests have neither a cost nor a price."""
    if spending.unpriced:
        first = spending.unpriced[0]
        raise ConfigError(
            f"[sync] budget_usd: the cost of {first.requests:,} earlier requests to model {first.model!r} is unknown; "
            "set price_in and price_out (0 if it was free) under a [teachers.NAME] with that model"
        )


def _charge(requests: Unpriced, price: Cost) -> float:
    """Return what requests without a recorded cost count as: priced by their tokens, else the most that they can have cost."""
    charged, others = 0.0, requests.requests - requests.counted
    if requests.counted:
        means = (
            math.ceil(tokens / requests.counted) for tokens in (requests.prompt_tokens, requests.completion_tokens)
        )
        charged += requests.counted * dearest(price, *means)
    if others:
        params = json.loads(requests.parameters).get("params", {})
        if requests.longest:
            params = {**params, "max_tokens": requests.longest, "max_completion_tokens": None}
        longest = _longest(params) or 2 * DEFAULT_PARAMS["max_tokens"]  # no limit was set: twice the usual one
        # A character has at most four bytes in UTF-8.
        prompt = math.ceil(4 * requests.characters / others) + CONVERSATION_TOKENS + 2 * MESSAGE_TOKENS
        charged += others * dearest(price, prompt, longest)
    return charged


def _bytes(text: str) -> int:
    """Return the most bytes that a text has in UTF-8: some tokenizers decompose accented letters first."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKD", text).encode()))


def _parameter_tokens(params: Mapping[str, object]) -> int:
    """Return the most tokens that parameters add to a prompt: a server renders tools and schemas into it, in its own format."""
    shown = {key: value for key, value in params.items() if isinstance(value, dict | list)}
    return 2 * len(json.dumps(shown, default=str)) if shown else 0


def _said(known_usd: float, charged_usd: float, unknown: int) -> str:
    parts = [f"{dollars(known_usd)} recorded"]
    if unknown:
        requests = "request" if unknown == 1 else "requests"
        parts.append(f"{dollars(charged_usd)} charged for {unknown:,} {requests} of unknown cost")
    return ", ".join(parts)

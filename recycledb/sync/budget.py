"""Money: what a run, and what a whole store, may still spend.

Invariant: a question is asked only when the most that it can cost still fits, so a cap is not passed, whatever length the
replies have and however they end. Unknown is never free. What a request counts as, once it was claimed:

| how it ended | counts as | because |
|---|---|---|
| an answer, whole or cut off, with believable usage | its cost by that usage | of two readings the dearer one |
| no usage, or counts that cannot be true; empty, refused, filtered | what was set aside | it was generated |
| 200 with a body that is none; 5xx, 408, 409; a time-out; a broken connection | what was set aside | it may have been generated |
| 400, 413, 422: a filtered or too long prompt, a bad request | what was set aside | Azure bills prompts that its filter turned away |
| 401, 402, 403, 404, 405, 429, a redirect; a code for quota, model, parameter | 0 | refused at the gate |
| no connection came about | 0 | nothing was sent |
| a batch's line batch_expired or batch_cancelled; a batch that failed whole, or was never handed over | 0 | it was not begun |
| no reply is on record: under way, lost with its process, in a batch | what was set aside | it may have been sent |
| a teacher in this process, or a recording | 0 | nobody bills it |

What no client can know: whether a server keeps to its prices and to the bound on answers, counts truly, or bills by other
things than tokens (searches, a dearer tier). A reply that cost more than was set aside is counted in full, and as much more is
set aside from then on; at most the questions that were under way at that moment can have passed the cap.
"""

import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence

from recycledb.config import DEFAULT_PARAMS, TeacherConfig
from recycledb.errors import ConfigError
from recycledb.reflection.teachers import Reply
from recycledb.reflection.teachers.prices import Cost, dearest, find_cost
from recycledb.store import Store
from recycledb.store.spending import Spending, Unpriced, overrun

OPENAI_URL = "https://api.openai.com/v1"

# Tokens of a chat template round a message, and round them all (some put in a system prompt of their own): more than any we know.
MESSAGE_TOKENS, CONVERSATION_TOKENS = 32, 256


def price_of(teacher: TeacherConfig) -> Cost | None:
    """Return the price of a request to a teacher, by its configuration or a price table; None where it is unknown."""
    if teacher.provider != "openai":
        return lambda prompt, completion, cached: 0.0  # in this process, or from a file
    address = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    return find_cost(teacher, address)


def longest_answer(teacher: TeacherConfig) -> int | None:
    """Return how many tokens all answers to one request can have together; None where nothing bounds them."""
    return _longest(teacher.request_params)


def _longest(params: Mapping[str, object]) -> int | None:
    bound = _count(params.get("max_completion_tokens") or params.get("max_tokens"))  # -1 is "no bound" to some servers
    answers = [_count(params[key]) for key in ("n", "best_of") if params.get(key) is not None]
    if bound is None or None in answers:
        return None
    # Predicted text that is not used is billed as if it were written.
    predicted = len(json.dumps(params["prediction"])) if "prediction" in params else 0
    return (bound + predicted) * max([1, *(number for number in answers if number)])


def _count(value: object) -> int | None:
    """Return a whole number from 1 up, None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 2**53:
        return int(value) if value == int(value) else None
    return None


def dollars(amount: float) -> str:
    """Return an amount for people: in cents, or in millionths of a dollar where it is less than one."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.6f}"


def described(known_usd: float | None, unknown: int) -> str:
    """Return what was paid: never $0 where costs are unknown; "" where there is nothing to say."""
    count = f"{unknown:,} {'request' if unknown == 1 else 'requests'} of unknown cost" if unknown else ""
    if not known_usd:
        return "cost unknown" if unknown else ""
    return " + ".join(part for part in (f"${known_usd:,.4f}", count) if part)


def budget_line(spending: Spending) -> str:
    """Return what there is of the store's budget, what was spent of it, and what is left."""
    spent = _said(spending.recorded_usd, spending.charged_usd, spending.unknown)
    if spending.unpriced:
        left = f"nothing is left as long as model {spending.unpriced[0].model!r} has no prices in recycledb.toml"
    else:
        left = f"{dollars(spending.left_usd or 0.0)} left"
    return f"budget of the store: {dollars(spending.limit_usd or 0.0)} ([sync] budget_usd): {spent}, {left}"


class Budget:
    """Caps on dollars, for a run and for its store: what a question may cost at most is set aside before it is asked.

    The run's cap is held here. The store's is held by each claim, in its transaction: see `Spending`, which `begin` measures.
    """

    def __init__(
        self,
        teacher: TeacherConfig,
        limit: float | None,
        *,
        store_limit: float | None = None,
        teachers: Sequence[TeacherConfig] = (),
    ) -> None:
        self.teacher, self.limit, self.store_limit = teacher, limit, store_limit
        self.spent, self.reserved = 0.0, 0.0  # spent: known and charged together
        self.charged, self.unknown = 0.0, 0  # for replies whose cost is unknown, and how many those are
        self.spending: Spending | None = None  # of the store, once it was measured, where its cap is set
        self._teachers = [teacher, *teachers]
        self._price, self._longest = price_of(teacher), longest_answer(teacher)
        self._around = CONVERSATION_TOKENS + _parameter_tokens(teacher.request_params)
        self._overrun = 1.0  # how many times a reply cost what it could cost at most
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
        """Count what the store has spent, before the first claim of a run; ConfigError where a part of it has no price."""
        if self.limit is None and self.store_limit is None:
            return
        with store.read() as conn:
            self._overrun = max(self._overrun, overrun(conn, self.teacher.teacher_id))
        if self.store_limit is not None:
            self.spending = measure(store, self.store_limit, self._teachers)
            require_prices(self.spending)

    @property
    def priced(self) -> bool:
        """Whether prices are known."""
        return self._price is not None

    def most(self, messages: Sequence[Mapping[str, str]]) -> float | None:
        """Return the most that a question can cost: no token is shorter than a byte, no answer longer than allowed; None if unknown."""
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
        """What is said when the run can afford nothing more."""
        spent = _said(self.spent - self.charged, self.charged, self.unknown)
        return (
            f"the budget of {dollars(self.limit or 0.0)} is reached (--max-cost, for this run): {spent}; "
            "the next question might pass it; run sync again to go on"
        )

    @property
    def store_reached(self) -> str:
        """What is said when the store's requests may cost nothing more."""
        found = self.spending or Spending()
        spent = _said(found.recorded_usd, found.charged_usd, found.unknown)
        return (
            f"the budget of {dollars(self.store_limit or 0.0)} is reached ([sync] budget_usd, for the whole store): {spent}; "
            "the next question might pass it; raise budget_usd in recycledb.toml to go on"
        )

    def reserve(self, amount: float | None) -> bool:
        """Set an amount aside for the run, if its cap still holds it."""
        if self.limit is not None and (amount is None or self.spent + self.reserved + amount > self.limit):
            return False
        self.reserved += amount or 0.0
        return True

    def release(self, amount: float | None) -> None:
        """Give back what was set aside for a question that was not asked."""
        self.reserved -= amount or 0.0

    def settle(self, reserved: float | None, reply: Reply, messages: Sequence[Mapping[str, str]]) -> bool:
        """Replace what was set aside by what was paid, or keep it where that is unknown; return whether it is known."""
        self.release(reserved)
        if reply.cost_usd is not None:
            self.spent += reply.cost_usd
            if reserved is not None and reply.cost_usd > reserved:
                self._overrun = max(self._overrun, reply.cost_usd / (self._most(messages) or math.inf))
            return True
        return self.charge(reserved)

    def charge(self, reserved: float | None) -> bool:
        """Count what was set aside as spent, for a reply whose cost is unknown; return whether it is known after all, as nothing."""
        if reserved == 0.0:
            return True
        self.spent += reserved or 0.0
        self.charged += reserved or 0.0
        self.unknown += 1
        return False


def measure(store: Store, limit: float | None, teachers: Sequence[TeacherConfig]) -> Spending:
    """Return what a store's requests have cost, where that is not recorded by the prices of `teachers` as they are now."""
    prices: dict[str, Cost] = {}
    for teacher in teachers:
        if teacher.provider == "openai" and teacher.model not in prices and (price := price_of(teacher)):
            prices[teacher.model] = price

    def charge(requests: Unpriced) -> float | None:
        price = prices.get(requests.model)
        return None if price is None else _charge(requests, price)

    spending = Spending(limit, charge=charge)
    with store.read() as conn:
        spending.measure(conn)
    return spending


def require_prices(spending: Spending) -> None:
    """Raise ConfigError where requests on record can neither be counted nor charged."""
    if spending.unpriced:
        first = spending.unpriced[0]
        raise ConfigError(
            f"[sync] budget_usd: what {first.requests:,} earlier requests to model {first.model!r} cost is not on record; "
            "set price_in and price_out (0 where it cost nothing) under a [teachers.NAME] with that model"
        )


def _charge(requests: Unpriced, price: Cost) -> float:
    """Return what requests without a recorded cost count as: by their tokens, else the most that they can have cost."""
    charged, others = 0.0, requests.requests - requests.counted
    if requests.counted:
        means = (
            math.ceil(tokens / requests.counted) for tokens in (requests.prompt_tokens, requests.completion_tokens)
        )
        charged += requests.counted * dearest(price, *means)
    if others:
        params = json.loads(requests.parameters).get("params", {})
        longest = _longest(params) or 2 * DEFAULT_PARAMS["max_tokens"]  # nothing bounded it: twice the usual bound
        # No letter has more than four bytes in UTF-8.
        prompt = math.ceil(4 * requests.characters / others) + CONVERSATION_TOKENS + 2 * MESSAGE_TOKENS
        charged += others * dearest(price, prompt, longest)
    return charged


def _bytes(text: str) -> int:
    """Return how many bytes a text has in UTF-8 at most: some tokenizers take letters and their marks apart first."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKD", text).encode()))


def _parameter_tokens(params: Mapping[str, object]) -> int:
    """Return how many tokens parameters can add to a prompt: tools and schemas are shown to the model, in a form of the server's own."""
    shown = {key: value for key, value in params.items() if isinstance(value, dict | list)}
    return 2 * len(json.dumps(shown, default=str)) if shown else 0


def _said(known_usd: float, charged_usd: float, unknown: int) -> str:
    parts = [f"{dollars(known_usd)} recorded"]
    if unknown:
        requests = "request" if unknown == 1 else "requests"
        parts.append(f"{dollars(charged_usd)} charged for {unknown:,} {requests} of unknown cost")
    return ", ".join(parts)

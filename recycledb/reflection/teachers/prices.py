"""Prices: what a request cost, in dollars.

Invariant: a cost comes from prices that someone stands for: the configuration's, else those of the genai-prices package for
this address and model, where it is installed. Otherwise it is unknown. A cost is a finite number from 0 up; where what a server says of
its tokens can be read in two ways it is the dearer one, and where it cannot be true the cost is unknown, which is never taken for 0.
This module refuses to guess.
"""

import math
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from recycledb.config import TeacherConfig

# (prompt tokens, completion tokens, how many of the prompt's came from the server's cache) -> USD
Cost = Callable[[int, int, int], float]

MOST_TOKENS = 10**9  # no request has more: what is beyond is no count

# A server that answers so has not begun: it knows neither key nor model, the account is blocked, or its gate is shut. A 400 is not among
# them: Azure bills prompts that its filter or its input limit turned away (learn.microsoft.com, "manage costs": 400 and 408 may be
# charged, 401 and 429 are not), and so do others.
UNBEGUN_STATUSES = frozenset({301, 307, 308, 401, 402, 403, 404, 405, 429})


def find_cost(config: TeacherConfig, base_url: str) -> Cost | None:
    """Return the function that prices a request to `config`'s model at `base_url`; None where no price is known.

    Where the configuration has no price for cached tokens, they cost what others do.
    """
    if config.price_in is not None and config.price_out is not None:
        price_in, price_out = config.price_in, config.price_out
        price_cached = price_in if config.price_cached is None else config.price_cached
        return lambda prompt, completion, cached: (
            ((prompt - cached) * price_in + cached * price_cached + completion * price_out) / 1e6
        )
    if find_spec("genai_prices") is None:
        return None
    table = import_module("genai_prices")

    def cost(prompt: int, completion: int, cached: int) -> float:
        usage = table.Usage(input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached)
        return float(table.calc_price(usage, config.model, provider_api_url=base_url).total_price)

    try:
        cost(1, 1, 0)
    except LookupError:  # it does not know this address or this model
        return None
    return cost


def dearest(price: Cost, prompt: int, completion: int) -> float:
    """Return what a request costs at most, whatever part of the prompt was cached."""
    return max(price(prompt, completion, cached) for cached in (0, prompt))


def usage_cost(price: Cost | None, usage: object) -> float | None:
    """Return what a request cost by the `usage` of its answer; None where that cannot be told.

    A prompt or an answer of no tokens is none: such a count was made up. Some servers leave the tokens of thinking out of
    `completion_tokens`; they are in the total, or in the details. More cached tokens than the prompt has: any number may be true.
    """
    if price is None or not isinstance(usage, dict):
        return None
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    if not prompt or not completion:
        return None
    thought = _tokens(_details(usage, "completion_tokens_details"), "reasoning_tokens") or 0
    if thought > completion:
        completion += thought
    completion = max(completion, (_tokens(usage, "total_tokens") or 0) - prompt)
    details = _details(usage, "prompt_tokens_details")
    cached = _tokens(details, "cached_tokens")
    if details.get("cached_tokens") is None:
        cost = price(prompt, completion, 0)
    elif cached is None or cached > prompt:
        cost = dearest(price, prompt, completion)
    else:
        cost = price(prompt, completion, cached)
    return cost if math.isfinite(cost) and cost >= 0 else None


def is_unbegun(status: int, codes: Collection[str], named: Collection[str]) -> bool:
    """Say whether a refusal came before anything was generated: by its status, or by a code that names what was wrong with the request."""
    return status in UNBEGUN_STATUSES or (400 <= status < 500 and any(code in named for code in codes))


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _tokens(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None

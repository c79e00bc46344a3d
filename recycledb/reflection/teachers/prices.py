"""Prices: the cost of a request in US dollars.

Invariant: a cost is computed from the configuration's prices, else from those of the genai-prices package for this address and model,
if it is installed; otherwise it is unknown. A cost is a finite number of at least 0. If a server's token counts can be read in two
ways, the higher cost counts; if they are impossible, the cost is unknown, which is never treated as 0. Nothing is guessed.
"""

import math
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from recycledb.config import TeacherConfig

# (prompt tokens, completion tokens, prompt tokens that came from the server's cache) -> USD
Cost = Callable[[int, int, int], float]

MOST_TOKENS = 10**9  # no request has more, so a larger number is invalid

# With these statuses nothing was generated: redirects, an unknown key or model, a blocked account, a rate limit. 400 is not among
# them: Azure bills prompts that its filter or its input limit rejected (learn.microsoft.com, "manage costs": 400 and 408 may be
# charged, 401 and 429 are not), and so do others.
UNBEGUN_STATUSES = frozenset({301, 307, 308, 401, 402, 403, 404, 405, 429})


def find_cost(config: TeacherConfig, base_url: str) -> Cost | None:
    """Return the function that prices a request to `config`'s model at `base_url`; None if no price is known.

    Without a price for cached tokens in the configuration they cost as much as other prompt tokens.
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
    except LookupError:  # unknown address or model
        return None
    return cost


def dearest(price: Cost, prompt: int, completion: int) -> float:
    """Return the highest cost of a request, over all possible numbers of cached tokens."""
    return max(price(prompt, completion, cached) for cached in (0, prompt))


def usage_cost(price: Cost | None, usage: object) -> float | None:
    """Return the cost of a request from the `usage` of its response; None if it cannot be computed.

    A count of 0 prompt or completion tokens is treated as invalid. Some servers leave reasoning tokens out of `completion_tokens`;
    they are in the total, or in the details. If there are more cached tokens than prompt tokens, the highest possible cost is taken.
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
    """Return whether a request was refused before anything was generated, by its status or by an error code about the request."""
    return status in UNBEGUN_STATUSES or (400 <= status < 500 and any(code in named for code in codes))


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _tokens(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None

"""Prices: what a request cost, in dollars.

Invariant: a cost comes from prices that someone stands for: the configuration's, else those of the genai-prices package for
this address and model, where it is installed. Otherwise it is unknown. This module refuses to guess.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from recycledb.config import TeacherConfig

# (prompt tokens, completion tokens, how many of the prompt's came from the server's cache) -> USD
Cost = Callable[[int, int, int], float]


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

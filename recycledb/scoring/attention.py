"""Attention over packed sequences, registered with transformers' attention interface.

Invariant: a token sees the tokens of its own sequence at and before its position, and no others; within a sliding
window where the layer has one. The numbers are those of the model's own attention up to rounding, on any device.

A pack (packs.Layout) is one row of T tokens. Sequences with a common prefix share its keys, so each block of
new tokens comes with the ranges of rows that it sees. On CPU each block is one attention call. On CUDA all blocks are
one call of a variable-length kernel, with the keys concatenated; its causal mask is aligned to the bottom right,
which is what a block that follows shared keys needs:

    torch.nn.attention.varlen (torch >= 2.10), or flash-attn where it is installed; float16 and bfloat16 only.

This module rejects what it does not support (position biases, attention sinks, a mask); the caller then falls
back to padding. transformers passes no mask here because none is registered for this name.
"""

import contextlib
import importlib.util
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recycledb.scoring.packs import Layout

NAME = "recycledb_packed"

# Query rows whose attention scores are in memory at once where they must be materialised (soft-capping).
_SCORE_ROWS = 256


class NotPackableError(Exception):
    """A layer needs something that packed attention does not support."""


class Rules(NamedTuple):
    """A layer's attention parameters; None: 1 / sqrt(head size), no window, no soft-capping.

    `window` is how many keys a query sees, including its own.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


class Lengths(NamedTuple):
    """Where sequences end, for a variable-length kernel: int32 cumulative lengths, and the longest ones."""

    queries: Tensor  # (sequences + 1,)
    keys: Tensor  # (sequences + 1,)
    longest_query: int
    longest_key: int


# Attention of one pack: (1, heads, T, D) queries, keys and values to (1, T, heads, D).
Attend = Callable[[Tensor, Tensor, Tensor, Rules], Tensor]
# Attention of many sequences: (T, heads, D) tensors; causal, aligned to the bottom right, with fewer key heads allowed.
Varlen = Callable[[Tensor, Tensor, Tensor, Lengths, Rules], Tensor]

_current = threading.local()


@contextlib.contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Make `attend` the packed attention of this thread."""
    _current.attend = attend
    try:
        yield
    finally:
        del _current.attend


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within the current pack; the signature is that of transformers' attention functions."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    unknown = [name for name in ("position_bias", "s_aux", "cache") if others.get(name) is not None]
    if attention_mask is not None or not causal or dropout or unknown or len(query) != 1:
        raise NotPackableError(f"{type(module).__name__} needs more than causal attention: {unknown or 'a mask'}")
    attend: Attend = _current.attend
    return attend(query, key, value, Rules(scaling, sliding_window, softcap)), None


transformers.AttentionInterface.register(NAME, packed_attention)


class BlockAttention:
    """Packed attention a block at a time, on any device and in any dtype."""

    def __init__(self, layout: Layout) -> None:
        self._blocks = layout.blocks
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        _, heads, total, _ = query.shape
        output = query.new_empty(1, total, heads, value.shape[-1])
        for block in self._blocks:
            queries = query[:, :, block.begin : block.end]
            keys, values = (_rows(tensor, block.keys) for tensor in (key, value))
            output[:, block.begin : block.end] = self._attend(queries, keys, values, rules).transpose(1, 2)
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Attend causally, with the last query at the position of the last key."""
        length, seen = query.shape[2], key.shape[2]
        if rules.softcap is not None:
            return _written_out(query, key, value, rules, rules.softcap)
        grouped = query.shape[1] != key.shape[1]
        if length == seen and (rules.window is None or rules.window >= seen):
            return scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=rules.scale, enable_gqa=grouped
            )
        mask = self._mask(length, seen, rules.window, query.device)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rules.scale, enable_gqa=grouped)

    def _mask(self, length: int, seen: int, window: int | None, device: torch.device) -> Tensor:
        if (length, seen, window) not in self._masks:
            self._masks[length, seen, window] = causal_mask(length, seen, window, device)
        return self._masks[length, seen, window]


def causal_mask(length: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """Return which of `seen` keys each of the last `length` positions sees: (length, seen) bool."""
    mask = torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
    return mask if window is None else mask.triu(seen - length - window + 1)


def _rows(tensor: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    parts = [tensor[:, :, begin:end] for begin, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _written_out(query: Tensor, key: Tensor, value: Tensor, rules: Rules, softcap: float) -> Tensor:
    """Attend with soft-capped scores, which torch's fused kernels do not support: softcap * tanh(scores / softcap)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if rules.scale is None else rules.scale
    length, seen = query.shape[2], key.shape[2]
    mask = causal_mask(length, seen, rules.window, query.device)
    parts = []
    for begin in range(0, length, _SCORE_ROWS):
        rows = slice(begin, begin + _SCORE_ROWS)
        scores = torch.tanh(query[:, :, rows] @ key.transpose(2, 3) * scale / softcap) * softcap
        scores = scores.masked_fill(~mask[rows], torch.finfo(scores.dtype).min)
        parts.append(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value)
    return torch.cat(parts, dim=2)


class VarlenAttention:
    """Packed attention in one call of a variable-length kernel."""

    def __init__(self, layout: Layout, varlen: Varlen) -> None:
        queries = [block.end - block.begin for block in layout.blocks]
        keys = [block.n_keys for block in layout.blocks]
        self._varlen = varlen
        self._lengths = Lengths(_cumulative(queries), _cumulative(keys), max(queries), max(keys))
        self._seen = None if queries == keys else _gathered(layout)
        self._there: dict[torch.device, tuple[Lengths, Tensor | None]] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        lengths, seen = self._on(query.device)
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if seen is not None:
            key, value = key[seen], value[seen]
        if rules.window is not None and rules.window >= lengths.longest_key:
            rules = rules._replace(window=None)
        return self._varlen(query, key, value, lengths, rules)[None]

    def _on(self, device: torch.device) -> tuple[Lengths, Tensor | None]:
        """Return the lengths and the gather index on a device; the layers of a sharded model are on several."""
        if device not in self._there:
            lengths = self._lengths
            there = lengths._replace(queries=lengths.queries.to(device), keys=lengths.keys.to(device))
            self._there[device] = there, None if self._seen is None else self._seen.to(device)
        return self._there[device]


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _gathered(layout: Layout) -> Tensor:
    """Return the rows that the blocks see, block by block."""
    return torch.cat([torch.arange(begin, end) for block in layout.blocks for begin, end in block.keys])


def find_varlen(dtype: torch.dtype, device: torch.device) -> tuple[str, Varlen] | None:
    """Return the variable-length kernel to use on a device and its name; None where there is none."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):  # the flash kernels need Ampere or newer
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        return "flash-attn", _flash_varlen()
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return "varlen", _torch_varlen()
    return None


def _torch_varlen() -> Varlen:
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn
    return adapt_torch_varlen(kernel, frozenset(inspect.signature(kernel).parameters))


def adapt_torch_varlen(kernel: Any, parameters: frozenset[str]) -> Varlen:
    """Wrap torch's varlen_attn in our signature; releases differ in the argument for causal attention."""

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, rules: Rules) -> Tensor:
        options: dict[str, Any] = {"scale": rules.scale}
        if rules.softcap is not None:
            raise NotPackableError("torch's variable-length attention has no soft-capping")
        if "window_size" in parameters:
            options["window_size"] = _window_size(rules)
        elif rules.window is None:
            options["is_causal"] = True
        else:
            raise NotPackableError("this torch's variable-length attention has no sliding window")
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and "enable_gqa" in parameters:
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        found: Tensor = kernel(query.contiguous(), key.contiguous(), value.contiguous(), *lengths, **options)
        return found

    return attend


def _window_size(rules: Rules) -> tuple[int, int]:
    """Return how many keys before and after its own a query sees, as the kernels take it; -1 is all."""
    return (-1 if rules.window is None else rules.window - 1, 0)


def _flash_varlen() -> Varlen:
    flash: Any = importlib.import_module("flash_attn")

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, rules: Rules) -> Tensor:
        options = {"causal": True, "window_size": _window_size(rules), "softcap": rules.softcap or 0.0}
        found: Tensor = flash.flash_attn_varlen_func(query, key, value, *lengths, softmax_scale=rules.scale, **options)
        return found

    return attend

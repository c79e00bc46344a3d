"""How a pack goes through a network: packed, padded or one text at a time, all with the same numbers.

Invariant: a kernel is used only after `choose` has checked, on the loaded network, that it reproduces the hidden states
of texts computed one at a time. The kernels in order of speed:

    packed   sequences end to end, shared prefixes once, attention a sequence at a time (attention.py)
    padded   right padding without a mask: under causal attention no token sees the tokens to its right
    single   one text at a time through the model's own forward: where neither of the others works

This module does not deal with samples or statistics: it turns each `Work` into its output.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recycledb.errors import StudentError
from recycledb.pretrained.folder import CAUSAL_ONLY
from recycledb.scoring.attention import (
    NAME,
    Attend,
    BlockAttention,
    NotPackableError,
    Varlen,
    VarlenAttention,
    attending,
    find_varlen,
)
from recycledb.scoring.network import Network
from recycledb.scoring.outputs import Output, read_outputs, whole_output
from recycledb.scoring.packs import SHARED_MINIMUM, Layout, Work, by_length, lay_out, pad
from recycledb.scoring.spans import Ids

log = logging.getLogger(__name__)

# How far the hidden states of two kernels may differ, relative to their norm, and still count as equal. A leak between
# sequences changes them by tenths, rounding in bfloat16 and float16 by hundredths.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}

_CAUSAL_TRIAL = 24  # tokens: short, since whole logits over a large vocabulary are in memory


class Kernel(Protocol):
    """One way to compute a pack; `name` is stored with each number."""

    name: str

    def outputs(self, works: Sequence[Work]) -> list[Output]:
        """Return each work's output; a sum of losses in float64 over float32 terms."""
        ...


class Single:
    """One text at a time through the model's own forward."""

    name = "single"

    def __init__(self, network: Network) -> None:
        self.network = network

    def outputs(self, works: Sequence[Work]) -> list[Output]:
        return [whole_output(self.network, work) for work in works]


class Padded:
    """Sequences side by side, padded on the right, without a mask."""

    name = "padded"

    def __init__(self, network: Network) -> None:
        self.network = network

    def outputs(self, works: Sequence[Work]) -> list[Output]:
        ids, paths = pad(works)
        hidden = self.network.hidden(torch.from_numpy(ids).to(self.network.device)).flatten(0, 1)
        return read_outputs(self.network, hidden, works, paths)


class Packed:
    """Sequences end to end, without padding, shared prefixes once."""

    def __init__(self, network: Network, varlen: tuple[str, Varlen] | None) -> None:
        self.network = network
        self._varlen = varlen
        self.name = "packed" if varlen is None else f"packed-{varlen[0]}"

    def outputs(self, works: Sequence[Work]) -> list[Output]:
        layout = lay_out(works)
        found = self._outputs(works, layout)
        if len(layout.ids) == sum(len(work.ids) for work in works) or all(np.isfinite(each).all() for each in found):
            return found
        # A NaN spreads to earlier tokens too, masked or not (0 · NaN is NaN), and so to all sequences that share the prefix.
        by_key = dict(zip((work.key for work in works), found, strict=True))
        odd = [work for work in works if not np.isfinite(by_key[work.key]).all()]
        for batch in by_length(odd, len(layout.ids)):
            apart = self._outputs(batch.works, lay_out(batch.works, share=False))
            by_key.update(zip((work.key for work in batch.works), apart, strict=True))
        return [by_key[work.key] for work in works]

    def _outputs(self, works: Sequence[Work], layout: Layout) -> list[Output]:
        return read_outputs(self.network, self.hidden(layout), works, layout.paths)

    def hidden(self, layout: Layout) -> Tensor:
        """Return the last hidden states of a pack: (T, H)."""
        device = self.network.device
        ids, positions = (torch.from_numpy(array).to(device) for array in (layout.ids, layout.positions))
        with attending(self._attend(layout)):
            return self.network.hidden(ids[None], positions[None])[0]

    def _attend(self, layout: Layout) -> Attend:
        return BlockAttention(layout) if self._varlen is None else VarlenAttention(layout, self._varlen[1])


def choose(network: Network, max_length: int) -> Kernel:
    """Return the fastest kernel that reproduces this network's own hidden states on generated texts.

    Raises StudentError where the model is not causal: then no kernel, the slowest neither, gives the losses of a language model.
    """
    if sees_later_tokens(network):
        raise StudentError(
            f"model {network.model.name_or_path!r} sees later tokens (other words at the end of a text change its predictions before), "
            f"so its losses mean nothing: {CAUSAL_ONLY}"
        )
    if network.head is None or _depends_on_length(network.model.config, max_length):
        return Single(network)
    works = _trial(network, max_length)
    with torch.inference_mode():
        expected = [network.hidden(_tensor(work.ids, network))[0] for work in works]
        varlen = find_varlen(network.dtype, network.device)
        # On a GPU a call for each block would be slower than padding.
        packs = _can_pack(network) and (varlen is not None or network.device.type == "cpu")
        if packs and (packed := try_packed(network, varlen, works, expected)) is not None:
            return packed
        if _pads(network, works, expected):
            return Padded(network)
    log.warning("%s is affected by padding on the right: texts are scored one by one", type(network.model).__name__)
    return Single(network)


@torch.inference_mode()
def sees_later_tokens(network: Network) -> bool:
    """Return whether another second half of a generated text changes the model's logits of the first half."""
    generator = np.random.default_rng(0)
    first, *ends = generator.integers(0, network.vocabulary, (3, _CAUSAL_TRIAL // 2))
    logits = [
        network.model(input_ids=_tensor(np.append(first, end), network), use_cache=False).logits[0, : len(first)]
        for end in ends
    ]
    finite = torch.stack(logits).isfinite().all(-1).all(0)  # losses that are not finite have a status of their own
    return not close(logits[0][finite], logits[1][finite], network.dtype)


def _depends_on_length(config: Any, max_length: int) -> bool:
    """Return whether position encodings depend on the longest text in the pack (some rotary embeddings for long contexts)."""
    rope = getattr(config, "rope_parameters", None) or {}
    layers = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    original = getattr(config, "original_max_position_embeddings", None) or config_positions(config)
    kinds = {layer.get("rope_type") for layer in layers}
    return bool(kinds & {"dynamic", "longrope"}) and (original is None or max_length > original)


def config_positions(config: Any) -> int | None:
    """Return the number of positions in the model's config."""
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def _can_pack(network: Network) -> bool:
    """Return whether tokens are mixed only by attention that we can replace: no recurrence, no convolution."""
    layers = set(getattr(network.model.config, "layer_types", None) or ["full_attention"])
    replaceable = bool(getattr(network.model, "_supports_attention_backend", False))
    return replaceable and layers <= {"full_attention", "sliding_attention"}


def _trial(network: Network, max_length: int) -> list[Work]:
    """Make sequences of several lengths with shared prefixes, longer than the sliding window where it matters."""
    window = getattr(network.model.config, "sliding_window", None) or 0
    longest = min(window + 24, max_length) if window < max_length else 24
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, network.vocabulary, longest + 64).astype(np.int32)
    beginning = tokens[: SHARED_MINIMUM + 4]
    texts = [tokens[:longest], tokens[40:49], np.append(beginning, tokens[-9:]), np.append(beginning, tokens[-31:])]
    return [Work(str(i), text, 1) for i, text in enumerate(sorted(texts, key=lambda ids: ids.tolist()))]


def _tensor(ids: Ids, network: Network) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(network.device)[None]


def try_packed(
    network: Network, varlen: tuple[str, Varlen] | None, works: Sequence[Work], expected: Sequence[Tensor]
) -> Packed | None:
    """Return a packed kernel if it reproduces `expected`; else leave the model's attention as it was."""
    before = network.model.config._attn_implementation
    name = type(network.model).__name__
    kernel = Packed(network, varlen)
    layout = lay_out(works)
    try:
        network.model.set_attn_implementation(NAME)
        states = kernel.hidden(layout)
    except (NotPackableError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        log.info("%s attention does not fit %s: %s", kernel.name, name, error)
    else:
        pairs = zip(layout.paths, expected, strict=True)
        if all(close(states[torch.from_numpy(path).to(states.device)], truth, network.dtype) for path, truth in pairs):
            return kernel
        log.warning("%s attention does not reproduce the numbers of %s, and is not used", kernel.name, name)
    network.model.set_attn_implementation(before)
    return None


def _pads(network: Network, works: Sequence[Work], expected: Sequence[Tensor]) -> bool:
    """Return whether padding on the right leaves hidden states unchanged."""
    ids, _ = pad(works)
    states = network.hidden(torch.from_numpy(ids).to(network.device))
    pairs = zip(states, expected, strict=True)
    return all(close(padded[: len(truth)], truth, network.dtype) for padded, truth in pairs)


def close(states: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether (N, H) hidden states are equal up to the rounding of `dtype`."""
    distance = (states - expected.to(states.device)).float().norm(dim=-1)
    length = expected.float().norm(dim=-1).to(states.device)
    return bool((distance <= _TOLERANCE[dtype] * length).all())

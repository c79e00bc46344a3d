"""A causal language model split in two: a body that turns tokens into hidden states, a head that turns these into losses.

Invariant: the head is the model's own forward with its body bypassed, so that soft-capping, scaling and biases of any
architecture are kept; `split` checks on the loaded model that body and head together give the model's own logits.
Only rows that predict a target token go through the head, in parts (heads.py), so that the logits of a whole text over a
large vocabulary are never in memory. No KV cache is used: with one, packed positions silently leak across segments.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPast

from recycledb.errors import StudentError
from recycledb.pretrained import loader
from recycledb.scoring.heads import block_losses, chunk_rows, token_losses

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Hidden(BaseModelOutputWithPast):
    """Hidden states, and None for every other output that a head reads (cross-attentions, router logits)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Bypass(nn.Module):
    """Replaces the body, and returns the hidden states that it gets as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPast:
        return _Hidden(last_hidden_state=inputs_embeds)


@dataclass(frozen=True, slots=True)
class Network:
    """A loaded model on one device (or sharded over several), ready to be scored with.

    `head` is None where the model cannot be split; then only its own forward can be used. `linear` is the head where it is
    only a linear map, in float32 on the CPU.
    """

    model: Any
    body: Any
    head: Any
    device: torch.device
    dtype: torch.dtype
    vocabulary: int
    linear: nn.Linear | None = None

    def hidden(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the last hidden states: (B, T) token ids to (B, T, H)."""
        output = self.body(input_ids=ids, position_ids=positions, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def losses(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood of each target: (N, H) hidden rows and (N,) ids to (N,) float32."""
        if self.linear is not None and len(rows):
            return block_losses(rows, self.linear.weight, self.linear.bias, targets)
        step = chunk_rows(self.vocabulary, rows.device)
        parts = [
            token_losses(
                self.head(inputs_embeds=rows[i : i + step][None], use_cache=False).logits[0], targets[i : i + step]
            )
            for i in range(0, len(rows), step)
        ]
        return torch.cat(parts) if parts else rows.new_empty(0, dtype=torch.float32)

    def log_probabilities(self, rows: Tensor, choices: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return log-probabilities of given tokens after each row: (N, H) hidden rows and N lists of ids to N float32 tensors."""
        step, found = chunk_rows(self.vocabulary, rows.device), []
        for i in range(0, len(rows), step):
            part = rows[i : i + step]
            if self.linear is not None:
                logits = linear(part, self.linear.weight, self.linear.bias)
            else:
                logits = self.head(inputs_embeds=part[None], use_cache=False).logits[0]
            logs = torch.log_softmax(logits.float(), -1)
            found += [row[list(ids)] for row, ids in zip(logs, choices[i : i + step], strict=True)]
        return found


def resolve_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of that name; raise StudentError for one that is not supported."""
    if name not in DTYPES:
        raise StudentError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(name: str | None) -> torch.device:
    """Return the device of that name, or the best one of this machine; raise StudentError where it does not exist."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StudentError(f"unknown device {name!r}: use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudentError(f"device {name!r} was asked for, but this torch ({torch.__version__}) sees no CUDA device")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise StudentError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def load_network(
    model: str, revision: str | None, dtype: torch.dtype, device: torch.device, *, sharded: bool = False
) -> Network:
    """Load a causal language model onto `device`, or spread over all visible GPUs where `sharded`."""
    if sharded and find_spec("accelerate") is None:
        raise StudentError(
            f"model {model!r} is to be spread over several GPUs, which needs accelerate: pip install 'recycledb[sharded]'"
        )
    loaded = loader.load_model(model, StudentError, revision=revision, dtype=dtype, device=None if sharded else device)
    with loader.explained(model, StudentError):  # a config may be invalid for its architecture
        _whole_logits(loaded, loaded.get_input_embeddings())
    return split(loaded)


def split(model: Any) -> Network:
    """Split a causal language model into body and head, and check that together they give the model's logits."""
    model.eval()
    model.requires_grad_(False)
    _fuse(model)
    model.config.pad_token_id = None  # else transformers warns of padding on the right, which no token sees
    embeddings = model.get_input_embeddings()
    network = Network(
        model=model,
        body=model.base_model,
        head=_head(model),
        device=embeddings.weight.device,
        dtype=embeddings.weight.dtype,
        vocabulary=embeddings.weight.shape[0],
    )
    if network.head is not None and not _makes_the_whole(network):
        # A model whose logits are not finite is told of by the status of its statistics.
        finite = bool(_whole_logits(model, embeddings)[1].isfinite().all())
        log.log(
            logging.WARNING if finite else logging.INFO,
            "%s cannot be split into body and head; texts are scored one by one",
            type(model).__name__,
        )
        return Network(model, None, None, network.device, network.dtype, network.vocabulary)
    return replace(network, linear=_linear_head(network)) if network.head is not None else network


def _fuse(model: Any) -> None:
    """Replace GPT-2's activation by torch's version of the same function: one pass over memory instead of eight."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _head(model: Any) -> Any:
    """Return a shallow copy of the model, with the same weights, whose body is bypassed; None where there is no body."""
    prefix = model.base_model_prefix
    if model.base_model is model or prefix not in model._modules:
        return None
    head = copy.copy(model)
    head._modules = {**model._modules, prefix: _Bypass()}
    return head


@torch.inference_mode()
def _linear_head(network: Network) -> nn.Linear | None:
    """Return the output embeddings where they alone give the head's logits; None where the head does more, or where
    blocks are no faster: on a GPU, and in bfloat16.
    """
    output = network.model.get_output_embeddings()
    if network.device.type != "cpu" or network.dtype is not torch.float32 or not isinstance(output, nn.Linear):
        return None
    if len(output.weight) != network.vocabulary:
        return None
    # Large enough for soft-capping to have an effect.
    rows = torch.randn(5, output.in_features, generator=torch.Generator().manual_seed(0)).to(network.dtype) * 64
    logits = network.head(inputs_embeds=rows[None], use_cache=False).logits[0]
    found = linear(rows, output.weight, output.bias)
    return output if logits.shape == found.shape and torch.allclose(logits, found, rtol=1e-4, atol=1e-4) else None


@torch.inference_mode()
def _whole_logits(model: Any, embeddings: nn.Embedding) -> tuple[Tensor, Tensor]:
    """Return a few tokens, and the logits of the model's own forward for them."""
    ids = torch.arange(7, device=embeddings.weight.device)[None] % len(embeddings.weight)
    return ids, model(input_ids=ids, use_cache=False).logits


@torch.inference_mode()
def _makes_the_whole(network: Network) -> bool:
    ids, whole = _whole_logits(network.model, network.model.get_input_embeddings())
    try:
        parts = network.head(inputs_embeds=network.hidden(ids), use_cache=False).logits
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        log.debug("the head of %s cannot be called alone: %s", type(network.model).__name__, error)
        return False
    return whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)


def positions(model: Any) -> int | None:
    """Return the number of learned position embeddings; None where position encodings are computed."""
    embeddings = model.get_input_embeddings()
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not embeddings]
    # OPT and similar models have two more rows than positions.
    learned = any(table.num_embeddings in (limit, limit + 2) for table in tables)
    return int(limit) if learned else None

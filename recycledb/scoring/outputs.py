"""From a pack's hidden states to what each work wants: a sum of losses, log-probabilities of chosen tokens, or a vector.

Invariant: an output depends on the hidden states of its own work only. Every output is a one-dimensional float64 array: of length 1 for
a sum of losses, one number for each choice, or the coordinates of a vector (unit length, then its norm as the last number).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recycledb.scoring.heads import token_losses
from recycledb.scoring.network import Network
from recycledb.scoring.packs import Index, Work

Output = npt.NDArray[np.float64]


def read_outputs(network: Network, hidden: Tensor, works: Sequence[Work], paths: Sequence[Index]) -> list[Output]:
    """Return the output of each work: (T, H) hidden states of the pack, and for each work the row of every position."""
    found: list[Output | None] = [None] * len(works)
    numbered = list(zip(range(len(works)), works, paths, strict=True))
    losses = [each for each in numbered if each[1].n_tokens]
    if losses:
        rows = _picked(hidden, [path[work.start - 1 : -1] for _, work, path in losses])
        targets = torch.from_numpy(np.concatenate([work.ids[work.start :] for _, work, _ in losses]).astype(np.int64))
        terms = network.losses(rows, targets.to(rows.device)).double().cpu().numpy()
        ends = np.cumsum([work.n_tokens for _, work, _ in losses])
        for (place, work, _), end in zip(losses, ends, strict=True):
            found[place] = np.array([terms[end - work.n_tokens : end].sum()])
    chosen = [each for each in numbered if each[1].choices]
    if chosen:
        rows = _picked(hidden, [path[-1:] for _, _, path in chosen])
        outputs = network.log_probabilities(rows, [work.choices for _, work, _ in chosen])
        for (place, _, _), output in zip(chosen, outputs, strict=True):
            found[place] = output.double().cpu().numpy()
    for place, work, path in numbered:
        if work.pooling:
            found[place] = unit(pool(_picked(hidden, [path]), work.pooling))
    assert all(output is not None for output in found)
    return [output for output in found if output is not None]


def whole_output(network: Network, work: Work) -> Output:
    """Return the output of a work through the model's own forward, for a model that cannot be split into body and head."""
    ids = torch.from_numpy(work.ids.astype(np.int64)).to(network.device)
    found = network.model(input_ids=ids[None], use_cache=False, output_hidden_states=bool(work.pooling))
    if work.pooling:
        return unit(pool(found.hidden_states[-1][0], work.pooling))
    logits = found.logits[0]
    if work.choices:
        chosen: Output = torch.log_softmax(logits[-1].float(), -1)[list(work.choices)].double().cpu().numpy()
        return chosen
    return np.array([float(token_losses(logits[work.start - 1 : -1], ids[work.start :]).double().sum())])


def _picked(hidden: Tensor, rows: Sequence[Index]) -> Tensor:
    return hidden[torch.from_numpy(np.concatenate(rows)).to(hidden.device)]


def pool(states: Tensor, pooling: str) -> Tensor:
    """Combine (N, H) hidden states of a text's tokens into one vector (H,), in float32.

    `mean`; `weighted_mean`: token t of N has the weight t / (1 + … + N) (Muennighoff, arXiv:2202.08904; RDS+, arXiv:2503.01807);
    `last`: the last token's state.
    """
    states = states.float()
    if pooling == "last":
        return states[-1]
    if pooling == "mean":
        return states.mean(0)
    weights = torch.arange(1, len(states) + 1, dtype=torch.float32, device=states.device)
    return (states * (weights / weights.sum())[:, None]).sum(0)


def unit(vector: Tensor) -> Output:
    """Return a vector of unit length with the original length behind it; NaN in all places if it has none."""
    values = vector.double().cpu().numpy()
    norm = float(np.linalg.norm(values))
    return np.append(values / norm if norm > 0 else np.full_like(values, np.nan), norm)

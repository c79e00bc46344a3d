"""The naive scorer: one text at a time, one forward pass a statistic, all logits kept. The oracle of the engine's tests.

Written from the published definition alone and sharing no code with `recycledb.scoring` but the templates' wording
(checked in test_spans.py): whoever doubts the engine reads this instead.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recycledb.schema import Texts

TEMPLATES = json.loads((Path(__file__).parents[1] / "recycledb" / "methods" / "templates.json").read_text("utf-8"))


class NaiveLoss(NamedTuple):
    """A statistic's sum of losses and number of tokens; None where no token could be averaged."""

    loss_sum: float | None
    n_tokens: int


def contexts(template: str, texts: Texts) -> tuple[str, str]:
    """Return p and q."""
    forms = TEMPLATES[template]
    if texts.input != "":
        p = (
            forms["input"]
            .replace("{input}", "\0")
            .replace("{instruction}", texts.instruction)
            .replace("\0", texts.input)
        )
    else:
        p = forms["no_input"].replace("{instruction}", texts.instruction)
    reverse = TEMPLATES["reverse"].replace("{output}", texts.output)
    return p, forms["no_input"].replace("{instruction}", reverse)


@torch.no_grad()
def loss_from(model: Any, ids: list[int], start: int) -> NaiveLoss:
    """Return the loss of ids[start:] given what stands before, from all logits in float32."""
    if len(ids) <= max(start, 1):
        return NaiveLoss(None, 0)
    tokens = torch.tensor([ids])
    logits = model(tokens).logits[0].float()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    first = max(start, 1)
    losses = -log_probabilities[:-1].gather(1, tokens[0, 1:, None]).squeeze(1)[first - 1 :]
    return NaiveLoss(losses.double().sum().item(), len(losses))


def score(model: Any, tokenizer: Any, template: str, max_length: int, texts: Texts) -> dict[str, NaiveLoss]:
    """Return the four statistics of a text."""
    p, q = contexts(template, texts)
    t, y = texts.instruction + texts.input, texts.output
    n_p = len(tokenizer.encode(p)[:max_length])
    n_q = len(tokenizer.encode(q)[:max_length])
    none = NaiveLoss(None, 0)
    return {
        "Q_direct": loss_from(model, tokenizer.encode(t)[: max_length - n_q + 1], 1) if t else none,
        "A_direct": loss_from(model, tokenizer.encode(y)[: max_length - n_p + 1], 1) if y else none,
        "Q_condition": loss_from(model, tokenizer.encode(q + t)[:max_length], len(tokenizer.encode(q))) if t else none,
        "A_condition": loss_from(model, tokenizer.encode(p + y)[:max_length], len(tokenizer.encode(p))) if y else none,
    }

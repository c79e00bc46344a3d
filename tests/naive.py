"""The naive scorer: one text at a time, one forward pass a statistic, all logits kept. The oracle of the engine's tests.

Written from the published definition alone and sharing no code with `recycledb.scoring` but the templates' wording
(checked in test_spans.py): whoever doubts the engine reads this instead.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from late import no_grad, torch

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


@no_grad
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


@no_grad
def digit_logs(model: Any, tokenizer: Any, prompt: str) -> list[float]:
    """Return the log-probabilities of the ten digits after a prompt, from one forward pass over the prompt alone."""
    logits = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1].float()
    logs = torch.log_softmax(logits, dim=-1)
    return [float(logs[tokenizer.encode(f"\n{digit}")[-1]]) for digit in range(10)]


def selectit(model: Any, tokenizer: Any, texts: Texts, prompts: list[str], alpha: float = 0.2) -> float:
    """Return SelectIT's sentence-level score as the published code computes it."""
    question = f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction
    tokens = []
    for prompt in prompts:
        text = f"{prompt}\n\nInstruction:{question}\nResponse:{texts.output}\nThe answer is: \n"
        p = torch.tensor(digit_logs(model, tokenizer, text), dtype=torch.float64).exp()[1:6]
        p = torch.softmax(p / p.sum(), dim=0)
        base = int(torch.argmax(p))
        tokens.append((base + 1) * float((p[base] - p).sum()) / 4)
    scores = torch.tensor(tokens, dtype=torch.float64)
    return float(scores.mean() / (1 + alpha * scores.std(unbiased=False)))


def expected(model: Any, tokenizer: Any, prompt: str, scale: Sequence[int]) -> float:
    """Return the mean of the digits of a scale (first, last), weighted by their probabilities as the next token."""
    digits = range(scale[0], scale[1] + 1)
    p = torch.tensor(digit_logs(model, tokenizer, prompt), dtype=torch.float64).exp()[digits.start : digits.stop]
    return float((p * torch.tensor(digits)).sum() / p.sum())


@no_grad
def vector(model: Any, tokenizer: Any, text: str, pooling: str, max_length: int) -> Any:
    """Return the unit vector of a text from the hidden states of the last layer."""
    ids = tokenizer.encode(text)[:max_length]
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].float()
    if pooling == "last":
        pooled = states[-1]
    elif pooling == "mean":
        pooled = states.sum(0) / len(ids)
    else:
        weights = torch.tensor([t / (len(ids) * (len(ids) + 1) / 2) for t in range(1, len(ids) + 1)])
        pooled = (weights[:, None] * states).sum(0)
    return pooled / pooled.norm()

"""IFD and reversed IFD: the four statistics of a variant, and the templates used to compute them.

IFD (Li et al., arXiv:2308.12032) asks how much harder an answer is to predict without its instruction than with it; the reversed IFD of
Selective Reflection-Tuning (arXiv:2402.10110) asks the same about the instruction, given the answer. With p the template around the
instruction, y the answer, q the template around the request to guess the instruction, and t the instruction:

    Q_direct      tokens of t              Q_condition   tokens of t after q
    A_direct      tokens of y              A_condition   tokens of y after p

    ifd_ppl = exp(A_condition) / exp(A_direct)     rifd_ppl = exp(Q_condition) / exp(Q_direct)

The ratios are computed in views over the statistics (`scores`, `measures`) and not stored. `recycledb.scoring.spans` defines which tokens
are averaged, and how sequences are truncated.

Invariant: a template's text and a statistic's meaning never change, since stored numbers depend on them. A new wording is a new template.
The templates are those of the published scorers (Superfiltering's is `none`, arXiv:2402.00530).
"""

import json
import re
from collections.abc import Callable
from enum import StrEnum
from importlib import resources
from typing import Final

from recycledb.errors import ConfigError
from recycledb.methods.definition import Method, Parts, Statistic
from recycledb.schema import LEAST_MEAN_LOSS, MOST_MEAN_LOSS, Texts, context_messages

_LOWER: Final = re.compile(r"\br?ifd\b")
_CONSTANTS: Final = json.loads(resources.files(__package__).joinpath("templates.json").read_text("utf-8"))
_REVERSE: Final[str] = _CONSTANTS["reverse"]

TEMPLATES: Final[tuple[str, ...]] = tuple(name for name in _CONSTANTS if name != "reverse")

# A conversation in a template: what stands before the first turn unless a system prompt replaces it, the forms of turns, and what joins
# them. Joined in this way, a question and its answer are what `forward_prompt` and the answer are.
_TURNS: Final = json.loads(resources.files(__package__).joinpath("turns.json").read_text("utf-8"))


class Stat(StrEnum):
    """A statistic: whose tokens are averaged (Q: instruction, A: answer), alone (direct) or after the other half (condition)."""

    Q_DIRECT = "Q_direct"
    A_DIRECT = "A_direct"
    Q_CONDITION = "Q_condition"
    A_CONDITION = "A_condition"


# The names of what can be compared, as in the view `scores`.
METRICS = (
    *(f"{ratio}_{unit}" for unit in ("ppl", "loss") for ratio in ("ifd", "rifd")),
    *(f"{unit}_{stat}" for unit in ("ppl", "loss") for stat in Stat),
)


def _form(template: str, form: str) -> str:
    if template not in TEMPLATES:
        raise ConfigError(f"unknown template {template!r}: choose one of {', '.join(TEMPLATES)}")
    text: str = _CONSTANTS[template][form]
    return text


def forward_prompt(template: str, texts: Texts) -> str:
    """Return p, the context of A_condition: the template's form with input if the sample has an input, after the sample's context.

    A system prompt takes the place of the template's own first sentences; earlier turns have the form in which they would be scored.
    """
    which = "input" if texts.input else "no_input"
    form = _form(template, which)
    if texts.context is None:
        return form.format(instruction=texts.instruction, input=texts.input)
    turns = _TURNS[template]
    preamble, joint = turns["preamble"][which], turns["joint"]
    messages = context_messages(texts.context)
    if messages[0][0] != "system" and preamble:
        messages.insert(0, ("system", preamble))
    before = joint.join(turns[role].format(content=content) for role, content in messages)
    asked = form.removeprefix(preamble + joint if preamble else "")
    return f"{before}{joint}{asked.format(instruction=texts.instruction, input=texts.input)}"


def reverse_prompt(template: str, texts: Texts) -> str:
    """Return q, the context of Q_condition: the template's form without input around the question for the instruction."""
    return _form(template, "no_input").format(instruction=_REVERSE.format(output=texts.output))


def question(texts: Texts) -> str:
    """Return t, the target of the Q statistics: instruction and input without a separator, as published."""
    return texts.instruction + texts.input


def _of_instruction(joined: bool) -> Callable[[str, Texts], Parts]:
    return lambda template, texts: Parts(reverse_prompt(template, texts), question(texts), joined)


def _of_answer(joined: bool) -> Callable[[str, Texts], Parts]:
    return lambda template, texts: Parts(forward_prompt(template, texts), texts.output, joined)


def is_number(alias: str) -> str:
    """Return the condition that the mean of a row of `loss` is a number; stores may hold NaN, which DuckDB sorts above all numbers."""
    return f"{alias}.loss_sum / {alias}.n_tokens BETWEEN {LEAST_MEAN_LOSS} AND {MOST_MEAN_LOSS}"


Q_DIRECT = Statistic(Stat.Q_DIRECT.value, _of_instruction(joined=False))
A_DIRECT = Statistic(Stat.A_DIRECT.value, _of_answer(joined=False))
Q_CONDITION = Statistic(Stat.Q_CONDITION.value, _of_instruction(joined=True))
A_CONDITION = Statistic(Stat.A_CONDITION.value, _of_answer(joined=True))

IFD = Method(name="ifd", statistics=(Q_DIRECT, A_DIRECT, Q_CONDITION, A_CONDITION))


def spelled(text: str) -> str:
    """Return a text with IFD and rIFD as readers write them; names of columns, like ifd_ppl, stay as they are typed."""
    return _LOWER.sub(lambda match: "rIFD" if match[0] == "rifd" else "IFD", text)

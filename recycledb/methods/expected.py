"""The expected rating of a judge model: the mean of the digits, weighted by their next-token probabilities after a prompt.

    value = Σ_d d · P_d / Σ_d P_d          over the digits d of the scale

This is the score of Self-J (Ye et al., arXiv:2409.00935; digits 0 to 9), of a judge that was trained to answer with a digit, and of
DEITA's two scorers (Liu et al., arXiv:2312.15685; digits 1 to 6). P is the softmax over the whole vocabulary at the last token of the
prompt. The prompt is the judge's own, as it was trained with it; those of Self-J and DEITA are constants of these metrics
(scorers.json) and can be named instead of a file: `prompts = "selfj"`, `"deita_quality"`, `"deita_complexity"`.

With `reference = "origin"` (or another kind) the prompt also shows, as {reference}, the answer of the sample's variant of that kind.

Unlike the published code of Self-J, all digits of the scale count and not only those among the twenty likeliest tokens, the prompt ends
as in the judge's training, and what cannot be computed has no value instead of 0 (Self-J) or 3 (DEITA).
"""

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from recycledb.methods.definition import DIGITS, Facts, Method, Readout, StudentMeasure, TextFile
from recycledb.methods.digits import scale_of, shares

SCORERS: Final[Mapping[str, str]] = json.loads(resources.files(__package__).joinpath("scorers.json").read_text("utf-8"))


def template(options: Mapping[str, Any]) -> str:
    """Return the whole prompt with its placeholders: the option `prompts` without its last line break, and the suffix."""
    text = options["prompts"] or SCORERS["selfj_reference" if reference(options) else "selfj"]
    return str(text).removesuffix("\n") + str(options["suffix"])


def reference(options: Mapping[str, Any]) -> str:
    """Return the kind of variant whose answer is shown as the reference; "" for none."""
    return "" if options["reference"] == "none" else str(options["reference"])


def readouts(options: Mapping[str, Any]) -> tuple[Readout, ...]:
    """Return the readout of the ten digits after the prompt."""
    return (Readout("expected", template(options), DIGITS),)


def value(facts: Facts, options: Mapping[str, Any]) -> float | None:
    """Return the expected digit; None if the prompt could not be computed."""
    first, last = scale_of(options)
    logs = facts.readouts["expected"]
    if logs is None:
        return None
    return math.fsum(digit * share for digit, share in enumerate(shares(logs[first : last + 1]), first))


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    scale_of(options)
    text = template(options)
    if "{question}" not in text and "{instruction}" not in text and "{answer}" not in text:
        raise ValueError("prompts: the prompt has neither {question} nor {answer}; it is the whole template")
    if ("{reference}" in text) != bool(reference(options)):
        raise ValueError(
            f'reference = "{options["reference"]}", but the prompt has {"" if "{reference}" in text else "no "}'
            '{reference}: a prompt with it needs reference = "origin", or another kind'
        )


EXPECTED = Method(
    name="expected",
    measures=(
        StudentMeasure(
            name="expected",
            help="the expected digit of a judge model: Self-J, DEITA's scorers, or your own judge",
            value=value,
            version=1,
            readouts=readouts,
            options={"prompts": TextFile("", SCORERS), "suffix": "", "scale": [0, 9], "reference": "none"},
            check=check,
            reference=reference,
        ),
    ),
)

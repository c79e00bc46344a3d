"""SelectIT (Liu et al., arXiv:2402.16705): a student rates a sample from 1 to 5 by its own next-token probabilities.

For each of K rating prompts the student reads

    <prompt>
    <empty line>
    Instruction:<question>
    Response:<answer>
    The answer is: <line break>

and P_d is the probability of digit d as the next token. With P' = softmax(P / ΣP) over the digits of the scale (n of them), base the
digit with the largest P' (the lowest of equal ones) and P'_base its share:

    token     = base · Σ_d (P'_base - P'_d) / (n - 1)
    sentence  = mean_k(token_k) / (1 + alpha · std_k(token_k))          population standard deviation

The value of the measure is the sentence level. P' as a softmax of shares is what the published code computes; `normalise = "plain"` takes
P' = P / ΣP. A model level, the mean over students weighted by their numbers of parameters, is in the recipe `selectit`.

The rating prompts are not part of the method: any wording and number will do, and a published set is reproduced with its own prompts in
a file. Unlike the published code, K is independent of the scale, a text that is too long has no value instead of being cut, and digits
are the tokenizer's own.
"""

import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from recycledb.methods.definition import DIGITS, Facts, Method, Readout, StudentMeasure, TextFile
from recycledb.methods.digits import PLACEHOLDERS, scale_of, shares

_WORDING = "{prompt}\n\nInstruction:{question}\nResponse:{answer}\nThe answer is: \n"
_PROMPTS = resources.files(__package__).joinpath("prompts", "selectit.txt").read_text("utf-8")


def _prompts(options: Mapping[str, Any]) -> list[str]:
    return [line for line in options["prompts"].splitlines() if line.strip()]


def readouts(options: Mapping[str, Any]) -> tuple[Readout, ...]:
    """Return a readout of the ten digits for each rating prompt."""
    return tuple(
        Readout(f"selectit/{number}", _WORDING.replace("{prompt}", prompt), DIGITS)
        for number, prompt in enumerate(_prompts(options), 1)
    )


def token_score(logs: list[float], first: int, plain: bool) -> float:
    """Return the token-level score of the log-probabilities of consecutive digits, the first of which is `first`."""
    probabilities = shares(logs)
    if not plain:
        probabilities = shares(probabilities)
    top = max(probabilities)
    margin = math.fsum(top - each for each in probabilities) / (len(probabilities) - 1)
    return (first + probabilities.index(top)) * margin


def value(facts: Facts, options: Mapping[str, Any]) -> float | None:
    """Return the sentence-level score; None if a prompt could not be computed."""
    first, last = scale_of(options)
    tokens = []
    for logs in facts.readouts.values():
        if logs is None:
            return None
        tokens.append(token_score(list(logs[first : last + 1]), first, options["normalise"] == "plain"))
    mean = math.fsum(tokens) / len(tokens)
    deviation = math.sqrt(math.fsum((token - mean) ** 2 for token in tokens) / len(tokens))
    return mean / (1 + float(options["alpha"]) * deviation)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    scale_of(options)
    prompts = _prompts(options)
    if not prompts:
        raise ValueError("prompts: the file has no prompt; give one a line")
    for prompt in prompts:
        for placeholder in PLACEHOLDERS:
            if placeholder in prompt:
                raise ValueError(f"prompts: {placeholder} in a rating prompt; the sample is added after it")
    if options["normalise"] not in ("softmax", "plain"):
        raise ValueError(f'normalise = "{options["normalise"]}": use "softmax" or "plain"')
    if not 0 <= options["alpha"] < math.inf:
        raise ValueError(f"alpha = {options['alpha']}: give a number of at least 0")


SELECTIT = Method(
    name="selectit",
    measures=(
        StudentMeasure(
            name="selectit",
            help="SelectIT: the student's own rating from 1 to 5, by several prompts (arXiv:2402.16705)",
            value=value,
            version=1,
            readouts=readouts,
            options={"prompts": TextFile(_PROMPTS), "alpha": 0.2, "scale": [1, 5], "normalise": "softmax"},
            check=check,
        ),
    ),
)

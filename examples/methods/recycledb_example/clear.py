"""A student measure: how sure a student is that an instruction is clear."""

import math
from collections.abc import Mapping
from typing import Any

from recycledb.methods import Facts, Method, Readout, StudentMeasure

WORDING = "Instruction: {instruction} {input}\n{question} Answer Yes or No:"


def readouts(options: Mapping[str, Any]) -> tuple[Readout, ...]:
    """Return the one question, whose next token is read."""
    return (Readout("clear", WORDING.replace("{question}", options["question"]), (" Yes", " No")),)


def clearness(facts: Facts, options: Mapping[str, Any]) -> float | None:
    """Return P(Yes) / (P(Yes) + P(No)), None where the prompt was too long to be read."""
    found = facts.readouts["clear"]
    return None if found is None else 1 / (1 + math.exp(found[1] - found[0]))


CLEAR = Method(
    name="clear",
    measures=(
        StudentMeasure(
            name="clearness",
            help="how sure a student is that an instruction is clear, from 0 to 1",
            value=clearness,
            version=1,
            readouts=readouts,
            options={"question": "Is it clear what to do?"},
        ),
    ),
)

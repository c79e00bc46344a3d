"""Ratings by a teacher: one number for each variant, in words asked for (AlpaGasus, Chen et al., arXiv:2307.08701, and most LLM judges).

The prompt ends with the request to give the number alone on the first line. `read` takes the first number of the first line that is not
blank, and nothing else on that line may be numeric but the scale behind a slash ("4.5/5"). Whether the number lies on the scale of a
measure is decided where the measure's number is read (the view `measures`), so another scale is no reason to ask again.

Unlike the published code, what has no number has no value: it is not -1. A number of several digits is read whole, and requests end
at the first line break, so that no explanation is paid for.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from recycledb.methods.definition import Extracted, Method, Rating, TeacherMeasure, TeacherStep, TextFile
from recycledb.schema import Texts

RATE: Final = "rate"
NAME, OUT_OF = "rating", "out_of"  # in the column `name` of a stored rating

WORDING: Final = """\
<<system>>
You check the quality of answers. You are exact and impartial, and you follow the form of reply that is asked for.
<<user>>
### Instruction:
{question}

### Response:
{answer}

Rate the response by this criterion: [criterion]. Give a number from [low] to [high], where a higher number means a better response. \
Write only this number on the first line, with nothing else.
"""

NUMBER: Final = r"[-+\u2212]?[0-9]+(?:\.[0-9]+)?"
_RATED = re.compile(rf"(?P<number>{NUMBER})(?:\s*/\s*(?P<scale>{NUMBER}))?")


def first_line(reply: str) -> str:
    """Return the first line that is not blank, without blanks at its ends."""
    return next((line.strip() for line in reply.splitlines() if line.strip()), "")


def number(text: str) -> float:
    """Return a number as it is matched by NUMBER."""
    return float(text.replace("\u2212", "-"))


def read(reply: str, shown: Sequence[Texts]) -> Extracted:
    """Return the number in a reply, and the scale behind a slash if there is one, or the reason for none."""
    line = first_line(reply)
    found = _RATED.search(line)
    if found is None:
        return Extracted(reason="no_number: the first line has no number")
    if any(letter.isnumeric() for letter in line[: found.start()] + line[found.end() :]):
        return Extracted(reason="several_numbers: the first line has more than a number and its scale")
    ratings = [Rating(NAME, number(found["number"]))]
    if found["scale"] is not None:
        ratings.append(Rating(OUT_OF, number(found["scale"])))
    if not all(math.isfinite(each.value) for each in ratings):
        return Extracted(reason="no_number: the number is too large")
    return Extracted(ratings=tuple(ratings))


def scale(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lowest and the highest number of the scale; raise ValueError unless these are two numbers in ascending order."""
    given = options["scale"]
    numbers = len(given) == 2 and all(type(each) in (int, float) and math.isfinite(each) for each in given)
    if not (numbers and given[0] < given[1]):
        raise ValueError(f"scale = {given}: give the lowest and the highest number, such as [0, 5]")
    return float(given[0]), float(given[1])


def template(options: Mapping[str, Any]) -> str:
    """Return the whole prompt: the option `prompts`, or ours with the criterion and the scale."""
    if options["prompts"]:
        return str(options["prompts"])
    low, high = (f"{each:g}" for each in scale(options))
    filled = {"criterion": options["criterion"], "low": low, "high": high}
    return re.sub(r"\[(criterion|low|high)\]", lambda match: filled[match[1]], WORDING)


def reference(options: Mapping[str, Any]) -> str:
    """Return the kind of variant whose answer is shown as the reference; "" for none."""
    return "" if options["reference"] == "none" else str(options["reference"])


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    scale(options)
    text = template(options)
    if not any(name in text for name in ("{answer}", "{output}", "{question}", "{instruction}")):
        raise ValueError("prompts: the prompt has neither {question} nor {answer}; it is the whole template")
    if ("{reference}" in text) != bool(reference(options)):
        raise ValueError(
            f'reference = "{options["reference"]}", but the prompt has {"" if "{reference}" in text else "no "}'
            '{reference}: a prompt with it needs reference = "origin", or another kind'
        )


RATING = Method(
    name="rating",
    steps=(TeacherStep(name=RATE, inputs=(), wording=lambda: WORDING, read=read, version=1, needs=(), stop=("\n",)),),
    teacher_measures=(
        TeacherMeasure(
            name="rating",
            help="a number that a teacher gives by a criterion in words",
            step=RATE,
            template=template,
            scale=scale,
            options={
                "prompts": TextFile(""),
                "criterion": "how helpful and accurate it is",
                "scale": [0, 5],
                "reference": "none",
            },
            check=check,
            reference=reference,
        ),
    ),
)

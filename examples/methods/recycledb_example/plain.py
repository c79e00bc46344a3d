"""Teacher steps: an answer in plain words, and a grade of both answers side by side."""

import re
from collections.abc import Sequence

from recycledb.methods import Extracted, Input, Method, Rating, TeacherStep, VariantKind
from recycledb.methods.extraction import Form, extract
from recycledb.schema import Texts

FORM = Form(
    sections=(("plain answer", "[Plain Answer]"),),
    changes=lambda read: read.output,  # a reply that only repeats the answer is unusable
    texts=lambda bodies, read: Texts(read.instruction, read.input, bodies[0]),
)

SIMPLIFY = """\
Rewrite the answer so that a ten-year-old understands it. Keep every fact.
Begin with [Plain Answer] on a line of its own, and end with [End].

Instruction: {instruction}
{{#input}}
Input: {input}
{{/input}}
Answer: {output}
"""

GRADE = """\
Two answers to one instruction. Give each a grade from 1 (useless) to 10 (perfect).
Write nothing but the two grades on the first line, as in: 7 4

Instruction: {instruction}
First answer: {output}
Second answer: {output_2}
"""


def read_simplified(reply: str, shown: Sequence[Texts]) -> Extracted:
    """Return the plain answer, or the reason why the reply has none."""
    return extract(FORM, reply, shown[0])


def read_grades(reply: str, shown: Sequence[Texts]) -> Extracted:
    """Return one rating of each variant that was shown."""
    first = re.match(r"\s*(10|[1-9])\D+(10|[1-9])\s*$", reply.split("\n", maxsplit=1)[0])
    if first is None:
        return Extracted(reason="no_grades: the first line does not hold two grades from 1 to 10")
    return Extracted(ratings=tuple(Rating("grade", float(grade), about) for about, grade in enumerate(first.groups())))


PLAIN = Method(
    name="plain",
    kinds=(VariantKind("plain", "plain", "the answer in plain words"),),
    steps=(
        TeacherStep(
            name="simplify",
            inputs=(Input(("origin",), gives="plain"),),
            wording=lambda: SIMPLIFY,
            read=read_simplified,
            version=1,
            needs=("instruction", "output"),
            markers=FORM.markers,
        ),
        TeacherStep(
            name="grade",
            inputs=(Input(("origin",), gives=None, beside=("plain",)),),
            wording=lambda: GRADE,
            read=read_grades,
            version=1,
            needs=("instruction", "output", "output_2"),
        ),
    ),
)

"""Pairwise judgements by a teacher: which of two answers is better, asked in both orders (AlpaGasus, Cherry_LLM, FastChat's review).

A question shows two variants of a sample and asks for two scores on the first line, that of the answer shown first before the other. Only
which of them is higher counts. Both orders are asked, as two questions; the view `judgements` puts them together: the sum of the two signs
is a win, a tie or a loss, and `flipped` says that the judge contradicted itself when the answers changed places.

Unlike the published code, "8, 9", "8/10 9/10" and a blank at the end are read, what cannot be read is no tie but undecided, and the
question shows the input of a sample.
"""

import re
from collections.abc import Sequence
from typing import Final

from recycledb.methods.definition import Extracted, Method, Rating, TeacherStep, VariantKind
from recycledb.methods.rating import NUMBER, first_line, number
from recycledb.schema import Texts

COMPARE: Final = "compare"
ANSWER: Final = "answer"  # the kind of a model's answer to a sample's question
ANSWERS: Final = "answers"  # the method of the `augmentation` that stands for the model
SCORE: Final = "score"  # in the column `name` of a stored rating

WORDING: Final = """\
<<system>>
You compare two answers to one question. You are exact and impartial, and the order in which the answers are shown does not matter to you.
<<user>>
[Question]
{question}

[The Start of Answer 1]
{answer_1}
[The End of Answer 1]

[The Start of Answer 2]
{answer_2}
[The End of Answer 2]

Judge how helpful, relevant, accurate and detailed each answer is, and give each of them a score from 1 to 10, where a higher score means \
a better answer. Write only the two scores on the first line, that of Answer 1 first, separated by a blank, with nothing else.
"""

_SCORE = rf"({NUMBER})(?:\s*/\s*({NUMBER}))?"
_PAIR = re.compile(rf"{_SCORE}(?:\s*[,;]\s*|\s+){_SCORE}\s*\.?")
_EMPHASIS = str.maketrans("", "", "*_`[]()")


def read(reply: str, shown: Sequence[Texts]) -> Extracted:
    """Return the two scores in a reply, or the reason for none."""
    found = _PAIR.fullmatch(first_line(reply).translate(_EMPHASIS).strip())
    if found is None:
        return Extracted(reason="no_scores: the first line is not two numbers")
    scores, scales = [number(found[1]), number(found[3])], [number(each) for each in (found[2], found[4]) if each]
    if len(set(scales)) > 1 or any(score > scale for score in scores for scale in scales):
        return Extracted(reason="off_scale: the scores are not on one scale")
    return Extracted(ratings=tuple(Rating(SCORE, score, about) for about, score in enumerate(scores)))


JUDGING = Method(
    name="judging",
    kinds=(
        VariantKind(ANSWER, "answer", "a model's answer to a sample's question, brought in from a file", scored=False),
    ),
    steps=(
        TeacherStep(
            name=COMPARE,
            inputs=(),
            wording=lambda: WORDING,
            read=read,
            version=1,
            needs=(),
            stop=("\n",),
        ),
    ),
)

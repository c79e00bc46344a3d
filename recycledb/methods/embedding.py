"""Vectors of variants, from a student's own forward pass or a sentence encoder.

`embedding` stores the vector of a text of each variant, for orderings (facility location, DEITA's filter, round-robin). Its value
is 1 where there is a vector. The text is one of

    whole      what the student is trained on: its template around the question, and the answer (the sequence of A_condition, so the
               vector costs nothing where that statistic is computed in the same run)
    question   the template around the question
    answer     the answer alone
    row        instruction, input and output joined by line breaks, also where the input is empty, without a template: what
               Superfiltering.D embeds (arXiv:2402.00530)

Poolings: `mean`; `weighted_mean`, in which token t of N has the weight t / (1 + … + N) (SGPT, arXiv:2202.08904; RDS+, arXiv:2503.01807);
`last`. Only the tokens of the text count: the published code of RDS+ weighs padding too where it computes in batches.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from recycledb.methods.definition import Facts, Method, StudentMeasure, Vector
from recycledb.methods.ifd import forward_prompt
from recycledb.schema import Texts

POOLINGS: Final = ("mean", "weighted_mean", "last")
PARTS: Final[Mapping[str, Callable[[str, Texts], str]]] = MappingProxyType(
    {
        "whole": lambda template, texts: forward_prompt(template, texts) + texts.output,
        "question": forward_prompt,
        "answer": lambda template, texts: texts.output,
        "row": lambda template, texts: "\n".join(texts),
    }
)


def vectors(options: Mapping[str, Any]) -> tuple[Vector, ...]:
    """Return the vector that the options name."""
    return (Vector(options["pooling"], options["part"], PARTS[options["part"]]),)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown pooling or part."""
    for name, known in (("pooling", POOLINGS), ("part", PARTS)):
        if options[name] not in known:
            raise ValueError(f'{name} = "{options[name]}": use one of {", ".join(known)}')


def exists(facts: Facts, options: Mapping[str, Any]) -> float | None:
    """Return 1 if the vector exists."""
    [vector] = facts.vectors.values()
    return None if vector is None else 1.0


EMBEDDING = Method(
    name="embedding",
    measures=(
        StudentMeasure(
            name="embedding",
            help="a vector of each variant's text, for orderings by diversity; its value is 1 where there is one",
            value=exists,
            version=1,
            vectors=vectors,
            options={"pooling": "mean", "part": "whole"},
            check=check,
        ),
    ),
)

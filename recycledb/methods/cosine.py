"""Cosines between vectors of a student or a sentence encoder: closeness to a query set, or to another variant of the sample.

    queries = "dataset:NAME"     mean_q or max_q cos(a, q) over the origins of a dataset: the score of RDS+ (Ivison et al.,
                                 arXiv:2503.01807), a text is near what a student will be asked
    reference = "origin"         cos(a, r), where r is the sample's variant of that kind: how near an answer stays to it (Self-J,
                                 Ye et al., arXiv:2409.00935)

Vectors are those of `embedding` with the same pooling and part, and are computed once for both. The list of queries is part of the
measure's identity: with another list it is another measure, whose values are computed from stored vectors. Queries without a vector,
say of an empty text, do not count; unlike in the published code of RDS+, neither does padding.
"""

from collections.abc import Mapping
from typing import Any

from recycledb.methods import embedding
from recycledb.methods.definition import Facts, Method, StudentMeasure, Vector

TAKEN = ("mean", "largest")


def queries(options: Mapping[str, Any]) -> str:
    """Return the name of the dataset of the queries, "" for none."""
    return str(options["queries"]).removeprefix("dataset:")


def reference(options: Mapping[str, Any]) -> str:
    """Return the kind of variant to compare with, "" for none."""
    return "" if options["reference"] == "none" else str(options["reference"])


def vectors(options: Mapping[str, Any]) -> tuple[Vector, ...]:
    """Return the vector to compare: by default of the answer alone with a reference, else of the whole text."""
    part = options["part"] or ("answer" if reference(options) else "whole")
    return embedding.vectors({**options, "part": part})


def value(facts: Facts, options: Mapping[str, Any]) -> float | None:
    """Return the cosine with the reference, or the mean or largest one with the queries; None where a vector is missing."""
    import numpy as np

    [(key, vector)] = facts.vectors.items()
    others = facts.references.get(key) if reference(options) else facts.queries.get(key)
    if vector is None or others is None or len(others) == 0:
        return None
    found = _unit(np.atleast_2d(others)) @ _unit(np.atleast_2d(vector))[0]
    return float(found.max() if options["take"] == "largest" else found.mean())


def _unit(rows: Any) -> Any:
    """Return vectors of length 1 in float64: those that are stored are rounded."""
    import numpy as np

    exact = np.asarray(rows, np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that make no sense."""
    if bool(queries(options)) == bool(reference(options)):
        raise ValueError('set either queries = "dataset:NAME" or reference = "origin" (or another kind)')
    if options["take"] not in TAKEN:
        raise ValueError(f'take = "{options["take"]}": use "mean" or "largest"')
    if options["part"] not in ("", *embedding.PARTS):
        raise ValueError(f'part = "{options["part"]}": use one of {", ".join(embedding.PARTS)}')
    embedding.check({**options, "part": "whole"})


COSINE = Method(
    name="cosine",
    measures=(
        StudentMeasure(
            name="cosine",
            help="how near a variant's vector is to those of a query dataset (RDS+), or to that of a reference",
            value=value,
            version=1,
            vectors=vectors,
            options={"queries": "", "reference": "none", "take": "mean", "pooling": "mean", "part": ""},
            check=check,
            reference=reference,
            queries=queries,
        ),
    ),
)

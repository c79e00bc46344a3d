"""A model's answers for an evaluation: whose they are, and whether there is one to each question.

AlpacaEval joins a model's outputs to the baseline's by instruction and drops what has no partner (an inner join, with a warning), so a
win rate over a part of the questions looks like one over all. Missing answers are therefore an error here.
"""

from recycledb.errors import SelectionError
from recycledb.methods.judging import ANSWER, ANSWERS
from recycledb.selection import identities
from recycledb.store import Sandbox, Store
from recycledb.suggestions import did_you_mean

ALPACA_EVAL = "alpaca_eval"

_AUTHORS = """
    SELECT DISTINCT a.name FROM augmentation a JOIN derivation d ON d.augmentation_id = a.augmentation_id
    WHERE a.method = :method ORDER BY a.name
"""

_MISSING = """
    WITH answered AS (
        SELECT v.sample_id FROM variants v JOIN derivation d ON d.derivation_id = v.derivation_id
        JOIN augmentation a ON a.augmentation_id = d.augmentation_id
        WHERE v.kind = :answer AND v.is_current = 1 AND a.method = :method AND a.name = :author
    )
    SELECT s.dataset, count(*) AS positions, sum(CASE WHEN s.sample_id IN (SELECT sample_id FROM answered) THEN 0 ELSE 1 END) AS missing,
        min(CASE WHEN s.sample_id IN (SELECT sample_id FROM answered) THEN NULL ELSE s.position END) AS first
    FROM dataset_samples s WHERE CAST(:dataset AS VARCHAR) IS NULL OR s.dataset = :dataset
    GROUP BY s.dataset ORDER BY s.dataset
"""


def kind_and_author(store: Store, text: str) -> tuple[str, str]:
    """Return the kind and the author that `answer/AUTHOR` means; of another text, the kind and ""."""
    kind, _, author = text.partition("/")
    identities.require_kind(kind)
    if not author:
        return kind, ""
    there = [str(row[0]) for row in store.rows(_AUTHORS, method=ANSWERS)]
    if kind != ANSWER or author not in there:
        listed = ", ".join(f"{ANSWER}/{each}" for each in there) or "none; `recycledb add-answers` adds them"
        meant = did_you_mean(text, [f"{ANSWER}/{each}" for each in there])
        raise SelectionError(f"no answers {text!r}{meant}; there are {listed}")
    return kind, author


def require_outputs(store: Store, sandbox: Sandbox, kind: str, author: str, dataset: str | None) -> None:
    """Raise SelectionError unless the rows are the outputs of one model, to all questions of the datasets that it has answered."""
    if kind != ANSWER:
        return
    if not author:
        there = [f"{ANSWER}/{row[0]}" for row in store.rows(_AUTHORS, method=ANSWERS)]
        if len(there) > 1:
            raise SelectionError(
                f"a file for AlpacaEval has one model's outputs: give --kind, one of {', '.join(there)}"
            )
        author = there[0].partition("/")[2] if there else ""
    values = {"answer": ANSWER, "method": ANSWERS, "author": author, "dataset": dataset}
    for name, positions, missing, first in sandbox.execute(_MISSING, values)[1]:
        if missing and (missing < positions or dataset is not None):
            raise SelectionError(
                f"{author} has no answer to {missing} of the {positions} questions of {name}, the first at position {first}: AlpacaEval "
                f"would leave them out without a word; add them by `recycledb add-answers FILE --author {author} --dataset {name}`"
            )

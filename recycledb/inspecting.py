"""Look at the store: what there is and what is missing, and one sample's whole history.

Invariant: reading only, through the views that users query too.
"""

from collections.abc import Sequence
from typing import Any

from recycledb.errors import RecycledbError, StoreError
from recycledb.store import SQLRow, Store
from recycledb.store.migrate import HEAD
from recycledb.sync.plan import make
from recycledb.sync.target import Target

SHORTEST_PREFIX = 4
# Where an id may come from, and the samples that it leads to.
_ID_SOURCES = (
    "SELECT sample_id AS id, sample_id FROM sample",
    "SELECT variant_id AS id, sample_id FROM variant",
    "SELECT r.text_id AS id, v.sample_id FROM reply r JOIN variant v ON v.variant_id = r.variant_id",
    "SELECT a.attempt_id AS id, v.sample_id FROM attempt a JOIN variant v ON v.variant_id = a.variant_id",
)


def _dicts(rows: Sequence[SQLRow]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in rows]


def status(store: Store, target: Target | RecycledbError) -> dict[str, Any]:
    """Return what there is, by dataset, kind, step and student, and what `target` lacks.

    Where the target itself cannot be told (a model's folder is gone), its error stands in `missing_unknown`.
    """
    result: dict[str, Any] = {
        "store": str(store.backend.path),
        "backend": store.backend.name,
        "schema": HEAD,
        "datasets": _dicts(store.rows(_DATASETS)),
        "samples": store.rows("SELECT count(*) FROM sample")[0][0],
        "variants": {
            row[0]: row[1] for row in store.rows("SELECT kind, count(*) FROM variant GROUP BY kind ORDER BY kind")
        },
        "teachers": _dicts(store.rows(_TEACHERS)),
        "unusable": _dicts(store.rows(_UNUSABLE)),
        "students": _dicts(store.rows(_STUDENTS)),
        "selections": store.rows("SELECT count(*) FROM selection")[0][0],
        "cost_usd": store.rows("SELECT sum(cost_usd) FROM reply")[0][0],
        "selected": _dicts(store.rows(_SELECTED)),
        "missing": None,
    }
    if isinstance(target, RecycledbError):
        result["missing_unknown"] = str(target)
    else:
        result["missing"] = make(store, target).as_dict()
    return result


_DATASETS = """
    SELECT d.dataset, d.source, d.format, d.added_at,
        (SELECT count(*) FROM dataset_samples s WHERE s.dataset = d.dataset) AS places,
        (SELECT count(DISTINCT s.sample_id) FROM dataset_samples s WHERE s.dataset = d.dataset) AS samples
    FROM datasets d ORDER BY d.dataset
"""

_TEACHERS = """
    SELECT t.teacher, t.step, count(*) AS attempts,
        sum(CASE WHEN t.status = 'ok' THEN 1 ELSE 0 END) AS ok,
        sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
        sum(CASE WHEN t.status = 'error' THEN 1 ELSE 0 END) AS errors,
        sum(CASE WHEN t.status IN ('sent', 'lost') THEN 1 ELSE 0 END) AS unanswered,
        sum(CASE WHEN e.status = 'unusable' THEN 1 ELSE 0 END) AS unusable,
        sum(t.prompt_tokens) AS prompt_tokens, sum(t.completion_tokens) AS completion_tokens,
        sum(t.cost_usd) AS cost_usd
    FROM teacher_texts t
    LEFT JOIN extractions e ON e.text_id = t.text_id AND e.is_current = 1
    GROUP BY t.teacher, t.step ORDER BY t.teacher, t.step
"""

_UNUSABLE = """
    SELECT t.teacher, t.step, e.reason, count(*) AS texts
    FROM teacher_texts t JOIN extractions e ON e.text_id = t.text_id AND e.is_current = 1
    WHERE e.status = 'unusable' GROUP BY t.teacher, t.step, e.reason ORDER BY t.teacher, t.step, e.reason
"""

# All that was spent, by each recorded selection's samples: what was paid for those that were not chosen is part of their price.
_SELECTED = """
    SELECT s.selection, count(DISTINCT v.sample_id) AS samples,
        (SELECT sum(cost_usd) FROM reply) / count(DISTINCT v.sample_id) AS cost_per_sample_usd
    FROM selections s
    JOIN selection_item i ON i.selection_id = s.selection_id
    JOIN variant v ON v.variant_id = i.variant_id
    GROUP BY s.selection, s.created_at ORDER BY s.created_at DESC LIMIT 3
"""

_STUDENTS = """
    SELECT s.student, s.model, s.prompt, s.max_length, s.dtype, s.parameters,
        count(l.stat) AS statistics,
        sum(CASE WHEN l.stat IS NOT NULL AND l.loss_sum IS NULL THEN 1 ELSE 0 END) AS without_value,
        sum(CASE WHEN l.truncated THEN 1 ELSE 0 END) AS truncated,
        sum(CASE WHEN l.merged THEN 1 ELSE 0 END) AS merged
    FROM students s LEFT JOIN loss l ON l.student_id = s.student_id
    GROUP BY s.student, s.model, s.prompt, s.max_length, s.dtype, s.parameters ORDER BY s.student
"""


def find_sample(store: Store, prefix: str) -> str:
    """Return the sample that a unique prefix of an id (of a sample, variant or teacher's text) leads to."""
    prefix = prefix.strip().lower()
    if len(prefix) < SHORTEST_PREFIX or set(prefix) - set("0123456789abcdef"):
        raise StoreError(f"{prefix!r} is not an id; give at least {SHORTEST_PREFIX} of its hexadecimal digits")
    found: dict[str, str] = {}
    for source in _ID_SOURCES:
        # A range, not LIKE: it walks the key's index.
        sql = f"SELECT id, sample_id FROM ({source}) s WHERE id >= :low AND id < :high LIMIT 20"
        found.update({row[0]: row[1] for row in store.rows(sql, low=prefix, high=prefix + "g")})
    samples = set(found.values())
    if not samples:
        raise StoreError(f"no sample, variant or text has an id that begins with {prefix}")
    if len(samples) > 1:
        ids = ", ".join(sorted(key[: len(prefix) + 4] for key in found))
        raise StoreError(f"{prefix} begins several ids ({ids}, …); give more digits")
    return samples.pop()


def show(store: Store, prefix: str) -> dict[str, Any]:
    """Return everything that the store knows of one sample; `prefix` is a unique prefix of an id."""
    sample = find_sample(store, prefix)
    found = store.rows("SELECT * FROM samples WHERE sample_id = :s", s=sample)[0]
    return {
        **dict(found._mapping),
        "places": _dicts(store.rows(_PLACES, s=sample)),
        "variants": _dicts(store.rows(_VARIANTS, s=sample)),
        "teacher_texts": _dicts(store.rows(_TEXTS, s=sample)),
        "scores": _dicts(store.rows(_SCORES, s=sample)),
        "losses": _dicts(store.rows(_LOSSES, s=sample)),
        "selections": _dicts(store.rows(_SELECTIONS, s=sample)),
    }


_PLACES = "SELECT dataset, position, extra FROM dataset_samples WHERE sample_id = :s ORDER BY dataset, position"

_VARIANTS = """
    SELECT variant_id, kind, parent_id, text_id, teacher, is_current, instruction, input, output, created_at
    FROM variants WHERE sample_id = :s ORDER BY created_at, kind
"""

_TEXTS = """
    SELECT t.text_id, t.variant_id, t.step, t.teacher, t.attempt, t.status, t.text, t.finish_reason, t.prompt_tokens,
        t.completion_tokens, t.cost_usd, t.error, t.created_at, e.status AS extraction, e.reason, e.variant_id AS gave
    FROM teacher_texts t
    LEFT JOIN extractions e ON e.text_id = t.text_id AND e.is_current = 1
    WHERE t.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY t.created_at, t.attempt
"""

# The view aggregates all losses; restricting by key first keeps this a look-up.
_SCORES = """
    SELECT s.* FROM scores s
    WHERE s.sample_id = :s AND s.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY s.student, s.kind
"""

_LOSSES = """
    SELECT l.variant_id, l.student, l.stat, l.loss_sum, l.n_tokens, l.truncated, l.status
    FROM losses l WHERE l.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY l.student, l.variant_id, l.stat
"""

_SELECTIONS = """
    SELECT i.selection, i.position, i.variant_id, i.rank, i.reason, c.recipe
    FROM selection_items i JOIN selections c ON c.selection_id = i.selection_id
    WHERE i.variant_id IN (SELECT variant_id FROM variant WHERE sample_id = :s)
    ORDER BY c.created_at
"""

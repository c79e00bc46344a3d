"""Statistics under students: which are there, which are missing, and how many.

Invariant: a statistic that is there is never asked for again. The statements are made by `recycledb.store.pending`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from recycledb.store import SQLRow, Store, pending
from recycledb.store.pending import Wanted
from recycledb.store.rows import LossRow


def add_losses(store: Store, losses: Sequence[LossRow]) -> None:
    """Commit statistics."""
    with store.write() as conn:
        store.insert(conn, losses)


def pending_scores(
    store: Store, wanted: Wanted | None, student: str, stats: Sequence[str], samples: Sequence[str]
) -> Sequence[SQLRow]:
    """Return the variants of these samples that lack statistics under a student, with how many are present."""
    if not samples:
        return []
    listed, parameters = pending.listed(samples)
    sql = pending.unscored(wanted, listed, len(stats))
    return store.rows(sql, **_score_parameters(wanted, student, stats), **parameters)


def sample_scores(
    store: Store, wanted: Wanted | None, student: str, stats: Sequence[str], number: int
) -> Sequence[SQLRow]:
    """Return some of the variants that lack statistics under a student, the first by id: ids are hashes."""
    sql = f"""
        SELECT * FROM ({pending.unscored(wanted, pending.ALL_SAMPLES, len(stats))}) u
        ORDER BY u.variant_id LIMIT {number}
    """
    return store.rows(sql, **_score_parameters(wanted, student, stats))


def count_scores(
    store: Store, wanted: Wanted | None, students: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[int, int, int]]:
    """Return, for each student with its statistics, how many variants lack some, how many those are, and the variants' characters."""
    if not students:
        return []
    sql = pending.count_unscored(wanted, [len(stats) for _, stats in students])
    parameters = dict(wanted.parameters) if wanted else {}
    for i, (student, stats) in enumerate(students):
        parameters |= {f"student_{i}": student, **{f"stat_{i}_{k}": stat for k, stat in enumerate(stats)}}
    numbers = [int(number or 0) for number in store.rows(sql, **parameters)[0]]
    return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]


def present_stats(store: Store, student: str, variants: Sequence[str]) -> set[tuple[str, str]]:
    """Return the (variant, stat) that a student has among these variants."""
    names = ", ".join(f":v{i}" for i in range(len(variants)))
    sql = f"SELECT variant_id, stat FROM loss WHERE student_id = :student AND variant_id IN ({names})"
    return {
        (row[0], row[1]) for row in store.rows(sql, student=student, **{f"v{i}": v for i, v in enumerate(variants)})
    }


def known_pairs(store: Store, student: str, pairs: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return loss_sum and n_tokens of token sequences that a student has met before."""
    found: dict[str, tuple[float, int]] = {}
    for start in range(0, len(pairs), 500):
        part = pairs[start : start + 500]
        names = ", ".join(f":p{i}" for i in range(len(part)))
        sql = f"""
            SELECT DISTINCT pair_id, loss_sum, n_tokens FROM loss l
            WHERE student_id = :student AND pair_id IN ({names}) AND {pending.is_number("l")}
        """
        rows = store.rows(sql, student=student, **{f"p{i}": pair for i, pair in enumerate(part)})
        found.update({row[0]: (float(row[1]), int(row[2])) for row in rows})
    return found


def _score_parameters(wanted: Wanted | None, student: str, stats: Sequence[str]) -> Mapping[str, Any]:
    return {
        **(wanted.parameters if wanted else {}),
        "student": student,
        **{f"stat_{i}": stat for i, stat in enumerate(stats)},
    }

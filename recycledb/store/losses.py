"""Statistics of students: count the missing ones for all students at once, and find known ones by their token sequences.

`recycledb.store.measures` finds what is missing for one student, variant by variant.
"""

from collections.abc import Sequence

from recycledb.methods.ifd import is_number
from recycledb.store import Store, pending
from recycledb.store.pending import Scope, Wanted


def count_scores(
    store: Store,
    wanted: Wanted | None,
    students: Sequence[tuple[str, Sequence[str]]],
    augmentations: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> list[tuple[int, int, int]]:
    """Return, for each student, how many variants lack statistics, how many statistics are missing, and the variants' characters.

    `students` are (id, statistics); variants made by the augmentations (ids) are included. With `datasets`, only of samples in these.
    """
    if not students:
        return []
    scope = Scope(wanted, augmentations=tuple(augmentations), datasets=tuple(datasets))
    sql = pending.count_unscored(scope, [len(stats) for _, stats in students])
    parameters = dict(scope.parameters)
    for i, (student, stats) in enumerate(students):
        parameters |= {f"student_{i}": student, **{f"stat_{i}_{k}": stat for k, stat in enumerate(stats)}}
    numbers = [int(number or 0) for number in store.rows(sql, **parameters)[0]]
    return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]


def known_pairs(store: Store, student: str, pairs: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return loss_sum and n_tokens of the token sequences that a student has already computed, by pair_id."""
    found: dict[str, tuple[float, int]] = {}
    for start in range(0, len(pairs), 500):
        part = pairs[start : start + 500]
        names = ", ".join(f":p{i}" for i in range(len(part)))
        sql = f"""
            SELECT DISTINCT pair_id, loss_sum, n_tokens FROM loss l
            WHERE student_id = :student AND pair_id IN ({names}) AND {is_number("l")}
        """
        rows = store.rows(sql, student=student, **{f"p{i}": pair for i, pair in enumerate(part)})
        found.update({row[0]: (float(row[1]), int(row[2])) for row in rows})
    return found


def count_statuses(store: Store, students: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many statistics and readouts each student (id) has of each status; a sum that is no number counts as not_finite."""
    if not students:
        return {}
    names = ", ".join(f":s{i}" for i in range(len(students)))
    sql = f"""
        SELECT student_id, status, sum(n) AS n FROM (
            SELECT student_id, count(*) AS n,
                CASE WHEN {is_number("l")} THEN 'ok' WHEN status IN ('ok', 'imported') THEN 'not_finite' ELSE status END AS status
            FROM loss l WHERE student_id IN ({names}) GROUP BY 1, 3
            UNION ALL
            SELECT student_id, count(*) AS n, status FROM readout WHERE student_id IN ({names}) GROUP BY 1, 3
        ) u GROUP BY 1, 2
    """
    found: dict[str, dict[str, int]] = {}
    for row in store.rows(sql, **{f"s{i}": student for i, student in enumerate(students)}):
        found.setdefault(row.student_id, {})[row.status] = int(row.n)
    return found

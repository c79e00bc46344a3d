"""Import published statistics as a new student, so that a paper's selection can be reproduced without a GPU or a key.

Rows are matched to samples by position in the dataset. The means are stored as `loss_sum` with `n_tokens` 1 and the status
`imported`; an impossible value (0 for an error, NaN) is NULL with the status `invalid`.

Invariant: the import is idempotent and never replaces a number. A file with another number of rows than the dataset is an
error.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.formats import PublishedScores, read_scores
from recycledb.methods import scored_kinds
from recycledb.methods.ifd import Stat
from recycledb.schema import IDENTITY_LENGTH, ORIGIN, LossStatus, content_id, utc_now
from recycledb.selection import identities
from recycledb.store import Store
from recycledb.store.rows import LossRow, StudentRow
from recycledb.suggestions import did_you_mean

REVISION = "imported"
DTYPE = "unknown"  # published files do not say
KERNEL = "imported"


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    student: str
    student_id: str
    dataset: str
    kind: str
    rows: int  # in the file
    variants: int  # that have statistics from this file
    without_variant: int  # rows at positions where the store has no variant of the kind
    statistics_new: int
    statistics_present: int
    invalid: int  # NULLs among all of them

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def import_scores(
    store: Store,
    path: Path,
    *,
    dataset: str,
    kind: str,
    student: str,
    teacher: str | None = None,
    prompt: str = "vicuna",
    max_length: int = 2048,
) -> Imported:
    """Store the published statistics in `path` for the variants of `kind` in `dataset`, under a student called `student`.

    SelectionError if the numbers of rows differ, if the dataset has no such variants, if the student's name belongs to a
    model that was scored here, or if the student has different numbers already.
    """
    if kind not in scored_kinds():
        raise SelectionError(
            f"no scored kind {kind!r}{did_you_mean(kind, scored_kinds())}; there are {', '.join(scored_kinds())}"
        )
    dataset = identities.find_dataset(store, dataset)
    student_id = content_id("student", student, REVISION, prompt, max_length, DTYPE, length=IDENTITY_LENGTH)
    _require_own_name(store, student, student_id)
    variants = _variants(store, dataset, kind, teacher)
    scores = _matched(store, path, dataset, kind)
    rows: dict[str, PublishedScores] = {}
    unmatched = 0
    for score in scores:
        variant = variants.get(score.position)
        if variant is None:
            unmatched += 1
        else:
            rows.setdefault(variant, score)  # a sample at two positions is scored once
    losses = [row for variant, score in sorted(rows.items()) for row in _losses(student_id, variant, score)]
    present = _present(store, student_id)
    _require_same(student, losses, present)
    with store.write() as conn:
        store.insert(conn, [_student_row(student_id, student, prompt, max_length)])
        store.ensure_name(conn, "student", student, student_id)
        new = store.insert(conn, losses)
    return Imported(
        student=student,
        student_id=student_id,
        dataset=dataset,
        kind=kind,
        rows=len(scores),
        variants=len(rows),
        without_variant=unmatched,
        statistics_new=new,
        statistics_present=len(losses) - new,
        invalid=sum(1 for row in losses if row.loss_sum is None),
    )


def _student_row(student_id: str, name: str, prompt: str, max_length: int) -> StudentRow:
    return StudentRow(
        student_id=student_id,
        name=name,
        model=name,
        revision=REVISION,
        prompt=prompt,
        max_length=max_length,
        dtype=DTYPE,
        parameters=None,
        created_at=utc_now(),
    )


def _require_own_name(store: Store, student: str, student_id: str) -> None:
    meant = store.find_name("student", student)
    if meant is None or meant == student_id:
        return
    revision = store.rows("SELECT revision FROM student WHERE student_id = :id", id=meant)
    if revision and revision[0][0] != REVISION:
        raise SelectionError(f"{student} is a student that was scored here; import under another --student name")


def _variants(store: Store, dataset: str, kind: str, teacher: str | None) -> dict[int, str]:
    """Return the variant of `kind` at each open position of the dataset; that with the smallest id if there are several."""
    maker = None
    if kind != ORIGIN:
        found = identities.find_teacher(store, teacher)
        if found is None:
            raise _no_variants(dataset, kind)
        maker = found.name
    rows = store.rows(
        """
        SELECT d.position, min(v.variant_id)
        FROM dataset_samples d
        JOIN variants v ON v.sample_id = d.sample_id AND v.kind = :kind AND v.is_current = 1
        WHERE d.dataset = :dataset AND (v.kind = 'origin' OR v.teacher = :teacher)
        GROUP BY d.position
        """,
        dataset=dataset,
        kind=kind,
        teacher=maker,
    )
    if not rows:
        raise _no_variants(dataset, kind)
    return {int(position): variant for position, variant in rows}


def _no_variants(dataset: str, kind: str) -> SelectionError:
    if kind == ORIGIN:
        return SelectionError(f"dataset {dataset} has no samples; add some: `recycledb add FILE --dataset {dataset}`")
    return SelectionError(
        f"dataset {dataset} has no {kind} variants that these scores could belong to: add the published reflections first, "
        'as replies of a teacher with provider = "recorded" in recycledb.toml, and run `recycledb sync --only reflect`'
    )


def _matched(store: Store, path: Path, dataset: str, kind: str) -> list[PublishedScores]:
    scores = list(read_scores(path, kind))
    counted = store.rows("SELECT rows FROM datasets WHERE dataset = :dataset", dataset=dataset)
    last = store.rows("SELECT max(position) FROM dataset_samples WHERE dataset = :dataset", dataset=dataset)[0][0]
    expected = int(counted[0][0]) if counted else int(last) + 1
    if len(scores) != expected:
        raise SelectionError(
            f"{path} has {len(scores)} rows, but dataset {dataset} has {expected}: "
            "they are matched by position, so both must come from the same file"
        )
    return scores


def _losses(student_id: str, variant: str, score: PublishedScores) -> Iterator[LossRow]:
    for stat, loss, ppl in zip(Stat, score.loss, score.ppl, strict=True):
        mean = loss if loss is not None else math.log(ppl) if ppl is not None else None
        status = LossStatus.INVALID if mean is None else LossStatus.IMPORTED
        tokens = 0 if mean is None else 1
        yield LossRow(
            student_id=student_id,
            variant_id=variant,
            stat=stat.value,
            loss_sum=mean,
            n_tokens=tokens,
            truncated=False,
            merged=False,
            status=status.value,
            pair_id=None,
            kernel=KERNEL,
        )


def _present(store: Store, student_id: str) -> dict[tuple[str, str], float | None]:
    rows = store.rows("SELECT variant_id, stat, loss_sum FROM loss WHERE student_id = :student", student=student_id)
    return {(row[0], row[1]): _finite(row[2]) for row in rows}


def _finite(value: float | None) -> float | None:  # NaN differs from itself
    return value if value is not None and math.isfinite(value) else None


def _require_same(student: str, losses: list[LossRow], present: Mapping[tuple[str, str], float | None]) -> None:
    other = sum(1 for row in losses if (key := (row.variant_id, row.stat)) in present and present[key] != row.loss_sum)
    if other:
        raise SelectionError(
            f"{student} already has different numbers for {other} of these statistics; import under another --student name"
        )

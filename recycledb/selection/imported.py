"""Published numbers of a measure, and models' answers to a test set, from files with one row for each position of a dataset.

Invariant: both imports are idempotent and never replace anything. A file with another number of rows than the dataset, or with other
texts, is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from recycledb import methods
from recycledb.errors import SelectionError
from recycledb.formats.numbers import Answered, Numbered, read_answers, read_numbers
from recycledb.methods.judging import ANSWER, ANSWERS
from recycledb.schema import (
    IDENTITY_LENGTH,
    ORIGIN,
    LossStatus,
    Texts,
    canonical_json,
    content_id,
    utc_now,
)
from recycledb.selection import identities
from recycledb.store import SQLRow, Store, derivations
from recycledb.store.rows import AugmentationRow, MeasureRow, TeacherRow, ValueRow

IMPORTED = "imported"  # the method of a measure whose numbers come from a file
OWN = ("ifd", "rifd", "ppl", "length")  # measures of the view that are no rows of `measure`
VERSION = 1
MISSING = "missing"  # the status of a row without a number


@dataclass(frozen=True)
class ImportedValues:
    """The result of an import of numbers."""

    measure: str
    model: str
    dataset: str
    kind: str
    rows: int  # in the file
    values_new: int
    values_present: int
    without_variant: int  # rows at positions where the store has no variant of the kind
    without_number: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class AddedAnswers:
    """The result of adding a model's answers."""

    author: str
    dataset: str
    rows: int
    answers_new: int
    answers_present: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def import_values(
    store: Store,
    path: Path,
    *,
    measure: str,
    model: str,
    dataset: str,
    kind: str = ORIGIN,
    field: str | None = None,
    teacher: str | None = None,
) -> ImportedValues:
    """Store the numbers in `path` for the variants of `kind` in `dataset`, as those of `measure` under `model`.

    The model is a student or teacher of the store, or a new name. SelectionError if the rows do not match the dataset, if the measure is
    computed here, or if other numbers are there already.
    """
    if kind not in methods.kinds():
        raise SelectionError(f"no kind {kind!r}; there are {', '.join(methods.kinds())}")
    if measure in OWN or measure.startswith("wins/"):
        raise SelectionError(f"{measure} is a measure of its own; give --measure another name")
    dataset = identities.find_dataset(store, dataset)
    variants = variants_at(store, dataset, kind, teacher)
    numbers = list(read_numbers(path, field))
    require_rows(store, path, dataset, len(numbers))
    require_texts(path, numbers, variants)
    measure_id = content_id("measure", measure, IMPORTED, VERSION, _PARAMETERS, length=IDENTITY_LENGTH)
    _require_own_measure(store, measure, measure_id)
    values: dict[str, float | None] = {}
    for row in numbers:
        if row.position in variants:
            values.setdefault(variants[row.position].variant_id, row.value)
    with store.write() as conn:
        model_id = _model_id(store, conn, model)
        rows = [
            ValueRow(measure_id, model_id, variant, "", value, MISSING if value is None else LossStatus.OK.value)
            for variant, value in sorted(values.items())
        ]
        _require_same(conn, measure, measure_id, model_id, values)
        store.insert(conn, [MeasureRow(measure_id, measure, IMPORTED, VERSION, _PARAMETERS, utc_now())])
        store.ensure_name(conn, "measure", measure, measure_id)
        new = store.insert(conn, rows)
    return ImportedValues(
        measure=measure,
        model=model,
        dataset=dataset,
        kind=kind,
        rows=len(numbers),
        values_new=new,
        values_present=len(rows) - new,
        without_variant=sum(row.position not in variants for row in numbers),
        without_number=sum(value is None for value in values.values()),
    )


_PARAMETERS = canonical_json({"options": {}})


def variants_at(store: Store, dataset: str, kind: str, teacher: str | None) -> dict[int, SQLRow]:
    """Return the current variant of `kind` at each position of the dataset, with its texts; that with the smallest id of several."""
    maker = identities.find_teacher(store, teacher) if teacher is not None else None
    rows = store.rows(
        """
        SELECT d.position, v.variant_id, v.sample_id, v.instruction, v.input, v.output FROM dataset_samples d
        JOIN variants v ON v.sample_id = d.sample_id AND v.kind = :kind AND v.is_current = 1
        WHERE d.dataset = :dataset AND (:teacher = '' OR v.teacher = :teacher) ORDER BY d.position, v.variant_id DESC
        """,
        dataset=dataset,
        kind=kind,
        teacher=maker.name if maker else "",
    )
    if not rows:
        raise SelectionError(f"dataset {dataset} has no current {kind} variants that the rows could belong to")
    return {int(row.position): row for row in rows}


def require_rows(store: Store, path: Path, dataset: str, rows: int) -> None:
    """Raise SelectionError unless a file has as many rows as the dataset."""
    counted = store.rows("SELECT rows FROM datasets WHERE dataset = :dataset", dataset=dataset)
    last = store.rows("SELECT max(position) FROM dataset_samples WHERE dataset = :dataset", dataset=dataset)[0][0]
    expected = int(counted[0][0]) if counted else int(last) + 1
    if rows != expected:
        raise SelectionError(
            f"{path} has {rows} rows, but dataset {dataset} has {expected}: "
            "they are matched by position, so both must be in the same order"
        )


def require_texts(path: Path, rows: Sequence[Numbered] | Sequence[Answered], variants: Mapping[int, SQLRow]) -> None:
    """Raise SelectionError where a row repeats other texts than those of the variant at its position."""
    for row in rows:
        variant = variants.get(row.position)
        if variant is None:
            continue
        for name, text in row.texts.items():
            there = getattr(variant, name)
            if text.strip() != there.strip() and not (
                name == "instruction" and text.strip() == f"{there}\n{variant.input}".strip()
            ):
                raise SelectionError(
                    f"{path}: row {row.position} (counted from 0) has another {name} than the sample at this position: {text!r:.60}"
                )


def _require_own_measure(store: Store, measure: str, measure_id: str) -> None:
    meant = store.find_name("measure", measure)
    rated = store.find_name("rating", measure)
    if rated is not None or meant not in (None, measure_id):
        raise SelectionError(f"{measure} is a measure that is computed here; import under another --measure name")


def _require_same(
    conn: Connection, measure: str, measure_id: str, model_id: str, values: Mapping[str, float | None]
) -> None:
    sql = "SELECT variant_id, value FROM value WHERE measure_id = ? AND model_id = ?"
    there = {row[0]: row[1] for row in conn.exec_driver_sql(sql, (measure_id, model_id))}
    other = sum(1 for variant, value in values.items() if variant in there and there[variant] != value)
    if other:
        raise SelectionError(
            f"{measure} already has different numbers for {other} of these variants under this model; import under another --model name"
        )


def _model_id(store: Store, conn: Connection, model: str) -> str:
    """Return the id of the student or teacher of that name; a new name becomes a recorded teacher."""
    for kind in ("student", "teacher"):
        if (known := store.find_name(kind, model)) is not None:
            return known
    identity = {"provider": "recorded", "model": model}
    key = content_id("teacher", identity, length=IDENTITY_LENGTH)
    store.insert(conn, [TeacherRow(key, model, "recorded", model, canonical_json(identity), utc_now())])
    store.ensure_name(conn, "teacher", model, key)
    return key


# -- answers


def add_answers(store: Store, path: Path, *, author: str, dataset: str, field: str | None = None) -> AddedAnswers:
    """Store the answers in `path` to the questions of `dataset` as variants of kind `answer`, by the model called `author`.

    SelectionError if the rows do not match the dataset, or if this author has other answers to these questions already.
    """
    if not author.strip() or "/" in author:
        raise SelectionError(f"{author!r} is no name of an author: give one without a slash, such as --author my-7b")
    dataset = identities.find_dataset(store, dataset)
    origins = variants_at(store, dataset, ORIGIN, None)
    answers = list(read_answers(path, field))
    require_rows(store, path, dataset, len(answers))
    require_texts(path, answers, origins)
    parameters = {"author": author}
    augmentation = content_id("augmentation", ANSWERS, VERSION, 0, parameters, length=IDENTITY_LENGTH)
    round = derivations.Round(augmentation, ANSWERS, (ORIGIN,), 0)
    first: dict[str, derivations.Made] = {}
    for each in _made(round, answers, origins):
        first.setdefault(each.derivation_id, each)  # a question at two positions has one answer
    made = list(first.values())
    there = {
        row.derivation_id: row.output
        for row in store.rows(
            """
            SELECT v.derivation_id, v.output FROM variant v JOIN derivation d ON d.derivation_id = v.derivation_id
            WHERE d.augmentation_id = :augmentation
            """,
            augmentation=augmentation,
        )
    }
    for each in made:
        assert each.texts is not None
        if there.get(each.derivation_id, each.texts.output) != each.texts.output:
            raise SelectionError(
                f"{author} already has another answer to a question of {path}; give the new answers another --author name"
            )
    new = [each for each in made if each.derivation_id not in there]
    with store.write() as conn:
        row = AugmentationRow(augmentation, author, ANSWERS, VERSION, 0, canonical_json(parameters), utc_now())
        store.insert(conn, [row])
        store.ensure_name(conn, "augmentation", f"{ANSWER}/{author}", augmentation)
    derivations.add(store, round, new, set())
    return AddedAnswers(author, dataset, len(answers), len(new), len(made) - len(new))


def _made(
    round: derivations.Round, answers: Sequence[Answered], origins: Mapping[int, SQLRow]
) -> list[derivations.Made]:
    found = []
    for row in answers:
        origin = origins.get(row.position)
        if origin is not None:
            texts = Texts(origin.instruction, origin.input, row.answer)
            members = (origin.variant_id,)
            found.append(derivations.Made(round, members, origin.sample_id, ANSWER, texts, None, "{}"))
    return found

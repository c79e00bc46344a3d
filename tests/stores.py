"""Rows for tests of the store: samples, replies, readings and losses, made without a teacher or a student."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import VERSION, Kind, Step
from recycledb.options import augmentation_id_of
from recycledb.schema import Texts, canonical_json, content_id, random_id, utc_now, variant_id
from recycledb.store import Store
from recycledb.store.derivations import derivation_id_of
from recycledb.store.duplicates import pool_sha256, search_id_of
from recycledb.store.marks import mark_id_of
from recycledb.store.measures import Need, add_facts, facts_of, lacking_facts
from recycledb.store.pending import Scope, Wanted
from recycledb.store.places import Place, replace_places
from recycledb.store.questions import pending_questions
from recycledb.store.replies import add_readings, add_replies
from recycledb.store.rows import (
    AugmentationRow,
    BatchEventRow,
    BatchRow,
    DatasetImportRow,
    DerivationMemberRow,
    DerivationRow,
    DuplicatePoolRow,
    DuplicateSearchRow,
    EmbeddingRow,
    ExtractionRow,
    LossRow,
    MarkRow,
    MeasureRow,
    NearDuplicateRow,
    OrderingItemRow,
    OrderingRow,
    PromptRow,
    RatingRow,
    ReadoutRow,
    ReplyRow,
    SelectionItemRow,
    SelectionRow,
    StudentRow,
    TeacherMeasureRow,
    TeacherRow,
    ValueRow,
    VariantRow,
)
from recycledb.sync.measures import measure_id_of
from recycledb.sync.raters import teacher_measure_id_of

TEACHER = "7ea000000001"
STUDENT = "57d000000001"
PROMPTS = {step: content_id("prompt", step, length=12) for step in Step}
EXTRACTOR = VERSION
VERSIONS = dict.fromkeys(Step, EXTRACTOR)
ALL_STEPS = tuple(Step)


@dataclass(frozen=True)
class Answered:
    """What came of a question: the reply's id, and the variant that was read from it, if any."""

    text_id: str
    variant_id: str | None


def texts(word: object, *, with_input: bool = False) -> Texts:
    """Return the texts of a sample that differs from others by `word`."""
    return Texts(f"Explain {word}.", f"About {word}" if with_input else "", f"{word} is explained.")


def places(samples: Iterable[Texts]) -> list[Place]:
    """Return samples as places, one after the other from 0."""
    return [Place(position, sample) for position, sample in enumerate(samples)]


def add_samples(store: Store, samples: Iterable[Texts], dataset: str = "d") -> list[str]:
    """Make `samples` a dataset and return their ids in order."""
    with store.write() as conn:
        replace_places(store, conn, dataset, places(samples))
    sql = "SELECT sample_id FROM dataset_samples WHERE dataset = :d ORDER BY position"
    return [row[0] for row in store.rows(sql, d=dataset)]


def wanted(steps: Sequence[Step] = ALL_STEPS, **more: Any) -> Wanted:
    """Return what a configuration with these steps asks of the teacher that `register` writes."""
    return Wanted(TEACHER, {step: PROMPTS[step] for step in steps}, **more)


def register(store: Store) -> None:
    """Write a teacher, its prompts, a student and the names that mean them."""
    now = utc_now()
    with store.write() as conn:
        store.insert(conn, [TeacherRow(TEACHER, "gpt", "openai", "gpt-test", "{}", now)])
        store.insert(conn, [student_row(STUDENT, "7b", parameters=7_000_000_000)])
        store.insert(conn, [PromptRow(key, step.value, f"do {step}", "built in", now) for step, key in PROMPTS.items()])
        store.ensure_name(conn, "teacher", "gpt", TEACHER)
        store.ensure_name(conn, "student", "7b", STUDENT)
        store.ensure_name(conn, "extractor", "extractor", str(EXTRACTOR))
        for step, key in PROMPTS.items():
            store.ensure_name(conn, "prompt", step.value, key)


def student_row(student_id: str, name: str, **more: Any) -> StudentRow:
    """Return a student's row; `more` are the fields that matter to a test."""
    row = StudentRow(student_id, name, f"org/{name}", "abc", "vicuna", 2048, "float32", None, created_at=utc_now())
    return row._replace(**more)


def made_row(
    sample: str, kind: str, parent: str, text_id: str, texts: Texts, *, teacher: str = TEACHER, prompt: str
) -> VariantRow:
    """Return the variant that a teacher's reply holds."""
    return VariantRow(
        variant_id=variant_id(sample, kind, texts, parent, text_id),
        sample_id=sample,
        kind=str(kind),
        parent_id=parent,
        text_id=text_id,
        teacher_id=teacher,
        prompt_id=prompt,
        **texts._asdict(),
        created_at=utc_now(),
    )


def reply_row(text_id: str, variant: str, step: str, prompt: str, **more: Any) -> ReplyRow:
    """Return a complete reply's row; `more` are the fields that matter to a test."""
    row = ReplyRow(
        text_id=text_id,
        attempt_id=text_id,
        variant_id=variant,
        step=str(step),
        teacher_id=TEACHER,
        prompt_id=prompt,
        number=1,
        status="ok",
        text="",
        finish_reason="stop",
        served_model=None,
        request_id=None,
        prompt_tokens=1,
        completion_tokens=1,
        cost_usd=0.0,
        error=None,
        duration_ms=1,
        created_at=utc_now(),
    )
    return row._replace(**more)


MAKES = {
    (Step.COMPRESS, Kind.ORIGIN): Kind.COMPRESSED,
    (Step.REFLECT_INSTRUCTION, Kind.ORIGIN): Kind.REFLECT_INSTRUCTION,
    (Step.REFLECT_INSTRUCTION, Kind.COMPRESSED): Kind.REFLECT_INSTRUCTION,
    (Step.REFLECT_RESPONSE, Kind.ORIGIN): Kind.REFLECT_RESPONSE,
    (Step.REFLECT_RESPONSE, Kind.REFLECT_INSTRUCTION): Kind.REFLECT_BOTH,
}


def reply(store: Store, question: Any, status: str = "ok", *, number: int = 1, attempt_id: str | None = None) -> str:
    """Store a reply to a pending question and return its id."""
    text = f"{question.step} of {question.instruction}" if status == "ok" else None
    key = content_id("reply", question.variant_id, question.step, number, text)
    row = reply_row(
        key,
        question.variant_id,
        question.step,
        question.prompt_id,
        attempt_id=attempt_id or random_id(),
        number=number,
        status=status,
        text=text,
        served_model="gpt-test-1",
        request_id="req-1",
        prompt_tokens=11,
        completion_tokens=7,
        cost_usd=0.25,
        error=None if status == "ok" else "refused: no",
        duration_ms=12,
    )
    add_replies(store, [row])
    return key


def read(store: Store, question: Any, text_id: str, *, usable: bool = True, extractor: int = EXTRACTOR) -> str | None:
    """Store an extractor's verdict on a reply; return the variant that it found."""
    now = utc_now()
    if not usable:
        add_readings(store, [ExtractionRow(text_id, extractor, None, "no_marker", now)], [])
        return None
    kind = MAKES[Step(question.step), Kind(question.kind)]
    made = Texts(f"{kind}: {question.instruction}", "", f"{kind}: {question.output}")
    row = made_row(question.sample_id, kind, question.variant_id, text_id, made, prompt=question.prompt_id)
    add_readings(store, [ExtractionRow(text_id, extractor, row.variant_id, None, now)], [row])
    return row.variant_id


def answer(store: Store, question: Any) -> Answered:
    """Answer a pending question with a usable reply, and read it."""
    text_id = reply(store, question)
    return Answered(text_id, read(store, question, text_id))


def answer_all(store: Store, want: Wanted, samples: Sequence[str]) -> int:
    """Answer questions until none is pending; return how many there were."""
    count = 0
    while asked := pending_questions(store, want, samples):
        for question in asked:
            answer(store, question)
            count += 1
    return count


def losses(variant: str, student: str = STUDENT, value: float = 2.0, tokens: int = 4) -> list[LossRow]:
    """Return the four statistics of a variant, each a little larger than the one before."""
    return [
        loss_row(student, variant, stat, value * (1 + i / 10), tokens, pair_id=f"{variant[:20]}{i}")
        for i, stat in enumerate(Stat)
    ]


def loss_row(student: str, variant: str, stat: str, loss_sum: float | None, n_tokens: int = 1, **more: Any) -> LossRow:
    """Return a statistic; `more` are the fields that matter to a test."""
    row = LossRow(student, variant, str(stat), loss_sum, n_tokens, False, False, "ok", pair_id=None, kernel="test")
    return row._replace(**more)


def pending_scores(
    store: Store, want: Wanted | None, student: str, stats: Sequence[str], samples: Sequence[str]
) -> Sequence[Any]:
    """Return the variants of these samples that lack statistics under a student, with how many are present."""
    return lacking_facts(store, Need(Scope(want), student, tuple(stats)), samples)


def present_stats(store: Store, student: str, variants: Sequence[str]) -> set[tuple[str, str]]:
    """Return the (variant, stat) that a student has among these variants."""
    found = facts_of(store, Need(Scope(None), student, tuple(Stat)), variants)
    return {(variant, stat) for variant, facts in found.items() for stat in facts.losses}


def extra(**fields: Any) -> str:
    """Return a place's other fields as the store has them."""
    return canonical_json(fields)


def derive(store: Store, conn: Any, samples: Sequence[str], name: str) -> str:
    """Write a row of every table that steps other than reflection fill; return the variant that two origins were made into."""
    now = "2026-01-01T00:00:00.000000Z"
    origins = conn.exec_driver_sql("SELECT sample_id, variant_id FROM variant WHERE kind = 'origin'").fetchall()
    members = [dict(map(tuple, origins))[sample] for sample in samples]
    [text_id], [prompt], [student], [teacher] = (
        conn.exec_driver_sql(f"SELECT min({key}) FROM {table}").fetchone()
        for key, table in (
            ("text_id", f"extraction WHERE extractor = {EXTRACTOR}"),
            ("prompt_id", "prompt"),
            ("student_id", "student"),
            ("teacher_id", "teacher"),
        )
    )
    measure, parameters = measure_id_of(f"m-{name}", "digits", 1, "{}"), {"name": name, "of": ["origin"]}
    augmentation = augmentation_id_of("pair", 1, 0, parameters)
    derivation = derivation_id_of(augmentation, 0, members)
    made = Texts(f"Both of {name}", "", "both")
    key = variant_id(samples[0], "pair", made, members[0], derivation)
    ordering = content_id("ordering", "random", 1, canonical_json(parameters), "00" * 32)
    rows = (
        RatingRow(text_id, EXTRACTOR, members[0], "score", 4.0, now),
        MeasureRow(measure, f"m-{name}", "digits", 1, "{}", now),
        ReadoutRow(
            *(student, prompt, members[0], ""),
            *(-0.5, -1.0, *[None] * 8),
            n_tokens=9,
            merged=False,
            status="ok",
            pair_id=None,
            kernel="test",
        ),
        EmbeddingRow(student, "mean", "whole", members[0], b"\0\0\x80?", 2.5, 9, False, "ok", None, "test"),
        ValueRow(measure, student, members[0], "", 0.5, "ok"),
        OrderingRow(ordering, "random", 1, canonical_json(parameters), "00" * 32, 1, now),
        OrderingItemRow(ordering, 1, members[0], 0.5, "first"),
        rater_row(name, teacher, prompt),
        mark_row(samples[0], members[0], f"of {name}"),
        AugmentationRow(augmentation, f"a-{name}", "pair", 1, 0, canonical_json(parameters), now),
        DerivationRow(derivation, augmentation, 0, "{}", None, now),
        VariantRow(key, samples[0], "pair", members[0], None, None, None, *made, now, derivation_id=derivation),
        *(DerivationMemberRow(derivation, ordinal, member) for ordinal, member in enumerate(members)),
    )
    store.insert(conn, rows)
    duplicate(store, conn, samples)
    return key


def rater_row(name: str, teacher: str, prompt: str) -> TeacherMeasureRow:
    """Return the row of a rating measure."""
    row = TeacherMeasureRow("", f"r-{name}", "rating", teacher, prompt, "", "", 0.0, 5.0, utc_now())
    return row._replace(measure_id=teacher_measure_id_of(row))


def mark_row(sample: str, variant: str | None, note: str = "", **more: Any) -> MarkRow:
    """Return the row of a mark; `more` are the fields that matter to a test."""
    row = MarkRow("", sample, variant, "keep", note, "ann", "2026-01-01T00:00:00.000000Z", '{"page":"command"}')
    row = row._replace(**more)
    return row._replace(mark_id=mark_id_of(row._asdict()))


def duplicate(store: Store, conn: Any, samples: Sequence[str]) -> None:
    """Write two samples as near-duplicates, by a search that is in use."""
    now = "2026-01-01T00:00:00.000000Z"
    search = search_id_of("minhash", 1, "{}")
    first, second = sorted(samples)
    rows = (
        DuplicateSearchRow(search, "minhash", 1, "{}", now),
        DuplicatePoolRow(search, pool_sha256([first, second]), 2, now),
        NearDuplicateRow(search, first, second, 0.75),
    )
    store.insert(conn, rows)
    store.ensure_name(conn, "duplicate_search", "duplicates", search)


def import_row(dataset: str, rows: int, **more: Any) -> DatasetImportRow:
    """Return the row of an `add`; `more` are the fields that matter to a test."""
    row = DatasetImportRow(random_id(), dataset, "d.json", "alpaca", "00" * 32, rows, 0, 0, added_at=utc_now())
    return row._replace(**more)


def selection_row(selection_id: str, name: str, **more: Any) -> SelectionRow:
    """Return a recorded selection; `more` are the fields that matter to a test."""
    row = SelectionRow(selection_id, name, "cherry", "SELECT …", "{}", "0001", 0, "{}", "00", created_at=utc_now())
    return row._replace(**more)


def fill(store: Store, dataset: str = "d") -> None:
    """Put two samples through every step, score them and select one: a row in every table and view."""
    register(store)
    one, two = texts(f"{dataset} one"), texts(f"{dataset} two", with_input=True)
    ids = add_samples(store, [one, two], dataset)
    answer_all(store, wanted(), ids)
    marks = {f"s{i}": sample for i, sample in enumerate(ids)}
    sql = "SELECT variant_id FROM variant WHERE kind <> 'compressed' AND sample_id IN (:s0, :s1) ORDER BY variant_id"
    for row in store.rows(sql, **marks):
        add_facts(store, losses(row[0]))
    now = "2026-01-01T00:00:00.000000Z"
    selection = content_id("selection", dataset, length=12)
    with store.write() as conn:
        row = import_row(dataset, 2, import_id=f"import-{dataset}", sha256="00", added_at=now)
        store.insert(conn, [row, selection_row(selection, f"best-{dataset}", rows=1, created_at=now)])
        origin = variant_id(ids[0], Kind.ORIGIN, one)
        store.insert(conn, [SelectionItemRow(selection, 0, origin, 0.5, "the best")])
        store.ensure_name(conn, "selection", f"best-{dataset}", selection)
        derive(store, conn, ids, dataset)
        batch = f"batch-{dataset}"
        store.insert(conn, [BatchRow(batch, TEACHER, "a worker", now), BatchEventRow(batch, now, "taken", "batch_1")])


VIEWS = (
    *("datasets", "dataset_samples", "samples", "teachers", "prompts", "teacher_texts", "extractions", "variants"),
    *("students", "losses", "scores", "selections", "selection_items", "current_names", "batches"),
    *(
        "current_variants",
        "sample_order",
        "sample_scores",
        "ratings",
        "readouts",
        "measures",
        "derivations",
        "derivation_members",
    ),
    *("near_duplicates", "duplicate_groups", "embeddings", "orderings", "ordering_items", "teacher_measures"),
    "marks",
)
# Those that a store may have no row of: `fill` judges no pair, and its teacher has one row.
EMPTY_VIEWS = ("judgements", "teacher_aliases", "alias_replies")

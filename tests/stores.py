"""Rows for tests of the store: samples, replies, readings and losses, made without a teacher or a student."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recycledb.config import augmentation_id_of
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind, Step
from recycledb.schema import Texts, canonical_json, content_id, random_id, utc_now, variant_id
from recycledb.store import Place, Store
from recycledb.store.derivations import derivation_id_of
from recycledb.store.pending import Wanted

TEACHER = "7ea000000001"
STUDENT = "57d000000001"
PROMPTS = {step: content_id("prompt", step, length=12) for step in Step}
EXTRACTOR = 1
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
    return [(position, sample, "{}") for position, sample in enumerate(samples)]


def add_samples(store: Store, samples: Iterable[Texts], dataset: str = "d") -> list[str]:
    """Make `samples` a dataset and return their ids in order."""
    with store.write() as conn:
        store.replace_places(conn, dataset, places(samples))
    sql = "SELECT sample_id FROM dataset_samples WHERE dataset = :d ORDER BY position"
    return [row[0] for row in store.rows(sql, d=dataset)]


def wanted(steps: Sequence[Step] = ALL_STEPS, **more: Any) -> Wanted:
    """Return what a configuration with these steps asks of the teacher that `register` writes."""
    return Wanted(TEACHER, {step: PROMPTS[step] for step in steps}, **more)


def register(store: Store) -> None:
    """Write a teacher, its prompts, a student and the names that mean them."""
    now = utc_now()
    with store.write() as conn:
        store.insert(conn, "teacher", [(TEACHER, "gpt", "openai", "gpt-test", "{}", now)])
        store.insert(conn, "student", [(STUDENT, "7b", "org/7b", "abc", "vicuna", 2048, "float32", 7_000_000_000, now)])
        store.insert(
            conn, "prompt", [(key, step.value, f"do {step}", "built in", now) for step, key in PROMPTS.items()]
        )
        store.ensure_name(conn, "teacher", "gpt", TEACHER)
        store.ensure_name(conn, "student", "7b", STUDENT)
        store.ensure_name(conn, "extractor", "extractor", str(EXTRACTOR))
        for step, key in PROMPTS.items():
            store.ensure_name(conn, "prompt", step.value, key)


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
    error = None if status == "ok" else "refused: no"
    ends = ("stop", "gpt-test-1", "req-1", 11, 7, 0.25, error, 12, utc_now())
    asked = (question.variant_id, question.step, TEACHER, question.prompt_id)
    store.add_replies([(key, attempt_id or random_id(), *asked, number, status, text, *ends)])
    return key


def read(store: Store, question: Any, text_id: str, *, usable: bool = True, extractor: int = EXTRACTOR) -> str | None:
    """Store an extractor's verdict on a reply; return the variant that it found."""
    now = utc_now()
    if not usable:
        store.add_readings([(text_id, extractor, None, "no_marker", now)], [])
        return None
    kind = MAKES[Step(question.step), Kind(question.kind)]
    made = Texts(f"{kind}: {question.instruction}", "", f"{kind}: {question.output}")
    key = variant_id(question.sample_id, kind, made, question.variant_id, text_id)
    whence = (question.sample_id, kind.value, question.variant_id, text_id, TEACHER, question.prompt_id)
    store.add_readings([(text_id, extractor, key, None, now)], [(key, *whence, *made, now)])
    return key


def answer(store: Store, question: Any) -> Answered:
    """Answer a pending question with a usable reply, and read it."""
    text_id = reply(store, question)
    return Answered(text_id, read(store, question, text_id))


def answer_all(store: Store, want: Wanted, samples: Sequence[str]) -> int:
    """Answer questions until none is pending; return how many there were."""
    count = 0
    while asked := store.pending_questions(want, samples):
        for question in asked:
            answer(store, question)
            count += 1
    return count


def losses(variant: str, student: str = STUDENT, value: float = 2.0, tokens: int = 4) -> list[tuple[Any, ...]]:
    """Return the four statistics of a variant, each a little larger than the one before."""
    return [
        (student, variant, stat.value, value * (1 + i / 10), tokens, False, False, "ok", f"{variant[:20]}{i}", "test")
        for i, stat in enumerate(Stat)
    ]


def extra(**fields: Any) -> str:
    """Return a place's other fields as the store has them."""
    return canonical_json(fields)


def derive(store: Store, conn: Any, samples: Sequence[str], name: str) -> str:
    """Write a row of every table that steps other than reflection fill; return the variant that two origins were made into."""
    now = "2026-01-01T00:00:00.000000Z"
    origins = conn.exec_driver_sql("SELECT sample_id, variant_id FROM variant WHERE kind = 'origin'").fetchall()
    members = [dict(map(tuple, origins))[sample] for sample in samples]
    text_id = conn.exec_driver_sql("SELECT min(text_id) FROM reply").fetchone()[0]
    measure, parameters = content_id("measure", name, length=12), {"name": name, "of": ["origin"]}
    augmentation = augmentation_id_of("pair", 1, 0, parameters)
    derivation = derivation_id_of(augmentation, 0, members)
    made = Texts(f"Both of {name}", "", "both")
    key = variant_id(samples[0], "pair", made, members[0], derivation)
    for table, row in (
        ("rating", (text_id, 1, members[0], "score", 4.0, now)),
        ("measure", (measure, f"m-{name}", "digits", 1, "{}", now)),
        (
            "readout",
            (STUDENT, PROMPTS[Step.COMPRESS], members[0], "", -0.5, -1.0, *[None] * 8, 9, False, "ok", None, "test"),
        ),
        ("value", (measure, STUDENT, members[0], "", 0.5, "ok")),
        ("augmentation", (augmentation, f"a-{name}", "pair", 1, 0, canonical_json(parameters), now)),
        ("derivation", (derivation, augmentation, 0, "{}", None, now)),
        ("variant", (key, samples[0], "pair", members[0], None, None, None, *made, now, derivation)),
        *(("derivation_member", (derivation, ordinal, member)) for ordinal, member in enumerate(members)),
    ):
        store.insert(conn, table, [row])
    return key


def fill(store: Store, dataset: str = "d") -> None:
    """Put two samples through every step, score them and select one: a row in every table and view."""
    register(store)
    one, two = texts(f"{dataset} one"), texts(f"{dataset} two", with_input=True)
    ids = add_samples(store, [one, two], dataset)
    answer_all(store, wanted(), ids)
    marks = {f"s{i}": sample for i, sample in enumerate(ids)}
    sql = "SELECT variant_id FROM variant WHERE kind <> 'compressed' AND sample_id IN (:s0, :s1) ORDER BY variant_id"
    for row in store.rows(sql, **marks):
        store.add_losses(losses(row[0]))
    now = "2026-01-01T00:00:00.000000Z"
    selection = content_id("selection", dataset, length=12)
    with store.write() as conn:
        store.insert(conn, "dataset_import", [(f"import-{dataset}", dataset, "d.json", "alpaca", "00", 2, 0, 0, now)])
        row = (selection, f"best-{dataset}", "cherry", "SELECT …", "{}", "0001", 1, "{}", "00", now)
        store.insert(conn, "selection", [row])
        origin = variant_id(ids[0], Kind.ORIGIN, one)
        store.insert(conn, "selection_item", [(selection, 0, origin, 0.5, "the best")])
        store.ensure_name(conn, "selection", f"best-{dataset}", selection)
        derive(store, conn, ids, dataset)
        store.insert(conn, "batch", [(f"batch-{dataset}", TEACHER, "a worker", now)])
        store.insert(conn, "batch_event", [(f"batch-{dataset}", now, "taken", "batch_1", None)])


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
)

"""Stores with variants and statistics for tests of selections: made row by row, without a teacher or a student."""

from collections.abc import Iterable, Mapping, Sequence

import stores

from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import VERSION, Kind, Step
from recycledb.schema import Texts, content_id, utc_now, variant_id
from recycledb.store import Store
from recycledb.store.rows import ExtractionRow, PromptRow, ReplyRow, TeacherRow, VariantRow

STEP_OF = {
    Kind.COMPRESSED: Step.COMPRESS,
    Kind.REFLECT_INSTRUCTION: Step.REFLECT_INSTRUCTION,
    Kind.REFLECT_RESPONSE: Step.REFLECT_RESPONSE,
    Kind.REFLECT_BOTH: Step.REFLECT_RESPONSE,
}
EXTRACTOR = VERSION
Means = Mapping[Stat, float | None]


def teacher_id(name: str) -> str:
    """Return the id under which `add_teacher` writes a teacher."""
    return content_id("teacher", name, length=12)


def student_id(name: str) -> str:
    """Return the id under which `add_student` writes a student."""
    return content_id("student", name, length=12)


def add_teachers(store: Store, *names: str) -> None:
    """Write teachers, the prompts and the extractor, with the names that mean them."""
    now = utc_now()
    with store.write() as conn:
        for name in names:
            store.insert(conn, [TeacherRow(teacher_id(name), name, "recorded", name, "{}", now)])
            store.ensure_name(conn, "teacher", name, teacher_id(name))
        for step, key in stores.PROMPTS.items():
            store.insert(conn, [PromptRow(key, step.value, f"do {step}", "built in", now)])
            store.ensure_name(conn, "prompt", step.value, key)
        store.ensure_name(conn, "extractor", "extractor", str(EXTRACTOR))


def add_students(store: Store, *names: str, prompt: str = "vicuna", model: str = "org/model") -> None:
    """Write students and the names that mean them."""
    with store.write() as conn:
        for name in names:
            store.insert(conn, [stores.student_row(student_id(name), name, model=model, prompt=prompt)])
            store.ensure_name(conn, "student", name, student_id(name))


_TEXTS = "SELECT instruction, input, output FROM sample WHERE sample_id = :s"


def origin_of(store: Store, sample: str) -> str:
    """Return the id of a sample's origin."""
    return variant_id(sample, Kind.ORIGIN, Texts(*store.rows(_TEXTS, s=sample)[0]))


Made = tuple[str, ReplyRow, VariantRow, ExtractionRow]  # with the variant's id


def make_variant(
    sample: str,
    kind: Kind,
    parent: str,
    teacher: str = "gpt",
    mark: str = "",
    prompts: Mapping[Step, str] = stores.PROMPTS,
) -> Made:
    """Return the rows of a variant; `mark` makes another one of the same kind."""
    now = utc_now()
    step = STEP_OF[kind]
    made = Texts(f"{kind} of {sample[:6]}", "", f"{teacher}{mark} answers {sample[:6]}")
    text_id = content_id("reply", parent, kind, teacher, mark, prompts[step])
    reply = stores.reply_row(text_id, parent, step, prompts[step], teacher_id=teacher_id(teacher), text=made.output)
    row = stores.made_row(sample, kind, parent, text_id, made, teacher=reply.teacher_id, prompt=prompts[step])
    return row.variant_id, reply, row, ExtractionRow(text_id, EXTRACTOR, row.variant_id, None, now)


def write_variants(store: Store, made: Sequence[Made]) -> None:
    """Write variants with the replies that they come from."""
    with store.write() as conn:
        store.insert(conn, [variant for _, _, variant, _ in made])
        store.insert(conn, [reply for _, reply, _, _ in made])
        store.insert(conn, [extraction for *_, extraction in made])


def add_variant(store: Store, sample: str, kind: Kind, parent: str, *, teacher: str = "gpt", mark: str = "") -> str:
    """Write one variant and return its id."""
    made = make_variant(sample, kind, parent, teacher, mark)
    write_variants(store, [made])
    return made[0]


def add_all_kinds(
    store: Store,
    samples: Sequence[str],
    *,
    teacher: str = "gpt",
    mark: str = "",
    prompts: Mapping[Step, str] = stores.PROMPTS,
) -> list[dict[Kind, str]]:
    """Write each scored kind of each sample and return their ids."""
    found, rows = [], []
    for sample in samples:
        origin = origin_of(store, sample)
        q = make_variant(sample, Kind.REFLECT_INSTRUCTION, origin, teacher, mark, prompts)
        a = make_variant(sample, Kind.REFLECT_RESPONSE, origin, teacher, mark, prompts)
        qa = make_variant(sample, Kind.REFLECT_BOTH, q[0], teacher, mark, prompts)
        rows += [q, a, qa]
        kinds = (Kind.ORIGIN, Kind.REFLECT_INSTRUCTION, Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH)
        found.append(dict(zip(kinds, (origin, q[0], a[0], qa[0]), strict=True)))
    write_variants(store, rows)
    return found


def add_losses(store: Store, student: str, means: Mapping[str, Means]) -> None:
    """Write statistics by variant, as means over one token; None is NULL, a missing key is no row."""
    rows = [
        stores.loss_row(student_id(student), variant, stat, mean, status="ok" if mean is not None else "empty")
        for variant, found in means.items()
        for stat, mean in found.items()
    ]
    with store.write() as conn:
        store.insert(conn, rows)


def ratios(ifd: float | None, rifd: float | None = 0.5) -> Means:
    """Return means whose logarithmic ratios are these: IFD is exp(ifd), rIFD is exp(rifd)."""
    return {
        Stat.A_DIRECT: 2.0,
        Stat.A_CONDITION: None if ifd is None else 2.0 + ifd,
        Stat.Q_DIRECT: 2.0,
        Stat.Q_CONDITION: None if rifd is None else 2.0 + rifd,
    }


def use_prompts(store: Store, **steps: str) -> dict[Step, str]:
    """Put other prompts of some steps in use; return all that are in use then."""
    in_use = stores.PROMPTS | {Step(step): key for step, key in steps.items()}
    with store.write() as conn:
        for step, key in in_use.items():
            store.insert(conn, [PromptRow(key, step.value, f"{key}: do {step}", "a file", utc_now())])
            store.ensure_name(conn, "prompt", step.value, key)
    return in_use


def picked(store: Store, selection: str) -> list[str]:
    """Return a recorded selection's variants, in order."""
    rows = store.rows(
        "SELECT variant_id FROM selection_items WHERE selection = :name ORDER BY position", name=selection
    )
    return [row[0] for row in rows]


def two_students(store: Store, words: Iterable[str] = ("apples", "pears", "plums", "figs")) -> list[str]:
    """Write a small scored store: samples with every kind, scored by `7b` and `13b`, who disagree; return the samples."""
    samples = stores.add_samples(store, [stores.texts(word) for word in words])
    add_teachers(store, "gpt")
    add_students(store, "7b", "13b")
    means: dict[str, dict[str, Means]] = {"7b": {}, "13b": {}}
    for number, kinds in enumerate(add_all_kinds(store, samples)):
        step = number * 0.01
        for student, shift in (("7b", 0.0), ("13b", 0.01 if number % 2 else -0.2)):
            means[student] |= {
                kinds[Kind.ORIGIN]: ratios(-0.30 - step + shift, -0.20),
                kinds[Kind.REFLECT_INSTRUCTION]: ratios(-0.31 - step - (-1) ** number * 0.05, -0.25),
                kinds[Kind.REFLECT_RESPONSE]: ratios(-0.15 - step, -0.30),
                kinds[Kind.REFLECT_BOTH]: ratios(-0.05 - step, -0.30 + shift),
            }
    for student, found in means.items():
        add_losses(store, student, found)
    return samples

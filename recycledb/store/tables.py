"""The tables: what the store holds, row by row.

Invariant: these tables equal those that the migrations create, column by column; a test compares them. The last column of every table
except `worker` and `lease` is `digest` (see `recycledb.store.digest`); columns added by later revisions come directly before it.
Table names are singular; users query the views over them, whose names are plural and which `recycledb.migrations` creates.
Only `recycledb.store` imports this module, so that no other module depends on the tables' columns.
"""

from sqlalchemy import BigInteger, Double, Index, Integer
from sqlmodel import Field, SQLModel

metadata = SQLModel.metadata
metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
}

from recycledb.store.rater_tables import TeacherMeasure  # noqa: E402, F401 - after the naming convention

# A token count as a server reports it; SQLite's INTEGER has 64 bits anyway.
_Count = Integer().with_variant(BigInteger(), "duckdb", "postgresql")


class Dataset(SQLModel, table=True):
    """A named list of samples."""

    dataset: str = Field(primary_key=True)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class DatasetImport(SQLModel, table=True):
    """One `add` that changed a dataset, or its removal (format `removed`)."""

    __tablename__ = "dataset_import"

    import_id: str = Field(primary_key=True)
    dataset: str = Field(foreign_key="dataset.dataset", index=True)
    source: str
    format: str
    sha256: str
    rows: int
    rejected: int
    cut: int = Field(description="conversations of which only the first turn pair was used")
    added_at: str
    parts: str | None = Field(
        default=None,
        description="JSON list of the files, in order: path, hash, how read, numbers; NULL in earlier releases",
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Sample(SQLModel, table=True):
    """A distinct sample."""

    sample_id: str = Field(primary_key=True)
    instruction: str
    input: str
    output: str
    created_at: str
    context: str | None = Field(
        default=None, description="JSON list of the messages before the question, with role and content; NULL for none"
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Place(SQLModel, table=True):
    """A sample's position in a dataset, from 0 in source order; `turn` counts the samples that this position has had, from 1."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id", index=True)
    extra: str = Field(
        description="JSON object: the source row's other fields; original_input if the input was a placeholder"
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Closing(SQLModel, table=True):
    """The end of a row of `place`: a later import of the dataset no longer has this sample at this position."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    closed_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Prompt(SQLModel, table=True):
    """The wording of a teacher step (one file's text) or of a readout."""

    prompt_id: str = Field(primary_key=True)
    step: str
    text: str
    source: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Teacher(SQLModel, table=True):
    """A chat model with the parameters that affect its replies."""

    teacher_id: str = Field(primary_key=True)
    name: str
    provider: str
    model: str
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Student(SQLModel, table=True):
    """A model with every setting that affects its losses."""

    student_id: str = Field(primary_key=True)
    name: str
    model: str
    revision: str
    prompt: str
    max_length: int
    dtype: str
    parameters: int | None = Field(sa_type=BigInteger)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Batch(SQLModel, table=True):
    """Questions submitted together to a teacher's batch service; their attempts have it as their worker_id."""

    batch_id: str = Field(primary_key=True)
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    worker_id: str = Field(description="the process that submitted it")
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class BatchEvent(SQLModel, table=True):
    """A change of a batch's status: `submitted`, the status that the service reports, and finally `taken` or `abandoned`."""

    __tablename__ = "batch_event"

    batch_id: str = Field(primary_key=True, foreign_key="batch.batch_id")
    noted_at: str = Field(primary_key=True)
    status: str = Field(primary_key=True)
    remote_id: str | None
    detail: str | None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Attempt(SQLModel, table=True):
    """One request for a question, written before it is sent. It claims the question while its worker is alive and no reply exists."""

    __table_args__ = (Index(None, "variant_id", "step", "teacher_id", "prompt_id"),)

    attempt_id: str = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    step: str
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    number: int
    worker_id: str = Field(index=True, description="the worker that sends it, or the batch")
    sent_at: str
    reserved_usd: float | None = Field(
        default=None, sa_type=Double, description="the most that it can cost; NULL if no price was known"
    )
    others: str | None = Field(
        default=None, description="ids of the further variants shown, in order, joined by commas; NULL for none"
    )
    # The longest reply allowed; 0 for no limit; NULL (before revision 0007): as in its teacher's parameters.
    max_tokens: int | None = None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Reply(SQLModel, table=True):
    """The reply to an attempt: a text, or the error."""

    __table_args__ = (
        # Tells which questions have a reply without reading the texts.
        Index(
            "ix_reply_without_text", "variant_id", "step", "teacher_id", "prompt_id", "status", "created_at", "text_id"
        ),
    )

    text_id: str = Field(primary_key=True)
    attempt_id: str = Field(index=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    step: str
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    number: int
    status: str
    text: str | None
    finish_reason: str | None
    served_model: str | None
    request_id: str | None
    prompt_tokens: int | None = Field(sa_type=_Count)
    completion_tokens: int | None = Field(sa_type=_Count)
    cost_usd: float | None = Field(sa_type=Double)  # plain Float is 32 bits in DuckDB
    error: str | None
    duration_ms: int | None
    created_at: str
    raw: str | None = Field(default=None, description="parts of the server's response that have no column")
    others: str | None = Field(default=None, description="as in attempt")
    digest: int | None = Field(default=None, sa_type=BigInteger)


class RepeatedReply(SQLModel, table=True):
    """An equal reply to another attempt, as merging two stores can give; it was paid for separately."""

    __tablename__ = "repeated_reply"

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    attempt_id: str = Field(primary_key=True, index=True)
    served_model: str | None
    request_id: str | None
    prompt_tokens: int | None = Field(sa_type=BigInteger)
    completion_tokens: int | None = Field(sa_type=BigInteger)
    cost_usd: float | None = Field(sa_type=Double)
    duration_ms: int | None
    raw: str | None
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Variant(SQLModel, table=True):
    """A version of a sample: the sample as imported, or the result of a teacher step or a transform."""

    __table_args__ = (
        # The columns that a selection reads, so that it need not read the texts.
        Index(
            "ix_variant_without_texts",
            "variant_id",
            "sample_id",
            "kind",
            "parent_id",
            "text_id",
            "teacher_id",
            "prompt_id",
        ),
        # The same by sample, for finding what is missing.
        Index(
            "ix_variant_of_sample",
            "sample_id",
            "kind",
            "variant_id",
            "parent_id",
            "text_id",
            "teacher_id",
            "prompt_id",
        ),
    )

    variant_id: str = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id")
    kind: str
    parent_id: str | None = Field(foreign_key="variant.variant_id", index=True)
    text_id: str | None = Field(description="the reply; not a foreign key, since replies reference variants")
    teacher_id: str | None = Field(foreign_key="teacher.teacher_id")
    prompt_id: str | None = Field(foreign_key="prompt.prompt_id")
    instruction: str
    input: str
    output: str
    created_at: str
    derivation_id: str | None = Field(
        default=None,
        index=True,
        description="the derivation that made it; NULL for origins and for variants made by teachers",
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Extraction(SQLModel, table=True):
    """What one extractor version read in a reply: a variant, ratings, or the reason why neither."""

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    extractor: int = Field(primary_key=True)
    variant_id: str | None = Field(foreign_key="variant.variant_id")
    reason: str | None
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Loss(SQLModel, table=True):
    """One statistic: the sum of the target tokens' negative log-likelihoods, and their number.

    `pair_id` is a hash of the token sequence and where its target begins, so a student never computes the same sequence twice.
    """

    __table_args__ = (Index(None, "student_id", "pair_id"), {"sqlite_with_rowid": False})

    student_id: str = Field(primary_key=True, foreign_key="student.student_id")
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    stat: str = Field(primary_key=True)
    loss_sum: float | None = Field(sa_type=Double)
    n_tokens: int
    truncated: bool
    merged: bool = Field(description="a token of the joined text straddles the boundary between context and target")
    status: str
    pair_id: str | None
    kernel: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Rating(SQLModel, table=True):
    """A number that one extractor version read in a reply, about one of the variants that the question showed."""

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    extractor: int = Field(primary_key=True)
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    name: str = Field(primary_key=True)
    value: float = Field(sa_type=Double)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Measure(SQLModel, table=True):
    """A student measure: a method's versioned function with its parameters."""

    measure_id: str = Field(primary_key=True)
    name: str
    method: str
    version: int
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Readout(SQLModel, table=True):
    """A student's log-probabilities of up to ten given next tokens after a prompt about a variant."""

    student_id: str = Field(primary_key=True, foreign_key="student.student_id")
    prompt_id: str = Field(primary_key=True, foreign_key="prompt.prompt_id")
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    reference_id: str = Field(
        primary_key=True, description="the variant whose answer the prompt also shows; '' for none"
    )
    lp0: float | None = Field(sa_type=Double)
    lp1: float | None = Field(sa_type=Double)
    lp2: float | None = Field(sa_type=Double)
    lp3: float | None = Field(sa_type=Double)
    lp4: float | None = Field(sa_type=Double)
    lp5: float | None = Field(sa_type=Double)
    lp6: float | None = Field(sa_type=Double)
    lp7: float | None = Field(sa_type=Double)
    lp8: float | None = Field(sa_type=Double)
    lp9: float | None = Field(sa_type=Double)
    n_tokens: int
    merged: bool
    status: str
    pair_id: str | None
    kernel: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Value(SQLModel, table=True):
    """A measure's number for a variant under a model, derived from the facts; computed again if it is missing."""

    measure_id: str = Field(primary_key=True, foreign_key="measure.measure_id")
    model_id: str = Field(primary_key=True)
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    other_id: str = Field(primary_key=True, description="the variant that it is compared with; '' for none")
    value: float | None = Field(sa_type=Double)
    status: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Augmentation(SQLModel, table=True):
    """A transform with its version, seed and parameters; it makes variants without a model."""

    augmentation_id: str = Field(primary_key=True)
    name: str
    method: str
    version: int
    seed: int
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Derivation(SQLModel, table=True):
    """The result of an augmentation for some variants in one round: a variant, which has its id, or the reason why none."""

    derivation_id: str = Field(primary_key=True)
    augmentation_id: str = Field(foreign_key="augmentation.augmentation_id")
    round: int
    parameters: str
    reason: str | None
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class DerivationMember(SQLModel, table=True):
    """One of the variants that a derivation used, in order."""

    __tablename__ = "derivation_member"

    derivation_id: str = Field(primary_key=True, foreign_key="derivation.derivation_id")
    ordinal: int = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id", index=True)
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Embedding(SQLModel, table=True):
    """A unit vector of a text of a variant, from a student's hidden states."""

    student_id: str = Field(primary_key=True, foreign_key="student.student_id")
    pooling: str = Field(primary_key=True)
    part: str = Field(primary_key=True, description="the text: `whole`, `question` or `answer`")
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    vector: bytes | None = Field(description="little-endian 32-bit floats")
    norm: float | None = Field(sa_type=Double, description="the vector's length before it was divided by it")
    n_tokens: int
    truncated: bool
    status: str
    pair_id: str | None
    kernel: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Ordering(SQLModel, table=True):
    """A pool of variants put in order by a method; equal pools and parameters have the same id."""

    ordering_id: str = Field(primary_key=True)
    method: str
    version: int
    parameters: str
    pool_sha256: str = Field(description="SHA-256 of the pool's variant ids")
    pool_size: int
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class OrderingItem(SQLModel, table=True):
    """One variant of an ordering, from rank 1."""

    __tablename__ = "ordering_item"

    ordering_id: str = Field(primary_key=True, foreign_key="ordering.ordering_id")
    rank: int = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    gain: float | None = Field(sa_type=Double)
    reason: str | None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Selection(SQLModel, table=True):
    """A recorded selection: the recipe that was run, and its result."""

    selection_id: str = Field(primary_key=True)
    name: str
    recipe: str
    sql: str
    parameters: str
    store_revision: str
    rows: int
    counts: str
    output_sha256: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class SelectionItem(SQLModel, table=True):
    """One pick of a selection; `position` is its order in the output."""

    __tablename__ = "selection_item"

    selection_id: str = Field(primary_key=True, foreign_key="selection.selection_id")
    position: int = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id", index=True)
    rank: float | None = Field(sa_type=Double)
    reason: str | None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Name(SQLModel, table=True):
    """From `since`, `name` stands for `id`: of a teacher, student, prompt (by step), selection, measure, judging, extractor version …"""

    kind: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    since: str = Field(primary_key=True)
    id: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


from recycledb.store.duplicate_tables import DuplicatePool, DuplicateSearch, NearDuplicate  # noqa: E402, F401
from recycledb.store.mark_tables import Mark  # noqa: E402, F401
from recycledb.store.worker_tables import Lease, Worker  # noqa: E402, F401

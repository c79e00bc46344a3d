"""The tables: what the store holds, row by row.

Invariant: the tables here are what the migrations make, column by column; a test holds the two together. Every table but `worker`
ends in `digest` (see `recycledb.store.digest`); columns that a later revision added stand just before it.
Tables are singular and hold ids; users query the plural views over them, which are made in `recycledb.migrations`.
Only `recycledb.store` imports this module: what a table looks like is its business.
"""

from sqlalchemy import BigInteger, Double, Index, Integer
from sqlmodel import Field, SQLModel

metadata = SQLModel.metadata
metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
}


# A count of tokens, as a server says it; SQLite's INTEGER has 64 bits anyway.
_Count = Integer().with_variant(BigInteger(), "duckdb", "postgresql")


class Dataset(SQLModel, table=True):
    """A name under which samples were added."""

    dataset: str = Field(primary_key=True)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class DatasetImport(SQLModel, table=True):
    """One `add` that changed a dataset."""

    __tablename__ = "dataset_import"

    import_id: str = Field(primary_key=True)
    dataset: str = Field(foreign_key="dataset.dataset", index=True)
    source: str
    format: str
    sha256: str
    rows: int
    rejected: int
    cut: int = Field(description="conversations of which only the first turn pair was taken")
    added_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Sample(SQLModel, table=True):
    """A distinct sample."""

    sample_id: str = Field(primary_key=True)
    instruction: str
    input: str
    output: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Place(SQLModel, table=True):
    """A sample's position in a dataset, counted from 0 in the source; `turn` counts what stood there in turn."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id", index=True)
    extra: str = Field(
        description="JSON object: the source row's other fields; original_input where a placeholder stood"
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Closing(SQLModel, table=True):
    """The end of a place: a later file under the same name no longer has this sample there."""

    dataset: str = Field(primary_key=True, foreign_key="dataset.dataset")
    position: int = Field(primary_key=True)
    turn: int = Field(primary_key=True)
    closed_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Prompt(SQLModel, table=True):
    """The wording of a step, as one file's text."""

    prompt_id: str = Field(primary_key=True)
    step: str
    text: str
    source: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Teacher(SQLModel, table=True):
    """A chat model with the parameters that change its answers."""

    teacher_id: str = Field(primary_key=True)
    name: str
    provider: str
    model: str
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Student(SQLModel, table=True):
    """A model with everything that changes its losses."""

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


class Worker(SQLModel, table=True):
    """A process that asks or scores. Operational: the only rows that change, and never merged into another store."""

    worker_id: str = Field(primary_key=True)
    host: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str
    ended_at: str | None = None


class Batch(SQLModel, table=True):
    """Questions that are handed to a teacher's batch service together; their attempts name it as their worker."""

    batch_id: str = Field(primary_key=True)
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    worker_id: str = Field(description="the process that handed it over")
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class BatchEvent(SQLModel, table=True):
    """What became of a batch: `submitted`, what the service says of it, and last `taken` or `abandoned`."""

    __tablename__ = "batch_event"

    batch_id: str = Field(primary_key=True, foreign_key="batch.batch_id")
    noted_at: str = Field(primary_key=True)
    status: str = Field(primary_key=True)
    remote_id: str | None
    detail: str | None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Attempt(SQLModel, table=True):
    """A question about to be sent. It is the claim on the question as long as its worker lives and no reply is there."""

    __table_args__ = (Index(None, "variant_id", "step", "teacher_id", "prompt_id"),)

    attempt_id: str = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id")
    step: str
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    number: int
    worker_id: str = Field(index=True, description="the worker that asks, or the batch")
    sent_at: str
    reserved_usd: float | None = Field(
        default=None, sa_type=Double, description="the most that it can cost; NULL where no price was known"
    )
    others: str | None = Field(
        default=None,
        description="the further variants that the question shows, in order, joined by commas; NULL for none",
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Reply(SQLModel, table=True):
    """What came back for an attempt: a text, or the reason why there is none."""

    __table_args__ = (
        # Whether a question is answered is known without a look at the texts.
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
    raw: str | None = Field(default=None, description="what the server said that fits no other column")
    others: str | None = Field(default=None, description="as in attempt")
    digest: int | None = Field(default=None, sa_type=BigInteger)


class RepeatedReply(SQLModel, table=True):
    """An equal answer to another attempt, as a merge of two stores brings it: paid for on its own."""

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
    """A text to score: a sample as it came, or what one reply made of another variant of it."""

    __table_args__ = (
        # What a selection reads of a variant, so that it need not read the texts.
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
        # The same from a sample's side, for the walk over what is missing.
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
    text_id: str | None = Field(description="the reply; no foreign key, since replies point at variants")
    teacher_id: str | None = Field(foreign_key="teacher.teacher_id")
    prompt_id: str | None = Field(foreign_key="prompt.prompt_id")
    instruction: str
    input: str
    output: str
    created_at: str
    derivation_id: str | None = Field(
        default=None,
        index=True,
        description="what made it without a reply; NULL for origins and for what teachers made",
    )
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Extraction(SQLModel, table=True):
    """One extractor version's verdict on a reply: the variant that it holds, or why it holds none."""

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    extractor: int = Field(primary_key=True)
    variant_id: str | None = Field(foreign_key="variant.variant_id")
    reason: str | None
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Loss(SQLModel, table=True):
    """One statistic: the sum of the target tokens' negative log-likelihoods, and their number.

    `pair_id` addresses the token sequence and where its target begins, so equal work under one student is found.
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
    """A number that one version read in a reply, about one of the variants that the question showed."""

    text_id: str = Field(primary_key=True, foreign_key="reply.text_id")
    extractor: int = Field(primary_key=True)
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    name: str = Field(primary_key=True)
    value: float = Field(sa_type=Double)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Measure(SQLModel, table=True):
    """A number of variants: a method's versioned function with its parameters."""

    measure_id: str = Field(primary_key=True)
    name: str
    method: str
    version: int
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Readout(SQLModel, table=True):
    """A student's log-probabilities of up to ten chosen next tokens after one prompt about one variant."""

    student_id: str = Field(primary_key=True, foreign_key="student.student_id")
    prompt_id: str = Field(primary_key=True, foreign_key="prompt.prompt_id")
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    reference_id: str = Field(primary_key=True, description="the variant whose answer is shown beside it; '' for none")
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
    """What a measure makes of the facts about a variant under a model; computed again whenever it is missing."""

    measure_id: str = Field(primary_key=True, foreign_key="measure.measure_id")
    model_id: str = Field(primary_key=True)
    variant_id: str = Field(primary_key=True, foreign_key="variant.variant_id")
    other_id: str = Field(primary_key=True, description="the variant that it is compared with; '' for none")
    value: float | None = Field(sa_type=Double)
    status: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Augmentation(SQLModel, table=True):
    """A transform with its version, seed and parameters: what makes variants without a model."""

    augmentation_id: str = Field(primary_key=True)
    name: str
    method: str
    version: int
    seed: int
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Derivation(SQLModel, table=True):
    """What an augmentation did with some variants in one round, or why nothing; the variant it made names it."""

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


class Selection(SQLModel, table=True):
    """A recorded selection: what was run, and what it gave."""

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
    """One picked variant of a selection, in the order in which it is written."""

    __tablename__ = "selection_item"

    selection_id: str = Field(primary_key=True, foreign_key="selection.selection_id")
    position: int = Field(primary_key=True)
    variant_id: str = Field(foreign_key="variant.variant_id", index=True)
    rank: float | None = Field(sa_type=Double)
    reason: str | None
    digest: int | None = Field(default=None, sa_type=BigInteger)


class Name(SQLModel, table=True):
    """From `since` on, `name` means the teacher, student, prompt (by step), selection or extractor `id`."""

    kind: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    since: str = Field(primary_key=True)
    id: str
    digest: int | None = Field(default=None, sa_type=BigInteger)

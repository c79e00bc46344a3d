"""Rows to insert: one NamedTuple per table, so that code outside the store does not depend on the order of columns.

Invariant: the fields of a row are the columns of its table, in the same order, without `digest`, which the store adds; trailing nullable
columns default to None. A test compares them with `recycledb.store.tables`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from recycledb.store.mark_rows import MarkRow
from recycledb.store.rater_rows import TeacherMeasureRow
from recycledb.store.worker_rows import LeaseRow, WorkerRow


class DatasetRow(NamedTuple):
    """A row of `dataset`."""

    dataset: str
    created_at: str


class DatasetImportRow(NamedTuple):
    """A row of `dataset_import`."""

    import_id: str
    dataset: str
    source: str
    format: str
    sha256: str
    rows: int
    rejected: int
    cut: int
    added_at: str
    parts: str | None = None


class SampleRow(NamedTuple):
    """A row of `sample`."""

    sample_id: str
    instruction: str
    input: str
    output: str
    created_at: str
    context: str | None = None


class PlaceRow(NamedTuple):
    """A row of `place`."""

    dataset: str
    position: int
    turn: int
    sample_id: str
    extra: str


class ClosingRow(NamedTuple):
    """A row of `closing`."""

    dataset: str
    position: int
    turn: int
    closed_at: str


class PromptRow(NamedTuple):
    """A row of `prompt`."""

    prompt_id: str
    step: str
    text: str
    source: str
    created_at: str


class TeacherRow(NamedTuple):
    """A row of `teacher`."""

    teacher_id: str
    name: str
    provider: str
    model: str
    parameters: str
    created_at: str


class StudentRow(NamedTuple):
    """A row of `student`."""

    student_id: str
    name: str
    model: str
    revision: str
    prompt: str
    max_length: int
    dtype: str
    parameters: int | None
    created_at: str


class BatchRow(NamedTuple):
    """A row of `batch`."""

    batch_id: str
    teacher_id: str
    worker_id: str
    created_at: str


class BatchEventRow(NamedTuple):
    """A row of `batch_event`."""

    batch_id: str
    noted_at: str
    status: str
    remote_id: str | None = None
    detail: str | None = None


class AttemptRow(NamedTuple):
    """A row of `attempt`."""

    attempt_id: str
    variant_id: str
    step: str
    teacher_id: str
    prompt_id: str
    number: int
    worker_id: str
    sent_at: str
    reserved_usd: float | None = None
    others: str | None = None
    max_tokens: int | None = None


class ReplyRow(NamedTuple):
    """A row of `reply`."""

    text_id: str
    attempt_id: str
    variant_id: str
    step: str
    teacher_id: str
    prompt_id: str
    number: int
    status: str
    text: str | None
    finish_reason: str | None
    served_model: str | None
    request_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    error: str | None
    duration_ms: int | None
    created_at: str
    raw: str | None = None
    others: str | None = None


class RepeatedReplyRow(NamedTuple):
    """A row of `repeated_reply`."""

    text_id: str
    attempt_id: str
    served_model: str | None
    request_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    duration_ms: int | None
    raw: str | None
    created_at: str


class VariantRow(NamedTuple):
    """A row of `variant`."""

    variant_id: str
    sample_id: str
    kind: str
    parent_id: str | None
    text_id: str | None
    teacher_id: str | None
    prompt_id: str | None
    instruction: str
    input: str
    output: str
    created_at: str
    derivation_id: str | None = None


class ExtractionRow(NamedTuple):
    """A row of `extraction`."""

    text_id: str
    extractor: int
    variant_id: str | None
    reason: str | None
    created_at: str


class LossRow(NamedTuple):
    """A row of `loss`."""

    student_id: str
    variant_id: str
    stat: str
    loss_sum: float | None
    n_tokens: int
    truncated: bool
    merged: bool
    status: str
    pair_id: str | None
    kernel: str


class RatingRow(NamedTuple):
    """A row of `rating`."""

    text_id: str
    extractor: int
    variant_id: str
    name: str
    value: float
    created_at: str


class MeasureRow(NamedTuple):
    """A row of `measure`."""

    measure_id: str
    name: str
    method: str
    version: int
    parameters: str
    created_at: str


class ReadoutRow(NamedTuple):
    """A row of `readout`."""

    student_id: str
    prompt_id: str
    variant_id: str
    reference_id: str
    lp0: float | None
    lp1: float | None
    lp2: float | None
    lp3: float | None
    lp4: float | None
    lp5: float | None
    lp6: float | None
    lp7: float | None
    lp8: float | None
    lp9: float | None
    n_tokens: int
    merged: bool
    status: str
    pair_id: str | None
    kernel: str


class ValueRow(NamedTuple):
    """A row of `value`."""

    measure_id: str
    model_id: str
    variant_id: str
    other_id: str
    value: float | None
    status: str


class AugmentationRow(NamedTuple):
    """A row of `augmentation`."""

    augmentation_id: str
    name: str
    method: str
    version: int
    seed: int
    parameters: str
    created_at: str


class DerivationRow(NamedTuple):
    """A row of `derivation`."""

    derivation_id: str
    augmentation_id: str
    round: int
    parameters: str
    reason: str | None
    created_at: str


class DerivationMemberRow(NamedTuple):
    """A row of `derivation_member`."""

    derivation_id: str
    ordinal: int
    variant_id: str


class EmbeddingRow(NamedTuple):
    """A row of `embedding`."""

    student_id: str
    pooling: str
    part: str
    variant_id: str
    vector: bytes | None
    norm: float | None
    n_tokens: int
    truncated: bool
    status: str
    pair_id: str | None
    kernel: str


class OrderingRow(NamedTuple):
    """A row of `ordering`."""

    ordering_id: str
    method: str
    version: int
    parameters: str
    pool_sha256: str
    pool_size: int
    created_at: str


class OrderingItemRow(NamedTuple):
    """A row of `ordering_item`."""

    ordering_id: str
    rank: int
    variant_id: str
    gain: float | None = None
    reason: str | None = None


class DuplicateSearchRow(NamedTuple):
    """A row of `duplicate_search`."""

    duplicate_search_id: str
    method: str
    version: int
    parameters: str
    created_at: str


class DuplicatePoolRow(NamedTuple):
    """A row of `duplicate_pool`."""

    duplicate_search_id: str
    pool_sha256: str
    pool_size: int
    created_at: str


class NearDuplicateRow(NamedTuple):
    """A row of `near_duplicate`."""

    duplicate_search_id: str
    sample_id: str
    other_id: str
    similarity: float


class SelectionRow(NamedTuple):
    """A row of `selection`."""

    selection_id: str
    name: str
    recipe: str
    sql: str
    parameters: str
    store_revision: str
    rows: int
    counts: str
    output_sha256: str
    created_at: str


class SelectionItemRow(NamedTuple):
    """A row of `selection_item`."""

    selection_id: str
    position: int
    variant_id: str
    rank: float | None = None
    reason: str | None = None


class NameRow(NamedTuple):
    """A row of `name`."""

    kind: str
    name: str
    since: str
    id: str


StoredRow = (
    DatasetRow
    | DatasetImportRow
    | SampleRow
    | PlaceRow
    | ClosingRow
    | PromptRow
    | TeacherRow
    | StudentRow
    | WorkerRow
    | LeaseRow
    | BatchRow
    | BatchEventRow
    | AttemptRow
    | ReplyRow
    | RepeatedReplyRow
    | VariantRow
    | ExtractionRow
    | LossRow
    | RatingRow
    | MeasureRow
    | ReadoutRow
    | ValueRow
    | AugmentationRow
    | DerivationRow
    | DerivationMemberRow
    | EmbeddingRow
    | OrderingRow
    | OrderingItemRow
    | DuplicateSearchRow
    | DuplicatePoolRow
    | NearDuplicateRow
    | TeacherMeasureRow
    | MarkRow
    | SelectionRow
    | SelectionItemRow
    | NameRow
)

# By the table's name.
ROWS: Mapping[str, type[StoredRow]] = {
    "dataset": DatasetRow,
    "dataset_import": DatasetImportRow,
    "sample": SampleRow,
    "place": PlaceRow,
    "closing": ClosingRow,
    "prompt": PromptRow,
    "teacher": TeacherRow,
    "student": StudentRow,
    "worker": WorkerRow,
    "lease": LeaseRow,
    "batch": BatchRow,
    "batch_event": BatchEventRow,
    "attempt": AttemptRow,
    "reply": ReplyRow,
    "repeated_reply": RepeatedReplyRow,
    "variant": VariantRow,
    "extraction": ExtractionRow,
    "loss": LossRow,
    "rating": RatingRow,
    "measure": MeasureRow,
    "readout": ReadoutRow,
    "value": ValueRow,
    "augmentation": AugmentationRow,
    "derivation": DerivationRow,
    "derivation_member": DerivationMemberRow,
    "embedding": EmbeddingRow,
    "ordering": OrderingRow,
    "ordering_item": OrderingItemRow,
    "duplicate_search": DuplicateSearchRow,
    "duplicate_pool": DuplicatePoolRow,
    "near_duplicate": NearDuplicateRow,
    "teacher_measure": TeacherMeasureRow,
    "mark": MarkRow,
    "selection": SelectionRow,
    "selection_item": SelectionItemRow,
    "name": NameRow,
}

TABLES: Mapping[type[StoredRow], str] = {row: table for table, row in ROWS.items()}

"""Students side by side: how far their scores and their picks agree.

Invariant: every number is computed from the current variants of samples with an open place; a statistic that is missing
under a student counts as missing, never as a number. Correlations take the variants that have the metric under both.
This module refuses to draw: a `Comparison` holds what pictures need, and `reporting` draws them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """One student's distribution of the metric over one kind of variant."""

    student: str
    kind: str
    n: int  # variants with a value
    missing: int  # variants compared that lack one under this student
    mean: float | None
    median: float | None
    stddev: float | None
    quartile_1: float | None
    quartile_3: float | None
    below_1: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """How alike two students order and value the variants of a kind ("all": of every kind compared)."""

    students: tuple[str, str]
    kind: str
    n: int
    spearman: float | None
    pearson: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two students' top `share` of the variants of a kind have in common."""

    students: tuple[str, str]
    kind: str
    share: float  # of the n variants that both have scored, 0 to 1
    k: int  # places in each top list
    shared: int  # variants in both lists
    overlap: float | None  # shared / k; None where k is 0


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which kind the recipe `selective` picks for a sample under each of two students; "none" where it picks nothing."""

    students: tuple[str, str]
    labels: tuple[str, ...]  # the kinds and "none", the order of both axes
    counts: tuple[tuple[int, ...], ...]  # counts[i][j]: labels[i] under the first student, labels[j] under the second
    agreement: float | None  # share of samples on the diagonal


@dataclass(frozen=True, slots=True)
class Flow:
    """How many samples went from one node of the decision tree to the next under a student.

    Nodes, in order of depth: "samples"; "ifd(Q) > ifd(ori)" or "ifd(Q) <= ifd(ori)" or "not scored"; the candidate
    ("reflect_both", "reflect_instruction", "reflect_response", "origin"); "kept", "ifd not below 1" or "rifd not below 1".
    """

    student: str
    source: str
    target: str
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    """A variant with its value under each student, in their order; None where there is none."""

    variant_id: str
    sample_id: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A variant that the students place far apart."""

    variant_id: str
    sample_id: str
    kind: str
    values: tuple[float, ...]
    percentiles: tuple[float, ...]  # the share of compared variants of its kind with a lower value, 0 to 1
    words: str  # its text's first words


@dataclass(frozen=True)
class Comparison:
    """Everything known about how students agree; `as_dict` leaves the points and their texts out."""

    students: tuple[str, ...]
    metric: str
    kinds: tuple[str, ...]
    top: str  # as given: "5%" or "100"
    dataset: str | None
    teacher: str | None  # whose variants; None where there are none, "best" for the best per sample
    samples: int  # with an open place
    summaries: list[Summary]
    correlations: list[Correlation]
    top_overlaps: list[Overlap]  # at `top`, one a pair and kind
    overlap_curve: list[Overlap]  # as the share grows, kind by kind
    confusions: list[Confusion]  # one a pair
    flows: list[Flow]
    disagreements: list[Disagreement]  # widest first
    points: list[Point]  # every variant compared, in dataset order
    words: dict[str, str]  # variant_id: its text's first words; filled for pictures only

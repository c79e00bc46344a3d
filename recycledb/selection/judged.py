"""The report of a judging: wins, ties and losses of one kind of variants against another, and how far the judge can be trusted.

The winning score is (wins − losses) / pairs + 1, so 1 is a draw (Cherry_LLM). A judge that contradicts itself when the answers change
places gives a tie; such pairs are counted as flipped. The net for the answer shown first is how often it was preferred, less how often
the second one was, over all readings: far from 0, the judge has a preference for a place.

Invariant: it only reads. Pairs with one order missing, or not readable, are undecided and in no other count.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from recycledb.errors import SelectionError
from recycledb.store import Store
from recycledb.suggestions import did_you_mean

_COUNTS = """
    count(j.outcome) AS pairs, coalesce(sum(CASE WHEN j.outcome = 'win' THEN 1 ELSE 0 END), 0) AS wins,
    coalesce(sum(CASE WHEN j.outcome = 'tie' THEN 1 ELSE 0 END), 0) AS ties,
    coalesce(sum(CASE WHEN j.outcome = 'lose' THEN 1 ELSE 0 END), 0) AS losses,
    coalesce(sum(j.flipped), 0) AS flipped, count(*) - count(j.outcome) AS undecided,
    coalesce(sum(coalesce(j.d1, 0) - coalesce(j.d2, 0)), 0) AS first_net, count(j.d1) + count(j.d2) AS readings
"""


@dataclass(frozen=True)
class Tally:
    """The counts of some pairs; wins are those of the judging's first kind."""

    pairs: int
    wins: int
    ties: int
    losses: int
    flipped: int
    undecided: int
    first_net: int  # readings for the answer shown first less those for the second
    readings: int  # of one order each

    @property
    def score(self) -> float | None:
        """The winning score; None without pairs."""
        return (self.wins - self.losses) / self.pairs + 1 if self.pairs else None

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the score for JSON."""
        return {**asdict(self), "score": self.score}


@dataclass(frozen=True)
class JudgeReport:
    """A judging, its counts, and those of the pairs of each dataset."""

    judging: str
    teacher: str
    first: str
    second: str
    all: Tally
    datasets: dict[str, Tally] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "judging": self.judging,
            "teacher": self.teacher,
            "first": self.first,
            "second": self.second,
            **self.all.as_dict(),
            "datasets": {name: tally.as_dict() for name, tally in self.datasets.items()},
        }


def judge_report(store: Store, name: str) -> JudgeReport:
    """Return the report of a judging, of its current pairs. Raises SelectionError where there is none of that name."""
    found = store.rows("""
        SELECT m.measure, m.teacher, m.first_kind, m.second_kind, m.measure_id FROM teacher_measures m
        WHERE m.method = 'judging' AND m.is_current = 1 ORDER BY m.measure
    """)
    named = [row for row in found if row.measure == name]
    if not named:
        known = [str(row.measure) for row in found]
        listed = f"{did_you_mean(name, known)}; there are {', '.join(known)}" if known else ""
        raise SelectionError(
            f"no judging {name!r} in this store{listed}; set [judgings.{name}] in recycledb.toml, then run `recycledb sync --only judge`"
        )
    judging = named[0]
    of = "j.measure_id = :id AND j.is_current = 1"
    [whole] = store.rows(f"SELECT {_COUNTS} FROM judgements j WHERE {of}", id=judging.measure_id)
    parts = store.rows(
        f"""
        SELECT p.dataset, {_COUNTS} FROM judgements j
        JOIN (SELECT DISTINCT dataset, sample_id FROM dataset_samples) p ON p.sample_id = j.sample_id
        WHERE {of} GROUP BY p.dataset ORDER BY p.dataset
        """,
        id=judging.measure_id,
    )
    return JudgeReport(
        judging.measure,
        judging.teacher,
        judging.first_kind,
        judging.second_kind,
        Tally(*map(int, whole)),
        {row[0]: Tally(*map(int, row[1:])) for row in parts},
    )

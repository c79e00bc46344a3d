"""Facts and values of measures: what is missing of them, and what is there.

Invariant: a fact (a row of `loss` or `readout`) is missing or there, and so is a value (a row of `value`); nothing is ever changed. Values
wait for their facts: one is computed when every fact that its measure needs of the variant is there, and needs no model then.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from recycledb.store import SQLRow, Store
from recycledb.store.pending import ALL_SAMPLES, Scope, candidates, listed
from recycledb.store.rows import LossRow, ReadoutRow


class Need(NamedTuple):
    """Facts that are wanted of variants under one student: of which variants, which statistics, which readouts by their prompts."""

    scope: Scope
    student_id: str
    stats: tuple[str, ...]
    prompts: tuple[str, ...] = ()

    @property
    def facts(self) -> int:
        """How many facts a variant has when none is missing."""
        return len(self.stats) + len(self.prompts)

    @property
    def parameters(self) -> dict[str, object]:
        """The values that the statements below bind."""
        return {
            **self.scope.parameters,
            "student": self.student_id,
            **{f"stat_{i}": stat for i, stat in enumerate(self.stats)},
            **{f"readout_{i}": prompt for i, prompt in enumerate(self.prompts)},
        }


class Lacking(NamedTuple):
    """What is missing of a need: variants, facts, and the variants' characters."""

    variants: int
    facts: int
    characters: int


class Facts(NamedTuple):
    """The facts about one variant that are there: losses by statistic, readouts by prompt, each with its status."""

    losses: dict[str, SQLRow]
    readouts: dict[str, SQLRow]


def _present(need: Need, variant: str) -> str:
    """Return SQL for how many of the needed facts a variant has."""
    counts = []
    if need.stats:
        names = ", ".join(f":stat_{i}" for i in range(len(need.stats)))
        counts.append(
            f"(SELECT count(*) FROM loss l WHERE l.student_id = :student AND l.variant_id = {variant} AND l.stat IN ({names}))"
        )
    if need.prompts:
        names = ", ".join(f":readout_{i}" for i in range(len(need.prompts)))
        counts.append(
            f"(SELECT count(*) FROM readout o WHERE o.student_id = :student AND o.variant_id = {variant} "
            f"AND o.reference_id = '' AND o.prompt_id IN ({names}))"
        )
    return " + ".join(counts) or "0"


def _lacking(need: Need, samples: str) -> str:
    return f"""
        {candidates(need.scope, samples)},
        counted AS (SELECT c.variant_id, {_present(need, "c.variant_id")} AS present FROM candidate c),
        lacking AS MATERIALIZED (SELECT * FROM counted WHERE present < {need.facts})
        SELECT v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output, k.present
        FROM lacking k JOIN variant v ON v.variant_id = k.variant_id
    """


def lacking_facts(store: Store, need: Need, samples: Sequence[str]) -> Sequence[SQLRow]:
    """Return the variants of these samples that lack facts, with their texts and how many facts are present."""
    if not samples or not need.facts:
        return []
    sql, values = listed(samples)
    return store.rows(_lacking(need, sql), **need.parameters, **values)


def some_lacking(store: Store, need: Need, number: int) -> Sequence[SQLRow]:
    """Return some of the variants that lack facts, the first by id: ids are hashes."""
    if not need.facts:
        return []
    sql = f"SELECT * FROM ({_lacking(need, ALL_SAMPLES)}) u ORDER BY u.variant_id LIMIT {number}"
    return store.rows(sql, **need.parameters)


def count_lacking(store: Store, need: Need) -> Lacking:
    """Return how much is missing of a need."""
    if not need.facts:
        return Lacking(0, 0, 0)
    length = "length(u.instruction) + length(u.input) + length(u.output)"
    sql = f"SELECT count(*), sum({need.facts} - u.present), sum({length}) FROM ({_lacking(need, ALL_SAMPLES)}) u"
    return Lacking(*(int(number or 0) for number in store.rows(sql, **need.parameters)[0]))


def facts_of(store: Store, need: Need, variants: Sequence[str]) -> dict[str, Facts]:
    """Return the needed facts that are there, by variant."""
    found = {variant: Facts({}, {}) for variant in variants}
    for table, key, names in (("loss", "stat", need.stats), ("readout", "prompt_id", need.prompts)):
        for marks, values in _parts(variants if names else ()):
            sql = f"SELECT * FROM {table} WHERE student_id = :student AND variant_id IN ({marks})"
            more = " AND reference_id = ''" if table == "readout" else ""
            for row in store.rows(sql + more, student=need.student_id, **values):
                facts = found[row.variant_id]
                if getattr(row, key) in names:
                    (facts.losses if table == "loss" else facts.readouts)[getattr(row, key)] = row
    return found


def _parts(ids: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    for start in range(0, len(ids), 500):
        values = {f"v{i}": key for i, key in enumerate(ids[start : start + 500])}
        yield ", ".join(f":{name}" for name in values), values


# -- values


def _valueless(need: Need, samples: str) -> str:
    return f"""
        {candidates(need.scope, samples)},
        valueless AS MATERIALIZED (
            SELECT c.variant_id FROM candidate c
            WHERE NOT EXISTS (
                SELECT 1 FROM value x WHERE x.measure_id = :measure AND x.model_id = :student
                AND x.variant_id = c.variant_id AND x.other_id = ''
            )
            AND {_present(need, "c.variant_id")} >= {need.facts}
        )
    """


def lacking_values(store: Store, need: Need, measure: str, samples: Sequence[str]) -> Sequence[SQLRow]:
    """Return the variants of these samples whose facts are all there and whose value is not."""
    if not samples:
        return []
    those, values = listed(samples)
    sql = f"""
        {_valueless(need, those)}
        SELECT v.variant_id, v.instruction, v.input, v.output FROM valueless k JOIN variant v ON v.variant_id = k.variant_id
    """
    return store.rows(sql, measure=measure, **need.parameters, **values)


def count_values(store: Store, need: Need, measure: str) -> int:
    """Return how many values can be computed from facts that are there."""
    sql = f"{_valueless(need, ALL_SAMPLES)} SELECT count(*) FROM valueless"
    return int(store.rows(sql, measure=measure, **need.parameters)[0][0])


def add_facts(store: Store, facts: Sequence[LossRow | ReadoutRow]) -> None:
    """Commit facts."""
    with store.write() as conn:
        store.insert(conn, facts)


def summary(store: Store) -> Sequence[SQLRow]:
    """Return, for each measure and model, how many values there are of current variants, and how many of them are no number, by why."""
    return store.rows("""
        SELECT measure, model, status, count(*) AS variants, count(value) AS numbers, min(value) AS least, avg(value) AS mean,
            max(value) AS most
        FROM measures WHERE is_current = 1 GROUP BY measure, model, status ORDER BY measure, model, status
    """)

"""Facts and values of student measures: find, count and store them.

Invariant: a fact (a row of `loss` or `readout`) or a value (a row of `value`) either exists or is missing; it never changes. A value is
pending once every fact that its measure needs of the variant exists; computing it needs no model.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from recycledb.store import SQLRow, Store
from recycledb.store.pending import Scope, candidates, context_of, listed, samples_in
from recycledb.store.rows import LossRow, ReadoutRow


class Need(NamedTuple):
    """The facts that a student needs: the variants in scope, the statistics, and the readouts by their prompt ids."""

    scope: Scope
    student_id: str
    stats: tuple[str, ...]
    prompts: tuple[str, ...] = ()

    @property
    def facts(self) -> int:
        """The number of facts of a variant when none is missing."""
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
    """How much of a need is missing: variants, facts, and the variants' characters."""

    variants: int
    facts: int
    characters: int


class Facts(NamedTuple):
    """The existing facts of one variant: rows of `loss` by statistic, rows of `readout` by prompt."""

    losses: dict[str, SQLRow]
    readouts: dict[str, SQLRow]


def _present(need: Need, variant: str) -> str:
    """Return SQL for the number of needed facts that a variant has."""
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
        SELECT v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output, {context_of("v")}, k.present
        FROM lacking k JOIN variant v ON v.variant_id = k.variant_id
    """


def lacking_facts(store: Store, need: Need, samples: Sequence[str]) -> Sequence[SQLRow]:
    """Return the variants of these samples that lack facts, with their texts and the number of facts present."""
    if not samples or not need.facts:
        return []
    sql, values = listed(samples)
    return store.rows(_lacking(need, sql), **need.parameters, **values)


def some_lacking(store: Store, need: Need, number: int) -> Sequence[SQLRow]:
    """Return the first `number` variants by id that lack facts; ids are hashes, so this is a random sample."""
    if not need.facts:
        return []
    sql = f"SELECT * FROM ({_lacking(need, samples_in(need.scope.datasets))}) u ORDER BY u.variant_id LIMIT {number}"
    return store.rows(sql, **need.parameters)


def count_lacking(store: Store, need: Need) -> Lacking:
    """Return how much of a need is missing."""
    if not need.facts:
        return Lacking(0, 0, 0)
    length = "length(u.instruction) + length(u.input) + length(u.output)"
    sql = f"SELECT count(*), sum({need.facts} - u.present), sum({length}) FROM ({_lacking(need, samples_in(need.scope.datasets))}) u"
    return Lacking(*(int(number or 0) for number in store.rows(sql, **need.parameters)[0]))


def facts_of(store: Store, need: Need, variants: Sequence[str]) -> dict[str, Facts]:
    """Return the needed facts that exist, by variant."""
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
    """Return the variants of these samples that have all facts but no value."""
    if not samples:
        return []
    those, values = listed(samples)
    sql = f"""
        {_valueless(need, those)}
        SELECT v.variant_id, v.instruction, v.input, v.output, {context_of("v")}
        FROM valueless k JOIN variant v ON v.variant_id = k.variant_id
    """
    return store.rows(sql, measure=measure, **need.parameters, **values)


def count_values(store: Store, need: Need, measure: str) -> int:
    """Return how many values are pending: all their facts exist."""
    sql = f"{_valueless(need, samples_in(need.scope.datasets))} SELECT count(*) FROM valueless"
    return int(store.rows(sql, measure=measure, **need.parameters)[0][0])


def add_facts(store: Store, facts: Sequence[LossRow | ReadoutRow]) -> None:
    """Commit facts."""
    with store.write() as conn:
        store.insert(conn, facts)


def summary(store: Store) -> Sequence[SQLRow]:
    """Return, by measure, model and status, how many current variants have a row, how many of them a number, and the numbers' range."""
    return store.rows("""
        SELECT measure, model, status, count(*) AS variants, count(value) AS numbers, min(value) AS least, avg(value) AS mean,
            max(value) AS most
        FROM measures WHERE is_current = 1 GROUP BY measure, model, status ORDER BY measure, model, status
    """)

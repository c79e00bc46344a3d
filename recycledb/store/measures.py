"""Facts and values of student measures: find, count and store them.

Invariant: a fact (a row of `loss`, `readout` or `embedding`) or a value (a row of `value`) either exists or is missing; it never
changes. A value is pending once every fact that its measure needs of the variant exists; computing it needs no model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from recycledb.store import SQLRow, Store
from recycledb.store.pending import Scope, candidates, context_of, listed, samples_in
from recycledb.store.rows import EmbeddingRow, LossRow, ReadoutRow


class Need(NamedTuple):
    """The facts that a student needs: the variants in scope, the statistics, the readouts by their prompt ids, the vectors by their keys.

    `reference` is the kind of variant whose output the readouts show, "" for none; then variants of samples without one are left out, and
    so are the references themselves. `origin` is the only variant of its kind; of others the current one with the smallest id is meant.
    Where only vectors are needed (`pairs`), they are those of the variants and of their references.
    """

    scope: Scope
    student_id: str
    stats: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    reference: str = ""

    @property
    def pairs(self) -> bool:
        """Whether the vectors of references are needed too."""
        return bool(self.reference and self.vectors and not self.prompts and not self.stats)

    @property
    def facts(self) -> int:
        """The number of facts of a variant when none is missing."""
        return len(self.stats) + len(self.prompts) + len(self.vectors)

    @property
    def parameters(self) -> dict[str, object]:
        """The values that the statements below bind."""
        return {
            **self.scope.parameters,
            "student": self.student_id,
            **{f"stat_{i}": stat for i, stat in enumerate(self.stats)},
            **{f"readout_{i}": prompt for i, prompt in enumerate(self.prompts)},
            **{f"vector_{i}": key for i, key in enumerate(self.vectors)},
            **({"reference": self.reference} if self.reference else {}),
        }


class Lacking(NamedTuple):
    """How much of a need is missing: variants, facts, and the variants' characters."""

    variants: int
    facts: int
    characters: int


class Facts(NamedTuple):
    """The existing facts of one variant: rows of `loss` by statistic, of `readout` by prompt, of `embedding` by the vector's key."""

    losses: dict[str, SQLRow]
    readouts: dict[str, SQLRow]
    vectors: dict[str, SQLRow]


def _referred(need: Need, samples: str) -> str:
    """Return the CTEs up to `subject`: the variants in the scope, each with the id of its reference, '' for none."""
    first = candidates(need.scope, samples)
    if not need.reference:
        return f"{first}, subject AS (SELECT c.variant_id, '' AS reference_id FROM candidate c)"
    return f"""
        {first},
        reference AS MATERIALIZED (
            SELECT r.sample_id, min(r.variant_id) AS reference_id FROM current_variants r
            WHERE r.kind = :reference AND r.sample_id IN (SELECT sample_id FROM candidate) GROUP BY r.sample_id
        ),
        subject AS (
            SELECT c.variant_id, r.reference_id FROM candidate c JOIN reference r ON r.sample_id = c.sample_id
            WHERE c.variant_id <> r.reference_id
        )
    """


def _present(need: Need, subject: str) -> str:
    """Return SQL for the number of needed facts that a variant has; `subject` is the alias of its row."""
    variant = f"{subject}.variant_id"
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
            f"AND o.reference_id = {subject}.reference_id AND o.prompt_id IN ({names}))"
        )
    if need.vectors:
        names = ", ".join(f":vector_{i}" for i in range(len(need.vectors)))
        counts.append(
            f"(SELECT count(*) FROM embedding b WHERE b.student_id = :student AND b.variant_id = {variant} "
            f"AND b.pooling || '/' || b.part IN ({names}))"
        )
    return " + ".join(counts) or "0"


def _lacking(need: Need, samples: str) -> str:
    bearers = "SELECT variant_id, reference_id FROM subject"
    if need.pairs:  # a vector does not depend on what it is compared with
        bearers = "SELECT variant_id, '' AS reference_id FROM subject UNION SELECT reference_id, '' FROM subject"
    return f"""
        {_referred(need, samples)},
        bearer AS ({bearers}),
        counted AS (SELECT c.variant_id, c.reference_id, {_present(need, "c")} AS present FROM bearer c),
        lacking AS MATERIALIZED (SELECT * FROM counted WHERE present < {need.facts})
        SELECT v.variant_id, v.sample_id, v.kind, v.instruction, v.input, v.output, {context_of("v")}, k.present, k.reference_id,
            coalesce(r.output, '') AS reference
        FROM lacking k JOIN variant v ON v.variant_id = k.variant_id LEFT JOIN variant r ON r.variant_id = k.reference_id
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


def lacking_by_bucket(store: Store, need: Need, digits: int) -> dict[str, Lacking]:
    """Return how much of a need is missing, by what the samples' ids begin with; buckets that lack nothing are left out."""
    if not need.facts:
        return {}
    bucket = f"substr(u.sample_id, 1, {digits})"
    sql = f"""
        SELECT {bucket}, count(*), sum({need.facts} - u.present), 0
        FROM ({_lacking(need, samples_in(need.scope.datasets))}) u GROUP BY {bucket}
    """
    return {row[0]: Lacking(*(int(number) for number in row[1:])) for row in store.rows(sql, **need.parameters)}


def facts_of(store: Store, need: Need, references: Mapping[str, str]) -> dict[str, Facts]:
    """Return the needed facts that exist, by variant; `references` has the id of each variant's reference, '' for none."""
    found = {variant: Facts({}, {}, {}) for variant in references}
    for row in _rows_of(store, "loss", need, references if need.stats else ()):
        if row.stat in need.stats:
            found[row.variant_id].losses[row.stat] = row
    for row in _rows_of(store, "readout", need, references if need.prompts else ()):
        if row.prompt_id in need.prompts and row.reference_id == references[row.variant_id]:
            found[row.variant_id].readouts[row.prompt_id] = row
    for row in _rows_of(store, "embedding", need, references if need.vectors else ()):
        if (key := f"{row.pooling}/{row.part}") in need.vectors:
            found[row.variant_id].vectors[key] = row
    return found


def _rows_of(store: Store, table: str, need: Need, variants: Iterable[str]) -> Iterator[SQLRow]:
    for marks, values in _parts(list(variants)):
        sql = f"SELECT * FROM {table} WHERE student_id = :student AND variant_id IN ({marks})"
        yield from store.rows(sql, student=need.student_id, **values)


def _parts(ids: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    for start in range(0, len(ids), 500):
        values = {f"v{i}": key for i, key in enumerate(ids[start : start + 500])}
        yield ", ".join(f":{name}" for name in values), values


# -- values


def _valueless(need: Need, samples: str, ready: bool = True) -> str:
    """Return the CTEs up to `valueless`: the variants without a value, with `ready` only those whose facts are all there."""
    there = f"{_present(need, 'c')} >= {need.facts}" if ready else "1 = 1"
    if need.pairs and ready:
        there += f" AND (SELECT {_present(need, 'r')} FROM (SELECT c.reference_id AS variant_id) r) >= {need.facts}"
    return f"""
        {_referred(need, samples)},
        valueless AS MATERIALIZED (
            SELECT c.variant_id, c.reference_id FROM subject c
            WHERE NOT EXISTS (
                SELECT 1 FROM value x WHERE x.measure_id = :measure AND x.model_id = :student
                AND x.variant_id = c.variant_id AND x.other_id = c.reference_id
            )
            AND {there}
        )
    """


def lacking_values(store: Store, need: Need, measure: str, samples: Sequence[str]) -> Sequence[SQLRow]:
    """Return the variants of these samples that have all facts but no value."""
    if not samples:
        return []
    those, values = listed(samples)
    sql = f"""
        {_valueless(need, those)}
        SELECT v.variant_id, v.instruction, v.input, v.output, {context_of("v")}, k.reference_id
        FROM valueless k JOIN variant v ON v.variant_id = k.variant_id
    """
    return store.rows(sql, measure=measure, **need.parameters, **values)


def count_values(store: Store, need: Need, measure: str, *, ready: bool = True) -> int:
    """Return how many values are pending: all their facts exist, or without `ready` also those that wait for facts."""
    sql = f"{_valueless(need, samples_in(need.scope.datasets), ready)} SELECT count(*) FROM valueless"
    return int(store.rows(sql, measure=measure, **need.parameters)[0][0])


def add_facts(store: Store, facts: Sequence[LossRow | ReadoutRow | EmbeddingRow]) -> None:
    """Commit facts."""
    store.transact(lambda conn: store.insert(conn, facts), locked=False)


def summary(store: Store) -> Sequence[SQLRow]:
    """Return, by measure, model and status, how many current variants have a row, how many of them a number, and the numbers' range."""
    return store.rows("""
        SELECT measure, model, status, count(*) AS variants, count(value) AS numbers, min(value) AS least, avg(value) AS mean,
            max(value) AS most
        FROM measures WHERE is_current = 1 GROUP BY measure, model, status ORDER BY measure, model, status
    """)

"""Results of transforms: which variants are pending in a round of an augmentation, and the rows of what was made.

Invariant: a derivation never changes. A variant is pending in a round unless it is a member of one of the round's derivations whose
members are all current variants of samples in a dataset. So added samples are grouped among themselves, and if a member's sample leaves
its dataset, the other members are pending again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, text

from recycledb.schema import Texts, canonical_json, content_id, utc_now, variant_id
from recycledb.store import Meaning, Row, SQLRow, Store
from recycledb.store.pending import context_of, named_datasets, samples_in
from recycledb.store.rows import DerivationMemberRow, DerivationRow, VariantRow

KEYS = 2_000  # of one IN list


@dataclass(frozen=True)
class Round:
    """A round of an augmentation, and the kinds of variants that it uses; called, it draws a number (`recycledb.methods.Draw`)."""

    augmentation_id: str
    method: str
    kinds: tuple[str, ...]
    number: int

    def place(self, *key: object) -> bytes:
        """Return the sort key of a variant in this round, or of what else has this key."""
        return hashlib.sha256(canonical_json([self.method, self.augmentation_id, self.number, *key]).encode()).digest()

    def __call__(self, n: int, *key: object) -> int:
        """Return a number from 0 to n - 1 that depends on the augmentation, the round and the key alone."""
        if n < 1:
            raise ValueError(f"draw({n}): n must be at least 1")
        content = canonical_json(["draw", self.augmentation_id, self.number, *key])
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) % n


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a transform for some variants: a new variant, or the reason why none. `sample_id` is the first member's."""

    round: Round
    members: tuple[str, ...]
    sample_id: str
    kind: str
    texts: Texts | None
    reason: str | None
    parameters: str

    @property
    def derivation_id(self) -> str:
        """The content address of the augmentation, the round and the members."""
        return derivation_id_of(self.round.augmentation_id, self.round.number, self.members)


def derivation_id_of(augmentation_id: str, number: int, members: Sequence[str]) -> str:
    """Return the content address of a derivation."""
    return content_id("derivation", augmentation_id, number, *members)


# -- rows


def derivation_row(made: Made, now: str) -> DerivationRow:
    """Return the `derivation` row."""
    return DerivationRow(
        derivation_id=made.derivation_id,
        augmentation_id=made.round.augmentation_id,
        round=made.round.number,
        parameters=made.parameters,
        reason=made.reason,
        created_at=now,
    )


def member_rows(made: Made) -> list[DerivationMemberRow]:
    """Return the `derivation_member` rows."""
    return [DerivationMemberRow(made.derivation_id, ordinal, member) for ordinal, member in enumerate(made.members)]


def variant_row(made: Made, now: str) -> VariantRow | None:
    """Return the `variant` row; None if no variant was made."""
    if made.texts is None:
        return None
    derivation, parent = made.derivation_id, made.members[0]
    key = variant_id(made.sample_id, made.kind, made.texts, parent, derivation)
    return VariantRow(
        variant_id=key,
        sample_id=made.sample_id,
        kind=made.kind,
        parent_id=parent,
        text_id=None,
        teacher_id=None,
        prompt_id=None,
        instruction=made.texts.instruction,
        input=made.texts.input,
        output=made.texts.output,
        created_at=now,
        derivation_id=derivation,
    )


# -- pending variants


def _statement(kinds: Sequence[str], rounds: str, select: str, datasets: Sequence[str] = ()) -> str:
    """Return SQL with the CTEs `source` (the variants that may be used), `asked` and `used`.

    `asked` are the sources of samples in `datasets` (all without), `used` are derivations, and whether all members are sources: of samples
    in any dataset, so that a derivation counts whichever datasets are asked for.
    """
    return f"""
        WITH source AS MATERIALIZED (
            SELECT c.variant_id, c.sample_id FROM current_variants c
            WHERE c.kind IN ({", ".join(f":kind_{i}" for i in range(len(kinds)))}) AND c.sample_id IN ({samples_in()})
        ),
        asked AS MATERIALIZED (
            SELECT s.variant_id FROM source s {f"WHERE s.sample_id IN ({samples_in(datasets)})" if datasets else ""}
        ),
        used AS MATERIALIZED (
            SELECT d.derivation_id, d.round, CASE WHEN count(*) = count(s.variant_id) THEN 1 ELSE 0 END AS counts
            FROM derivation d JOIN derivation_member m ON m.derivation_id = d.derivation_id
            LEFT JOIN source s ON s.variant_id = m.variant_id
            WHERE d.augmentation_id = :augmentation AND {rounds}
            GROUP BY d.derivation_id, d.round
        )
        {select}
    """


def _kinds(kinds: Sequence[str]) -> dict[str, object]:
    return {f"kind_{i}": kind for i, kind in enumerate(kinds)}


def count_waiting(
    store: Store,
    augmentation_id: str,
    kinds: Sequence[str],
    rounds: int,
    as_if: Sequence[Meaning] = (),
    datasets: Sequence[str] = (),
) -> int:
    """Return how many variants are pending, summed over the rounds; `as_if` as in `Store.sandbox`. With `datasets`, of samples in these."""
    sql = _statement(
        kinds,
        "d.round < :rounds",
        """
        SELECT (SELECT count(*) FROM asked) AS sources, (
            SELECT count(*) FROM (
                SELECT DISTINCT u.round, m.variant_id FROM used u JOIN derivation_member m ON m.derivation_id = u.derivation_id
                JOIN asked a ON a.variant_id = m.variant_id
                WHERE u.counts = 1
            ) t
        ) AS taken
        """,
        datasets,
    )
    values = {"augmentation": augmentation_id, "rounds": rounds, **_kinds(kinds), **named_datasets(datasets)}
    with _reading(store, sql, values, as_if) as rows:
        [(sources, taken)] = rows
    return int(sources) * rounds - int(taken)


@contextmanager
def _reading(store: Store, sql: str, values: dict[str, object], as_if: Sequence[Meaning]) -> Iterator[Sequence[Row]]:
    if not as_if:
        yield [tuple(row) for row in store.rows(sql, **values)]
        return
    with store.sandbox(as_if=as_if) as sandbox:
        yield list(sandbox.execute(sql, values)[1])


def waiting(store: Store, round: Round, datasets: Sequence[str] = ()) -> list[str]:
    """Return the pending variants of a round, in its order; with `datasets`, those of samples in these."""
    sql = _statement(
        round.kinds,
        "d.round = :round",
        """
        SELECT a.variant_id FROM asked a WHERE a.variant_id NOT IN (
            SELECT m.variant_id FROM used u JOIN derivation_member m ON m.derivation_id = u.derivation_id WHERE u.counts = 1
        )
        """,
        datasets,
    )
    named = {**_kinds(round.kinds), **named_datasets(datasets)}
    found = store.rows(sql, augmentation=round.augmentation_id, round=round.number, **named)
    return sorted((row[0] for row in found), key=round.place)


def broken(store: Store, round: Round) -> set[str]:
    """Return the derivations of a round of which a member is no longer current, so that the other members are pending again."""
    sql = _statement(round.kinds, "d.round = :round", "SELECT u.derivation_id FROM used u WHERE u.counts = 0")
    found = store.rows(sql, augmentation=round.augmentation_id, round=round.number, **_kinds(round.kinds))
    return {row[0] for row in found}


def texts(store: Store, variants: Sequence[str]) -> dict[str, SQLRow]:
    """Return the sample ids and texts of up to KEYS variants, by variant id."""
    names = {f"v{i}": key for i, key in enumerate(variants)}
    sql = f"""
        SELECT v.variant_id, v.sample_id, v.instruction, v.input, v.output, {context_of("v")} FROM variant v
        WHERE v.variant_id IN ({", ".join(f":{name}" for name in names)})
    """
    return {row.variant_id: row for row in store.rows(sql, **names)}


# -- storing


def add(store: Store, round: Round, group: Sequence[Made], known: set[str]) -> bool:
    """Commit results of a round; return False, with nothing committed, if another process has used a member in the meantime.

    `known` are the older derivations that the members may belong to: those that `broken` returns. An equal derivation written by another
    process is not a conflict: it is the same row.
    """
    now = utc_now()
    ours = {made.derivation_id for made in group}
    with store.write() as conn:
        if _with_members(conn, round, group) - ours - known:
            return False
        store.insert(conn, [derivation_row(made, now) for made in group])
        store.insert(conn, [row for made in group if (row := variant_row(made, now))])
        store.insert(conn, [row for made in group for row in member_rows(made)])
    return True


def _with_members(conn: Connection, round: Round, group: Sequence[Made]) -> set[str]:
    """Return the derivations of the round that have a member of the group."""
    found: set[str] = set()
    members = (member for made in group for member in made.members)
    while part := list(islice(members, KEYS)):
        names = {f"v{i}": key for i, key in enumerate(part)}
        sql = f"""
            SELECT DISTINCT m.derivation_id FROM derivation_member m JOIN derivation d ON d.derivation_id = m.derivation_id
            WHERE m.variant_id IN ({", ".join(f":{name}" for name in names)})
            AND d.augmentation_id = :augmentation AND d.round = :round
        """
        values = {"augmentation": round.augmentation_id, "round": round.number, **names}
        found.update(row[0] for row in conn.execute(text(sql), values))
    return found


# -- checking


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored variant of an augmentation: by which transform, with which parameters (JSON), of which texts it was made."""

    derivation_id: str
    method: str
    parameters: str
    members: tuple[Texts, ...]
    texts: Texts


def stored(store: Store, of: Sequence[str], page: int = 200) -> Iterator[Stored]:
    """Yield the variants that these transforms made, with the texts of their members in order."""
    names = {f"m{i}": name for i, name in enumerate(of)}
    made = f"""
        SELECT d.derivation_id, a.method, d.parameters, v.instruction, v.input, v.output FROM derivation d
        JOIN augmentation a ON a.augmentation_id = d.augmentation_id JOIN variant v ON v.derivation_id = d.derivation_id
        WHERE d.derivation_id > :after AND a.method IN ({", ".join(f":{name}" for name in names)})
        ORDER BY d.derivation_id LIMIT {page}
    """
    after = ""
    while rows := store.rows(made, after=after, **names):
        keys = {f"k{i}": row.derivation_id for i, row in enumerate(rows)}
        members: dict[str, list[Texts]] = {}
        found = store.rows(
            f"""
            SELECT m.derivation_id, v.instruction, v.input, v.output FROM derivation_member m
            JOIN variant v ON v.variant_id = m.variant_id
            WHERE m.derivation_id IN ({", ".join(f":{key}" for key in keys)}) ORDER BY m.derivation_id, m.ordinal
            """,
            **keys,
        )
        for row in found:
            members.setdefault(row.derivation_id, []).append(Texts(row.instruction, row.input, row.output))
        for row in rows:
            of_row = tuple(members.get(row.derivation_id, ()))
            texts = Texts(row.instruction, row.input, row.output)
            yield Stored(row.derivation_id, row.method, row.parameters, of_row, texts)
        after = rows[-1].derivation_id

"""Orderings in recipes: find or compute the order of a pool, so that the recipe can pick from it.

A recipe with an ordering has two statements and a line between its parameters and the first:

    -- @order NAME(key = value, key = :parameter, …)
    -- @pool
    SELECT variant_id, … the pool, in the order that decides ties
    -- @pick
    SELECT variant_id, rank … FROM ordering_items WHERE ordering_id = :ordering …

Keys are the ordering's options, and for one that needs vectors `encoder` (a student), `pooling` and `part`; `queries` is the dataset of its
query set. `most`, a parameter of type top, says how many are needed; without it the whole pool is put in order.

Invariant: an ordering is a function of its method's version, its parameters and its pool; it is stored once, and one that is long
enough is found instead of computed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from recycledb import methods
from recycledb.errors import ReadOnlyError, SelectionError
from recycledb.methods import Placed, Pool
from recycledb.schema import canonical_json, content_id, utc_now
from recycledb.selection import identities
from recycledb.store import Sandbox, Store
from recycledb.store.datasets import origins_of
from recycledb.store.rows import OrderingItemRow, OrderingRow
from recycledb.vectors import decoded

_LINE = re.compile(r"^--\s*@order\s+(?P<name>\w+)\s*\((?P<options>[^)]*)\)", re.MULTILINE)
_PARTS = re.compile(r"^--\s*@(pool|pick)\b.*$", re.MULTILINE)
_VECTORS = ("encoder", "pooling", "part")


@dataclass(frozen=True)
class OrderCall:
    """The ordering of a recipe: its method, the keys with their values or `:parameter`, and the two statements."""

    name: str
    given: Mapping[str, str]
    pool: str
    pick: str


def parse_order(recipe: str, sql: str) -> OrderCall | None:
    """Return the ordering that a recipe's text declares, None if it has none; SelectionError if it is incomplete."""
    line = _LINE.search(sql)
    parts = {match[1]: match for match in _PARTS.finditer(sql)}
    if line is None and not parts:
        return None
    if line is None or set(parts) != {"pool", "pick"} or parts["pool"].start() > parts["pick"].start():
        raise SelectionError(
            f"recipe {recipe}: an ordering needs a line `-- @order NAME(…)`, then `-- @pool` and `-- @pick`, each before a statement"
        )
    if line["name"] not in methods.orderings():
        raise SelectionError(
            f"recipe {recipe}: no ordering {line['name']!r}; there are {', '.join(methods.orderings())}"
        )
    given = {}
    for part in filter(None, (part.strip() for part in line["options"].split(","))):
        key, separator, value = part.partition("=")
        if not separator:
            raise SelectionError(f"recipe {recipe}: {part!r} in @order; give key = value")
        given[key.strip()] = value.strip()
    _require_keys(recipe, line["name"], given)
    return OrderCall(line["name"], given, sql[parts["pool"].end() : parts["pick"].start()], sql[parts["pick"].end() :])


def _require_keys(recipe: str, name: str, given: Mapping[str, str]) -> None:
    method = methods.orderings()[name]
    known = {*method.options, "most", *(_VECTORS if method.vectors else ()), *(("queries",) if method.queries else ())}
    needed = {*(("encoder",) if method.vectors else ()), *(("queries",) if method.queries else ())}
    for key in given:
        if key not in known:
            raise SelectionError(f"recipe {recipe}: ordering {name} has no {key!r}; it has {', '.join(sorted(known))}")
    for key in sorted(needed - set(given)):
        raise SelectionError(f"recipe {recipe}: ordering {name} needs {key}: `-- @order {name}({key} = :{key})`")


def find_or_compute(
    store: Store,
    call: OrderCall,
    pool: Pool,
    values: Mapping[str, Any],
    samples: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[str, OrderingRow | None, list[OrderingItemRow]]:
    """Return the id of the ordering of a pool, and its rows if they are not stored yet.

    `values` are the recipe's parameters, and `samples` what a share of the parameter `most` refers to. SelectionError if the pool has
    variants without a vector. `progress` is called with what is being done, how much of it is done, and the total.
    """
    method = methods.orderings()[call.name]
    options, most = _options(call, values, len(pool.ids), samples)
    parameters: dict[str, Any] = dict(options)
    if method.vectors:
        student = identities.find_student(store, str(_value(call, "encoder", values)))
        of = (
            student.identity,
            str(_value(call, "pooling", values) or "mean"),
            str(_value(call, "part", values) or "row"),
        )
        parameters |= {"encoder": student.identity, "pooling": of[1], "part": of[2]}
        pool = pool._replace(vectors=_vectors(store, pool.ids, of, student.name))
        if method.queries:
            dataset = str(_value(call, "queries", values))
            queries = origins_of(store, identities.find_dataset(store, dataset))
            parameters |= {"queries": dataset, "queries_sha256": _sha256(queries)}
            pool = pool._replace(queries=_vectors(store, queries, of, student.name))
    parameters["columns"] = _sha256([[name, *values] for name, values in sorted(pool.columns.items())])
    digest = _sha256(pool.ids)
    if found := _stored(store, call.name, method.version, parameters, digest, most):
        return found, None, []
    row = OrderingRow(
        ordering_id="",
        method=call.name,
        version=method.version,
        parameters=canonical_json({**parameters, "most": most}),
        pool_sha256=digest,
        pool_size=len(pool.ids),
        created_at=utc_now(),
    )
    row = row._replace(ordering_id=ordering_id_of(row))
    what, total, placed = f"{call.name}: variants put in order", min(most, len(pool.ids)), list[Placed]()
    progress(what, 0, total)  # the first one takes longest
    for each in islice(method.order(pool, options), most):
        placed.append(each)
        progress(what, len(placed), total)
    progress(what, total, total)  # an ordering may leave variants out
    return row.ordering_id, row, _items(row.ordering_id, pool, placed)


def ordering_id_of(row: OrderingRow) -> str:
    """Return the content address of an ordering."""
    return content_id("ordering", row.method, row.version, row.parameters, row.pool_sha256)


def record(store: Store, row: OrderingRow, items: Sequence[OrderingItemRow]) -> None:
    """Store an ordering; ReadOnlyError says how to go on if the store cannot be written."""
    try:
        with store.write() as conn:
            store.insert(conn, [row, *items])
    except ReadOnlyError as error:
        raise ReadOnlyError(f"{error}; the ordering that this recipe picks from has to be stored") from error


def _items(ordering: str, pool: Pool, placed: Sequence[Placed]) -> list[OrderingItemRow]:
    return [
        OrderingItemRow(ordering, rank, pool.ids[each.place], each.gain, each.reason)
        for rank, each in enumerate(placed, 1)
    ]


def _stored(store: Store, name: str, version: int, parameters: Mapping[str, Any], digest: str, most: int) -> str | None:
    """Return the shortest stored ordering of this pool that is long enough."""
    rows = store.rows(
        "SELECT ordering_id, parameters FROM ordering WHERE method = :name AND version = :version AND pool_sha256 = :digest",
        name=name,
        version=version,
        digest=digest,
    )
    found = []
    for key, text in rows:
        stored = json.loads(text)
        length = int(stored.pop("most"))
        if length >= most and stored == json.loads(canonical_json(parameters)):
            found.append((length, key))
    return min(found)[1] if found else None


def read_pool(
    sandbox: Sandbox,
    recipe: str,
    call: OrderCall,
    values: Mapping[str, Any],
    left_out: frozenset[str] = frozenset(),
) -> Pool:
    """Return the variants of a recipe's pool query, without those left out; SelectionError if there are none."""
    names, rows = sandbox.execute(call.pool.strip().rstrip(";"), dict(values))
    if "variant_id" not in names:
        raise SelectionError(f"recipe {recipe}: the pool returns {', '.join(names)}; it must return variant_id")
    at = names.index("variant_id")
    by_id = {row[at]: row for row in reversed(list(rows))}  # the first row of a variant counts
    found = [row for key, row in reversed(by_id.items()) if key not in left_out]
    if not found:
        raise SelectionError(
            f"recipe {recipe}: the pool is empty; what it needs may not be computed yet: see `recycledb measures`"
        )
    columns = {name: [row[i] for row in found] for i, name in enumerate(names) if i != at}
    return Pool([row[at] for row in found], columns)


def _value(call: OrderCall, key: str, values: Mapping[str, Any]) -> Any:
    text = call.given.get(key)
    return values[text[1:]] if text and text.startswith(":") else text


def _options(call: OrderCall, values: Mapping[str, Any], pool: int, samples: int) -> tuple[dict[str, Any], int]:
    """Return the ordering's options, converted to the types of their defaults, and how many items are needed.

    The number is rounded up to a power of two, so that one ordering serves most of a user's tries with --top.
    """
    options: dict[str, Any] = {}
    for key, default in methods.orderings()[call.name].options.items():
        value = _value(call, key, values)
        try:
            options[key] = default if value is None else type(default)(value)
        except (TypeError, ValueError) as error:
            raise SelectionError(
                f"{key} is {value!r}; ordering {call.name} needs a {type(default).__name__}"
            ) from error
    name = call.given.get("most", "").removeprefix(":")
    count, percent = values.get(f"{name}_count"), values.get(f"{name}_percent")
    needed = count if percent is None else int(percent * samples / 100)
    if needed is None:
        return options, pool
    return options, min(pool, 1 << max(needed - 1, 0).bit_length())


def _vectors(store: Store, ids: Sequence[str], of: tuple[str, str, str], student: str) -> Any:
    """Return the vectors of these variants as one array (n, D)."""
    import numpy as np

    found: dict[str, bytes] = {}
    for start in range(0, len(ids), 500):
        marks = {f"v{i}": key for i, key in enumerate(ids[start : start + 500])}
        sql = f"""
            SELECT variant_id, vector FROM embedding WHERE student_id = :student AND pooling = :pooling AND part = :part
            AND vector IS NOT NULL AND variant_id IN ({", ".join(f":{name}" for name in marks)})
        """
        rows = store.rows(sql, student=of[0], pooling=of[1], part=of[2], **marks)
        found.update((row[0], bytes(row[1])) for row in rows)
    if lacking := len(ids) - len(found):
        raise SelectionError(
            f"{lacking:,} of {len(ids):,} variants have no vector ({of[1]} of {of[2]}) of {student}: add [measures.vectors] with "
            f'method = "embedding", pooling = "{of[1]}", part = "{of[2]}" and students = ["{student}"], then run `recycledb sync`'
        )
    return np.stack([decoded(found[key]) for key in ids])


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

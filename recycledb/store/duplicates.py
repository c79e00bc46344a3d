"""Near-duplicates: which samples were searched with which parameters, the pairs found, and the groups that they form.

Invariant: pairs are rows that never change; a group is computed from the pairs, so it grows when pairs are added.
How pairs are found is in `recycledb.selection.duplicates`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from recycledb.schema import IDENTITY_LENGTH, canonical_json, content_id, utc_now
from recycledb.store import Store
from recycledb.store.rows import DuplicatePoolRow, DuplicateSearchRow, NearDuplicateRow

NAME = "duplicates"  # stands for the last search that was run
KIND = "duplicate_search"


class Asked(NamedTuple):
    """A sample's question: its instruction, its input, and the JSON of the messages before it."""

    sample_id: str
    instruction: str
    input: str
    context: str | None


class Pair(NamedTuple):
    """Two near-duplicates, the smaller id first."""

    sample_id: str
    other_id: str
    similarity: float


def search_id_of(method: str, version: int, parameters: str) -> str:
    """Return the id of a search; `parameters` are canonical JSON."""
    return content_id("duplicate_search", method, version, parameters, length=IDENTITY_LENGTH)


_POOL = """
    FROM sample s WHERE s.sample_id IN (
        SELECT d.sample_id FROM dataset_samples d WHERE CAST(:dataset AS VARCHAR) IS NULL OR d.dataset = :dataset
    ) ORDER BY s.sample_id
"""


def questions(store: Store, dataset: str | None) -> list[Asked]:
    """Return the samples in datasets (in `dataset`), by id."""
    sql = f"SELECT s.sample_id, s.instruction, s.input, s.context {_POOL}"
    return [Asked(*row) for row in store.rows(sql, dataset=dataset)]


def sample_ids(store: Store, dataset: str | None) -> list[str]:
    """Return the ids of the samples in datasets (in `dataset`), sorted."""
    return [row[0] for row in store.rows(f"SELECT s.sample_id {_POOL}", dataset=dataset)]


def pool_sha256(samples: Iterable[str]) -> str:
    """Return the hash that stands for a set of samples, given in order."""
    return hashlib.sha256("\n".join(samples).encode()).hexdigest()


def is_searched(store: Store, search: str, samples: Iterable[str]) -> bool:
    """Return whether all pairs of these samples, given in order, were looked for in one search."""
    sql = "SELECT 1 FROM duplicate_pool WHERE duplicate_search_id = :search AND pool_sha256 = :pool"
    return bool(store.rows(sql, search=search, pool=pool_sha256(samples)))


def add_pairs(
    store: Store,
    method: str,
    version: int,
    parameters: dict[str, object],
    samples: Sequence[str],
    pairs: Sequence[Pair],
) -> int:
    """Write the pairs found among `samples`, which are in order, and put the search in use; return how many were new."""
    now, text = utc_now(), canonical_json(parameters)
    search = search_id_of(method, version, text)
    with store.write() as conn:
        store.insert(conn, [DuplicateSearchRow(search, method, version, text, now)])
        new = store.insert(conn, (NearDuplicateRow(search, *pair) for pair in pairs))
        store.insert(conn, [DuplicatePoolRow(search, pool_sha256(samples), len(samples), now)])
        store.ensure_name(conn, KIND, NAME, search)
    return new


def use_search(store: Store, search: str) -> None:
    """Put a search in use whose rows are there."""
    if store.find_name(KIND, NAME) != search:
        with store.write() as conn:
            store.ensure_name(conn, KIND, NAME, search)


def search_in_use(store: Store) -> str | None:
    """Return the last search that was run."""
    return store.find_name(KIND, NAME)


def pairs_of(store: Store, search: str) -> list[Pair]:
    """Return every pair that a search has found, in order."""
    sql = """
        SELECT sample_id, other_id, similarity FROM near_duplicate WHERE duplicate_search_id = :search
        ORDER BY sample_id, other_id
    """
    return [Pair(*row) for row in store.rows(sql, search=search)]


def groups_of(pairs: Iterable[Pair]) -> dict[str, str]:
    """Return each sample's group: the smallest id of those that are connected by pairs. It equals the view `duplicate_groups`."""
    above: dict[str, str] = {}

    def top(sample: str) -> str:
        here = sample
        while (higher := above.setdefault(here, here)) != here:
            here = higher
        while above[sample] != here:  # the next walk from here is one step
            above[sample], sample = here, above[sample]
        return here

    for first, second, _ in pairs:
        a, b = top(first), top(second)
        above[max(a, b)] = min(a, b)
    return {sample: top(sample) for sample in above}


def members_of(groups: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each group with its samples, in order."""
    found: dict[str, list[str]] = {}
    for sample in sorted(groups):
        found.setdefault(groups[sample], []).append(sample)
    yield from found.items()

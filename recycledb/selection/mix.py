"""Mix recorded selections by share: a selection of its own, drawn by hash.

Invariant: a draw depends on the seed and on variant ids only, not on the order of the parts or of rows; a variant that is in several parts
is taken once. If the shares can be met at all, they are met exactly.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.selection.identities import find_selection
from recycledb.selection.output import asked
from recycledb.selection.recipes import Bound, Recipe
from recycledb.selection.select import Running, Selected, count_samples, run
from recycledb.selection.split import number_of
from recycledb.store import Store, TimeLimit

MOST_PARTS = 8
DESCRIPTION = "Parts of recorded selections, by share."
SQL = """\
-- @description Parts of recorded selections, by share.
-- Of these variants, those were drawn that are recorded: of each part in the order of a hash of the seed and the variant's id.
SELECT DISTINCT variant_id FROM selection_item WHERE instr(:selections, selection_id) > 0
"""

Members = frozenset[str]  # the parts that a variant is in


def mix(
    store: Store,
    parts: Mapping[str, str],
    *,
    rows: int | None = None,
    seed: int = 0,
    name: str = "mix",
    output: Path | None = None,
    format: str = "alpaca",
    llama_factory: Path | None = None,
    card: Path | None = None,
    with_extra: bool = False,
    holdout: str | None = None,
    timeout_s: float | None = None,
) -> Selected:
    """Draw `rows` variants from recorded selections, write them to `output` in dataset order and record them under `name`.

    `parts` are selections' names with their shares, such as 60%, which add up to 100%. Without `rows`, as many are drawn as the shares
    allow. The other parameters are as in `recycledb.selection.select.select`.
    """
    wanted = asked(
        output, format, with_extra=with_extra, holdout=holdout, seed=seed, llama_factory=llama_factory, card=card
    )
    shares = {part: _share(part, text) for part, text in parts.items()}
    _require_whole(shares, parts)
    found = {part: find_selection(store, part).identity for part in sorted(shares)}
    if len(set(found.values())) < len(found):
        raise SelectionError(f"two of {', '.join(found)} are the same selection: name each once")
    pool = _pool(store, found)
    quotas = _quotas(shares, rows if rows is not None else _most(shares, pool))
    _require_enough(quotas, pool, shares)
    drawn = draw(pool, quotas, seed)
    said: dict[str, Any] = {
        "parts": " ".join(f"{part}={shares[part]:g}%" for part in found),
        "selections": " ".join(found.values()),
        "rows": sum(quotas.values()),
        "seed": seed,
    }
    running = Running(
        Recipe("mix", DESCRIPTION, SQL, ()),
        Bound(said, {"selections": said["selections"]}),
        name,
        count_samples(store, None),
        only={variant: f"drawn from {part}" for variant, part in drawn.items()},
    )
    return run(store, running, wanted.named(name), TimeLimit(timeout_s))


def draw(pool: Mapping[str, Members], quotas: Mapping[str, int], seed: int) -> dict[str, str]:
    """Return which variants are taken, and for which part: exactly as many for each part as its quota, which must be possible.

    Variants are considered in the order of their hashes. Each is taken for one of its parts, unless the quotas could then not be met.
    """
    open_quotas = dict(quotas)
    rest = _Rest(pool, open_quotas)
    taken: dict[str, str] = {}
    for variant in sorted(pool, key=lambda variant: (number_of("mix", seed, variant), variant)):
        rest.remove(pool[variant])
        parts = [part for part in pool[variant] if open_quotas[part]]
        for part in sorted(parts, key=lambda part: number_of(f"mix {part}", seed, variant)):
            open_quotas[part] -= 1
            if rest.is_enough():
                taken[variant] = part
                break
            open_quotas[part] += 1
    return taken


class _Rest:
    """The variants that are left, by the parts that they are in, and whether they are enough for what is still open.

    By Hall's theorem they are enough if each set of parts has as many variants as its quotas together.
    """

    def __init__(self, pool: Mapping[str, Members], quotas: Mapping[str, int]) -> None:
        self.quotas = quotas
        names = sorted(quotas)
        sets = [frozenset(each) for size in range(1, len(names) + 1) for each in combinations(names, size)]
        self.left = {each: sum(1 for members in pool.values() if members & each) for each in sets}

    def remove(self, members: Members) -> None:
        """Note that a variant of these parts is no longer left."""
        for each in self.left:
            if each & members:
                self.left[each] -= 1

    def is_enough(self) -> bool:
        """Return whether the quotas can be met with what is left."""
        return self.lacking() is None

    def lacking(self) -> Members | None:
        """Return a set of parts that has too few variants."""
        return next((each for each in self.left if sum(self.quotas[part] for part in each) > self.left[each]), None)


def _share(part: str, text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    try:
        share = float(number) if text.strip().endswith("%") else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise SelectionError(f"{part}={text}: give each selection a share such as {part}=60%")
    return share


def _require_whole(shares: Mapping[str, float], parts: Mapping[str, str]) -> None:
    said = " ".join(f"{part}={text}" for part, text in parts.items())
    if not 2 <= len(shares) <= MOST_PARTS:
        raise SelectionError(
            f"give two to {MOST_PARTS} selections with their shares, such as a=60% b=40%, not {said!r}"
        )
    if abs(sum(shares.values()) - 100) > 1e-6:
        raise SelectionError(f"the shares of {said} add up to {sum(shares.values()):g}%: make them 100%")


def _pool(store: Store, selections: Mapping[str, str]) -> dict[str, Members]:
    """Return the variants of all parts, each with the parts that it is in."""
    found: dict[str, set[str]] = {}
    for part, identity in selections.items():
        sql = "SELECT variant_id FROM selection_item WHERE selection_id = :selection"
        for (variant,) in store.rows(sql, selection=identity):
            found.setdefault(variant, set()).add(part)
    return {variant: frozenset(parts) for variant, parts in found.items()}


def _quotas(shares: Mapping[str, float], rows: int) -> dict[str, int]:
    """Return the rows of each part: rounded down, and what is left to the largest remainders."""
    exact = {part: rows * shares[part] / 100 for part in sorted(shares)}
    quotas = {part: int(number + 1e-9) for part, number in exact.items()}
    by_remainder: Sequence[str] = sorted(exact, key=lambda part: (quotas[part] - exact[part], part))
    for part in by_remainder[: rows - sum(quotas.values())]:
        quotas[part] += 1
    return quotas


def _most(shares: Mapping[str, float], pool: Mapping[str, Members]) -> int:
    """Return the most rows with which every share can be met."""
    low, high = 0, len(pool)
    left = _Rest(pool, dict.fromkeys(shares, 0))
    while low < high:
        middle = (low + high + 1) // 2
        left.quotas = _quotas(shares, middle)
        low, high = (middle, high) if left.is_enough() else (low, middle - 1)
    return low


def _require_enough(quotas: Mapping[str, int], pool: Mapping[str, Members], shares: Mapping[str, float]) -> None:
    rest = _Rest(pool, quotas)
    lacking = rest.lacking()
    if not sum(quotas.values()):
        raise SelectionError("nothing would be drawn: give --rows 1 or more, of selections with rows")
    if lacking is not None:
        wanted = sum(quotas[part] for part in lacking)
        has = "have" if len(lacking) > 1 else "has"
        together = " together" if len(lacking) > 1 else ""
        raise SelectionError(
            f"{' and '.join(sorted(lacking))} {has} {rest.left[lacking]} rows{together}, of which {wanted} would be drawn: "
            f"give --rows {_most(shares, pool)} or fewer"
        )

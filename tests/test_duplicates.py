"""Near-duplicates: which pairs are found, what again finds, and selections with one of each group."""

import json
import random
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import scored_stores as scored
import stores
from templates import made

from recycledb.errors import SelectionError
from recycledb.integrity import check
from recycledb.methods.reflection import Kind
from recycledb.schema import Texts
from recycledb.selection.duplicates import find_duplicates, near_duplicates, shingles_of
from recycledb.selection.explain import explain
from recycledb.selection.recipes import get_recipe, parse
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.duplicates import Asked, Pair, add_pairs, groups_of, pairs_of, search_in_use
from recycledb.store.merge import merge

DROP = {"near_duplicates": "drop"}
TIPS = "Give three tips for staying healthy in the winter months"


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Store]:
    """An open, empty SQLite store."""
    with Store.open(sqlite_url) as opened:
        yield opened


def test_what_counts_as_the_same() -> None:
    same = ["Write a haiku, please!", "write a HAIKU  please", "Ｗrite a haiku: please."]
    assert len({shingles_of(text, 2) for text in same}) == 1
    different = ["3 + 4", "3 - 4", "4 + 3", "写一首诗", "写一首歌", "one two", "two one"]
    assert len({shingles_of(text, 2) for text in different}) == len(different)
    assert shingles_of(" ?! ", 2) == frozenset()
    assert len(shingles_of("one", 3)) == 1
    assert len(shingles_of("你好吗", 1)) == 3


def mutated(rng: random.Random, words: list[str]) -> list[str]:
    """Return a copy with up to two words replaced."""
    words = list(words)
    for _ in range(rng.randint(0, 2)):
        words[rng.randrange(len(words))] = f"new{rng.randrange(99)}"
    return words


def test_every_pair_and_no_other_in_whatever_order() -> None:
    rng = random.Random(5)
    bases = [[f"w{rng.randrange(400)}" for _ in range(rng.randint(8, 40))] for _ in range(60)]
    texts = [" ".join(mutated(rng, rng.choice(bases))) for _ in range(250)]
    asked = [Asked(f"{rng.getrandbits(128):032x}", text, "", None) for text in texts]
    sets = {each.sample_id: shingles_of(each.instruction, 2) for each in asked}
    first: dict[frozenset[int], str] = {}
    for sample in sorted(sets):
        first.setdefault(sets[sample], sample)
    expected = {(first[sets[sample]], sample, 1.0) for sample in sets if first[sets[sample]] != sample}
    for a, b in combinations(sorted(first.values()), 2):
        similarity = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        if similarity >= 0.7:
            expected.add((a, b, similarity))
    found = near_duplicates(asked, threshold=0.7)
    assert set(map(tuple, found)) == expected
    assert len(expected) > 100
    rng.shuffle(asked)
    assert near_duplicates(asked, threshold=0.7, seed=0) == found


def test_a_system_prompt_makes_no_duplicates_and_earlier_turns_make_a_difference() -> None:
    system = {"role": "system", "content": "You are a very patient assistant who answers at length"}
    said = [
        [system, {"role": "user", "content": f"Tell me about {what}"}] for what in ("cats", "steam engines", "cats")
    ]
    asked = [Asked(f"{i}", "Go on.", "", json.dumps(turns)) for i, turns in enumerate(said)]
    assert near_duplicates(asked) == [("0", "2", 1.0)]


def filled(store: Store) -> list[str]:
    """Six scored samples: 0, 2 and 4 are nearly the same, and their IFD rises with their number."""
    words = [TIPS, "Explain a magnet", TIPS + ".", "Name a river", TIPS + " please", "Count to ten"]
    samples = stores.add_samples(store, [Texts(word, "", f"answer {i}") for i, word in enumerate(words)])
    scored.add_students(store, "7b")
    origins = [scored.origin_of(store, sample) for sample in samples]
    scored.add_losses(store, "7b", {o: scored.ratios(-0.9 + i / 10) for i, o in enumerate(origins)})
    return samples


def picked(store: Store, name: str, samples: list[str]) -> list[int]:
    rows = store.rows(
        "SELECT v.sample_id FROM selection_items i JOIN variants v USING (variant_id) WHERE selection = :n ORDER BY position",
        n=name,
    )
    return [samples.index(row[0]) for row in rows]


def test_the_view_of_groups_and_a_selection_on_each_backend(store: Store) -> None:
    samples = filled(store)
    found = find_duplicates(store)
    assert (found.samples, found.pairs, found.new, found.groups, found.in_groups) == (6, 2, 2, 1, 3)
    groups = map(tuple, store.rows("SELECT sample_id, group_id FROM duplicate_groups"))
    assert groups_of(pairs_of(store, found.duplicate_search_id)) == dict(groups)
    done = select(store, get_recipe("cherry"), DROP | {"top": "4"}, name="four")
    assert picked(store, "four", samples) == [5, 4, 3, 1]
    assert (done.rows, done.near_duplicates) == (4, 1)


def test_a_chain_is_one_group(sqlite: Store) -> None:
    ids = stores.add_samples(sqlite, [Texts(f"{i}", "", "") for i in range(9)])
    a, b, _, d, e, *rest = sorted(ids)
    pairs = [
        Pair(a, e, 0.9),
        Pair(b, e, 0.9),
        Pair(b, d, 0.9),
        Pair(rest[0], rest[1], 0.9),
        Pair(rest[1], rest[2], 0.9),
    ]
    add_pairs(sqlite, "made", 1, {}, sorted(ids), pairs)
    expected = dict.fromkeys((a, b, d, e), a) | dict.fromkeys(rest[:3], rest[0])
    assert groups_of(pairs) == groups_of(reversed(pairs)) == expected
    assert dict(map(tuple, sqlite.rows("SELECT sample_id, group_id FROM duplicate_groups"))) == expected


def test_one_of_each_group_is_picked_and_top_counts_afterwards(sqlite: Store) -> None:
    samples = filled(sqlite)
    with pytest.raises(SelectionError, match="run `recycledb duplicates`, then select again"):
        select(sqlite, get_recipe("cherry"), DROP)
    find_duplicates(sqlite)
    select(sqlite, get_recipe("cherry"), {"top": "3"}, name="keep")
    assert picked(sqlite, "keep", samples) == [5, 4, 3]
    select(sqlite, get_recipe("cherry"), DROP | {"top": "50%"}, name="half")
    assert picked(sqlite, "half", samples) == [5, 4, 3]
    select(sqlite, get_recipe("superfilter"), DROP | {"student": "7b", "top": "100%"}, name="all")
    assert picked(sqlite, "all", samples) == [5, 4, 3, 1]
    own = parse("own", "SELECT variant_id FROM variants WHERE kind = 'origin'")
    select(sqlite, own, DROP, name="own")  # unranked: the first in dataset order
    assert picked(sqlite, "own", samples) == [0, 1, 3, 5]
    ranked = (
        "SELECT variant_id, row_number() OVER (ORDER BY instruction, variant_id) AS rank FROM variants LIMIT :top_count"
    )
    select(sqlite, parse("limit", ranked), DROP | {"top": "3"}, name="limit")
    found = picked(sqlite, "limit", samples)
    assert (found[0], found[1], found[2]) == (5, 1, 0)  # Count, Explain, Give (0, 2 and 4)
    unranked = parse("unranked", "SELECT variant_id FROM variants LIMIT :top_count")
    with pytest.raises(SelectionError, match="returns no rank"):
        select(sqlite, unranked, DROP | {"top": "3"})
    assert [each for each in check(sqlite).findings if "duplicate" in each or "selection" in each] == []


def test_a_selection_with_keep_is_the_one_without_the_parameter(sqlite: Store) -> None:
    filled(sqlite)
    plain = select(sqlite, get_recipe("cherry"), {"top": "3"})
    assert select(sqlite, get_recipe("cherry"), {"top": "3", "near_duplicates": "keep"}) == plain
    with pytest.raises(SelectionError, match="near_duplicates is 'no'; it must be keep or drop"):
        select(sqlite, get_recipe("cherry"), {"near_duplicates": "no"})


@pytest.mark.long
def test_selective_and_recycled_take_one_of_each_group_too(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        samples = scored.two_students(
            store, ["the very same long words here again", "the very same long words here again!", "figs"]
        )
        assert find_duplicates(store, threshold=0.5).pairs == 1
        for name, given in (("selective", {"student": "7b"}), ("recycled", {})):
            assert select(store, get_recipe(name), given, name="keep").rows == 3
            assert select(store, get_recipe(name), given | {"near_duplicates": "drop"}, name="drop").rows == 2
            assert picked(store, "drop", samples) == [0, 2]


def test_show_says_which_was_picked_instead(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        samples = filled(store)
        find_duplicates(store)
        select(store, get_recipe("cherry"), {"near_duplicates": "drop", "top": "100%"}, name="it")
        [said] = [each for each in explain(store, samples[0]) if each["selection"] == "it"]
        assert said["picked"] is None
        # 0 and 4 are both pairs of 0 or 2, whichever has the smaller id; either sentence names sample 4.
        assert any("near_duplicates = drop: " + samples[4] in step and "picked" in step for step in said["steps"])
        [own] = [each for each in explain(store, samples[4]) if each["selection"] == "it"]
        assert own["picked"] == Kind.ORIGIN
        assert not any("near_duplicates" in step for step in own["steps"])


def test_again_adds_only_what_is_new(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        filled(store)
        find_duplicates(store)
        again = find_duplicates(store)
        assert (again.searched_before, again.new, again.pairs) == (True, 0, 2)
        stores.add_samples(store, [Texts(TIPS, "", "another answer"), Texts("Name a river!", "", "x")], dataset="more")
        stale = select(store, get_recipe("cherry"), {"near_duplicates": "drop"}, name="it")
        assert stale.warning is not None and "run `recycledb duplicates` again" in stale.warning
        more = find_duplicates(store)
        assert (more.searched_before, more.new > 0, more.groups, more.in_groups) == (False, True, 2, 6)
        assert select(store, get_recipe("cherry"), {"near_duplicates": "drop"}, name="it").warning is None
        before = store.rows("SELECT * FROM near_duplicate")
        other = find_duplicates(store, threshold=0.95)
        assert other.duplicate_search_id == search_in_use(store) != more.duplicate_search_id
        assert len(store.rows("SELECT * FROM near_duplicate")) == len(before) + other.new
        assert find_duplicates(store).searched_before and search_in_use(store) == more.duplicate_search_id
        assert find_duplicates(store, dataset="more").samples == 2
        for wrong in ({"threshold": 0.0}, {"words": 0}, {"dataset": "none"}):
            with pytest.raises(SelectionError):
                find_duplicates(store, **wrong)  # type: ignore[arg-type]


@pytest.mark.long
def test_pairs_across_two_merged_stores_are_found(tmp_path: Path) -> None:
    for name in "ab":
        shutil.copyfile(made("sqlite"), tmp_path / f"{name}.db")
    with Store.open(f"sqlite:///{tmp_path}/a.db") as a, Store.open(f"sqlite:///{tmp_path}/b.db") as b:
        for store, name in ((a, "a"), (b, "b")):
            stores.add_samples(store, [Texts(TIPS, "", name), Texts(TIPS, "", f"{name} too")], dataset=name)
            find_duplicates(store)
        assert merge(a, b).rows["near_duplicate"] == 1
        assert merge(a, b).rows["near_duplicate"] == 0
        found = find_duplicates(a)
        assert (found.searched_before, found.groups, found.in_groups) == (False, 1, 4)
        assert check(a).findings == []

"""Augmentations: what transforms make never changes, goes on after a kill, and is scored, shown, checked and merged."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy_method
from sync_runs import rows, sample
from templates import new
from test_sync import replies_about
from tiny_students import save_student
from toy_method import FAULTS, install

from recycledb.reflection.teachers.recorded import recorded_line
from recycledb.schema import Texts, canonical_json, content_id, context_json, variant_id
from recycledb.store import Store
from recycledb.store.places import Place, replace_places

BACKENDS = ("sqlite", "duckdb")
MANY = 1_000  # samples of which there are more groups than one transaction has


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store in a folder where the method is installed."""
    install(tmp_path)
    return new(f"{request.param}:///{tmp_path}/store.db")


def folder_of(url: str) -> Path:
    return Path(url.partition(":///")[2]).parent


def configure(url: str, *tables: str, students: bool = False) -> None:
    """Write the configuration: what [augmentations] holds, and a student if one is to score."""
    lines = ["[store]", f'url = "{url}"', *tables]
    if students:
        lines += ["[students.small]", 'model = "small"', "max_length = 256"]
    (folder_of(url) / "recycledb.toml").write_text("\n".join(lines) + "\n", "utf-8")


PAIRS = "[augmentations.pairs]"


def put(url: str, numbers: Sequence[int], dataset: str = "d", output: str = "") -> None:
    """Make a dataset these samples."""
    with Store.open(url) as store, store.write() as conn:
        texts = {i: sample(i)._replace(output=output) if output else sample(i) for i in numbers}
        replace_places(store, conn, dataset, (Place(place, texts[i]) for place, i in enumerate(numbers)))


def sync(url: str, *options: str, **more: Any) -> dict[str, Any]:
    """Run a sync where the method is installed; return what it says."""
    found: dict[str, Any] = json.loads(toy_method.run(folder_of(url), "sync", "--json", *options, **more).stdout)
    return found


def content(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that augmentations have left in the store, without moments."""
    queries = {
        "augmentation": "SELECT augmentation_id, name, method, version, seed, parameters FROM augmentation",
        "derivation": "SELECT derivation_id, augmentation_id, round, parameters, reason FROM derivation",
        "member": "SELECT derivation_id, ordinal, variant_id FROM derivation_member",
        "variant": "SELECT variant_id, sample_id, kind, parent_id, text_id, teacher_id, prompt_id, instruction, input, output, "
        "derivation_id FROM variant WHERE derivation_id IS NOT NULL",
    }
    return {name: sorted(tuple(row.values()) for row in rows(url, sql)) for name, sql in queries.items()}


def groups(url: str, where: str = "1 = 1") -> dict[str, list[str]]:
    """Return the members of derivations, in order, by the variant that was made of them."""
    sql = f"""
        SELECT d.variant_id AS made, m.variant_id AS member FROM derivations d
        JOIN derivation_members m ON m.derivation_id = d.derivation_id WHERE {where} ORDER BY d.derivation_id, m.ordinal
    """
    found: dict[str, list[str]] = {}
    for row in rows(url, sql):
        found.setdefault(row["made"], []).append(row["member"])
    return found


def only(url: str, sql: str) -> str:
    """Return the one value that a query gives."""
    [row] = rows(url, sql)
    [value] = row.values()
    return str(value)


def current(url: str, kind: str = "pair") -> set[str]:
    sql = f"SELECT variant_id FROM variants WHERE is_current = 1 AND kind = '{kind}'"
    return {row["variant_id"] for row in rows(url, sql)}


def sound(url: str) -> None:
    """Have `db check` look at the store, where the method is installed."""
    found = json.loads(toy_method.run(folder_of(url), "db", "check", "--json").stdout)
    assert found["findings"] == []


# -- what is made


@pytest.mark.long
def test_what_is_made_is_addressed_by_its_content_and_grouped_by_hashes(url: str) -> None:
    configure(url, PAIRS, "seed = 5", "rounds = 2")
    put(url, range(30))
    plan = sync(url, "--dry-run")
    assert plan["augmentations"] == [{"name": "pairs", "method": "pairs", "sources": 60, "left_alone": 0}]
    assert (plan["ready"], plan["calls"], plan["cost_usd"]) == (60, 0, 0)
    assert content(url)["augmentation"] == []  # a plan writes nothing

    outcome = sync(url)
    parameters = {"most": 4, "full": False, "of": ["origin"]}
    augmentation = content_id("augmentation", "pairs", 1, 5, parameters, length=12)
    assert content(url)["augmentation"] == [(augmentation, "pairs", "pairs", 1, 5, canonical_json(parameters))]
    [made] = outcome["augmentations"]
    assert made == {
        "name": "pairs", "method": "pairs", "variants": len(current(url)), "sources": 60, "reasons": {}, "left_alone": 0
    }  # fmt: skip

    texts = {row["variant_id"]: row for row in rows(url, "SELECT * FROM variant")}
    origins = sorted(key for key, row in texts.items() if row["kind"] == "origin")
    for number in (0, 1):

        def place(key: str, number: int = number) -> str:
            return hashlib.sha256(canonical_json(["pairs", augmentation, number, key]).encode()).hexdigest()

        order, expected = sorted(origins, key=place), []
        while order:
            drawn = hashlib.sha256(canonical_json(["draw", augmentation, number, order[0], "k"]).encode()).digest()
            size = 1 + int.from_bytes(drawn[:8], "big") % 4
            expected.append(order[:size])
            order = order[size:]
        found = groups(url, f"d.round = {number}")
        assert sorted(found.values()) == sorted(expected)
        for key, members in found.items():
            row = texts[key]
            derivation = content_id("derivation", augmentation, number, *members)
            joined = Texts(*("\n".join(texts[member][part] for member in members) for part in Texts._fields))
            assert (row["kind"], row["derivation_id"], row["parent_id"]) == ("pair", derivation, members[0])
            assert row["sample_id"] == texts[members[0]]["sample_id"]
            assert Texts(row["instruction"], row["input"], row["output"]) == joined
            assert key == variant_id(row["sample_id"], "pair", joined, members[0], derivation)
            assert (row["text_id"], row["teacher_id"], row["prompt_id"]) == (None, None, None)
    assert current(url) == set(groups(url))
    sound(url)

    before = content(url)
    again = toy_method.run(folder_of(url), "sync").stdout
    assert "nothing to do" in again
    assert content(url) == before


@pytest.mark.long
def test_only_augment_does_nothing_else_and_the_others_do_not_augment(tmp_path: Path) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    configure(url, PAIRS, students=True)
    save_student(folder_of(url) / "small", "llama")
    put(url, range(6))
    sync(url, "--only", "score")
    assert rows(url, "SELECT count(*) AS n FROM loss") == [{"n": 24}]
    assert content(url)["variant"] == []
    outcome = sync(url, "--only", "augment")
    assert outcome["statistics"] == 0
    assert outcome["complete"]
    assert len(current(url)) > 0
    outcome = sync(url)
    assert outcome["statistics"] == 4 * len(current(url))
    configure(url)
    refused = toy_method.run(folder_of(url), "sync", "--only", "augment", exits=1)
    assert (
        refused.stderr == f"recycledb: no augmentation: set [augmentations.NAME] in {folder_of(url)}/recycledb.toml\n"
    )


@pytest.mark.long
def test_derived_variants_are_scored_in_the_same_sync_shown_reported_exported_and_selected(url: str) -> None:
    folder = folder_of(url)
    configure(url, PAIRS, "[augmentations.loud]", 'method = "shout"', students=True)
    save_student(folder / "small", "llama")
    put(url, range(12))
    plan = sync(url, "--dry-run")
    assert plan["statistics_to_follow"] == 4 * 12  # of the pairs at most; what is loud is not scored
    outcome = sync(url)
    pairs = groups(url, "d.augmentation = 'pairs'")
    assert outcome["statistics"] == 4 * (12 + len(pairs))
    assert outcome["complete"]
    scored = {
        row["variant_id"] for row in rows(url, "SELECT variant_id FROM scores WHERE kind = 'pair' AND is_current = 1")
    }
    assert scored == set(pairs)
    assert sync(url, "--dry-run")["ready"] == 0

    status = json.loads(toy_method.run(folder, "status", "--json").stdout)
    assert status["variants"] == {"origin": 12, "pair": len(pairs), "loud": 12}
    assert status["missing"]["ready"] == 0

    key, members = next((key, members) for key, members in pairs.items() if len(members) > 1)
    kept = {row["variant_id"]: row["sample_id"] for row in rows(url, "SELECT variant_id, sample_id FROM variant")}
    found = json.loads(toy_method.run(folder, "show", key, "--json").stdout)
    assert found["sample_id"] == kept[members[0]]
    [lineage] = [each for each in found["derivations"] if each["variant_id"] == key]
    assert [(each["variant_id"], each["sample_id"]) for each in lineage["members"]] == [(m, kept[m]) for m in members]
    assert (lineage["augmentation"], lineage["round"], lineage["seed"]) == ("pairs", 0, 0)
    assert json.loads(lineage["parameters"]) == {"members": len(members)}
    shown = toy_method.run(folder, "show", kept[members[1]]).stdout  # the second member's sample
    assert f"pair {key[:12]} of sample {kept[members[0]][:12]}" in shown
    assert f"2. origin {members[1][:12]} of this sample" in shown
    assert f'parameters {{"members":{len(members)}}}' in shown

    toy_method.run(folder, "export", "--kind", "pair", "-o", "pairs.json")
    assert len(json.loads((folder / "pairs.json").read_text())) == len(pairs)
    (folder / "long.sql").write_text(
        "SELECT variant_id, ifd_ppl AS rank, 'because' AS reason FROM scores WHERE kind = 'pair' AND is_current = 1"
    )
    picked = json.loads(toy_method.run(folder, "select", "--sql", "long.sql", "-o", "long.json", "--json").stdout)
    assert picked["counts"] == {"pair": len(pairs)}
    toy_method.run(folder, "report", "-o", "report.html")
    page = (folder / "report.html").read_text("utf-8")
    assert "<td>pair</td>" in page
    sound(url)


# -- what stays


@pytest.mark.long
def test_a_killed_run_goes_on_as_it_would_have(url: str) -> None:
    folder = folder_of(url)
    configure(url, PAIRS, "rounds = 2")
    put(url, range(MANY))
    untouched = folder / "untouched.db"
    shutil.copyfile(folder / "store.db", untouched)
    configured = (folder / "recycledb.toml").read_text()
    for after in ("310", "50"):
        toy_method.run(folder, "sync", exits=-9, TOY_KILL_AFTER=after)
    committed = content(url)
    assert len(committed["derivation"]) == 300  # the second was killed before its first group was whole
    sync(url)
    found = content(url)
    assert set(committed["variant"]) < set(found["variant"])

    shutil.move(untouched, folder / "store.db")
    (folder / "recycledb.toml").write_text(configured)
    for log in folder.glob("store.db-*"):
        log.unlink()
    sync(url)
    assert content(url) == found


@pytest.mark.long
def test_added_samples_change_nothing_and_a_closed_member_frees_the_others(url: str) -> None:
    configure(url, PAIRS, "seed = 1")
    put(url, range(20))
    sync(url)
    before = content(url)
    put(url, range(20, 40), "e")
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == 20
    sync(url)
    after = content(url)
    assert all(set(before[table]) <= set(after[table]) for table in before)
    assert len(after["member"]) == 40

    broken = next(members for members in groups(url).values() if len(members) > 2)
    key = broken[0]
    gone = only(url, f"SELECT sample_id FROM variant WHERE variant_id = '{key}'")
    places = rows(url, f"SELECT dataset, position FROM dataset_samples WHERE sample_id = '{gone}'")
    dataset = places[0]["dataset"]
    numbers = list(range(20)) if dataset == "d" else list(range(20, 40))
    removed = numbers[places[0]["position"]]
    put(url, [number for number in numbers if number != removed], dataset)
    old = next(made for made, members in groups(url).items() if members == broken)
    assert old not in current(url)
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == len(broken) - 1
    sync(url)
    freed = groups(url, f"d.is_current = 1 AND d.variant_id IN ({', '.join(repr(made) for made in current(url))})")
    assert {member for members in freed.values() for member in members} >= set(broken[1:])
    assert key not in {member for members in freed.values() for member in members}
    assert all(set(after[table]) <= set(content(url)[table]) for table in after)
    assert len(content(url)["member"]) == 40 + len(broken) - 1

    put(url, numbers, dataset)  # it is back: what was made of it is current again, and nothing waits
    assert old in current(url)
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == 0
    sound(url)


@pytest.mark.long
def test_another_seed_or_option_is_another_augmentation_and_more_rounds_are_not(url: str) -> None:
    configure(url, PAIRS)
    put(url, range(20))
    sync(url)
    first, before = current(url), content(url)
    for change in ("seed = 1", "most = 2"):
        configure(url, PAIRS, change)
        assert sync(url, "--dry-run")["augmentations"][0]["sources"] == 20  # though the name still means the old one
        sync(url)
        assert not current(url) & first
        assert set(before["variant"]) < set(content(url)["variant"])
    assert len(content(url)["augmentation"]) == 3

    configure(url, PAIRS, "rounds = 3")
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == 40
    outcome = sync(url)
    assert outcome["augmentations"][0]["sources"] == 40
    assert first < current(url)
    assert len(content(url)["augmentation"]) == 3
    sound(url)


@pytest.mark.long
def test_sources_that_are_left_alone_wait_for_others_and_do_not_make_a_run_incomplete(tmp_path: Path) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    configure(url, PAIRS, "full = true", "most = 50")
    put(url, range(3))
    left = sync(url)  # exit code 0
    assert left["augmentations"][0]["left_alone"] == left["left"]["augmentations"][0]["sources"] > 0
    assert left["left"]["ready"] == 0
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == left["augmentations"][0]["left_alone"]
    assert (
        "left over for the next group"
        not in toy_method.run(folder_of(url), "sync").stdout.partition("nothing to do")[2]
    )
    put(url, range(200))
    assert sync(url)["augmentations"][0]["variants"] > 0


@pytest.mark.long
def test_a_variant_that_gives_none_has_its_reason_on_record(tmp_path: Path) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    configure(url, PAIRS)
    put(url, range(5))
    put(url, [7], "long", output="words " * 100)
    outcome = sync(url)
    assert outcome["augmentations"][0]["reasons"] == {"too_long": 1}
    sql = "SELECT reason, variant_id FROM derivations WHERE reason IS NOT NULL"
    assert rows(url, sql) == [{"reason": "too_long: 600 characters", "variant_id": None}]
    assert sync(url, "--dry-run")["ready"] == 0
    key = only(url, "SELECT sample_id FROM dataset_samples WHERE dataset = 'long'")
    assert "no variant: too_long: 600 characters" in toy_method.run(folder_of(url), "show", key).stdout
    sound(url)


# -- with a teacher


@pytest.mark.long
def test_samples_with_different_contexts_are_not_joined(tmp_path: Path) -> None:
    install(tmp_path)
    url = new(f"sqlite:///{tmp_path}/store.db")
    configure(url, PAIRS, "rounds = 1")
    contexts = [context_json([("system", str(number % 2))]) for number in range(30)]
    with Store.open(url) as store, store.write() as conn:
        places = (Place(i, sample(i)._replace(context=context)) for i, context in enumerate(contexts))
        replace_places(store, conn, "d", places)
    made = sync(url)["augmentations"][0]
    assert made["variants"] > 0 and made["reasons"].keys() == {"contexts"}
    sql = """
        SELECT d.derivation_id, count(DISTINCT s.context) AS contexts, d.reason FROM derivation d
        JOIN derivation_member m ON m.derivation_id = d.derivation_id JOIN variant v ON v.variant_id = m.variant_id
        JOIN sample s ON s.sample_id = v.sample_id GROUP BY d.derivation_id, d.reason
    """
    found = rows(url, sql)
    assert {row["contexts"] > 1 for row in found} == {True, False}
    assert all((row["contexts"] > 1) == (row["reason"] is not None) for row in found)
    sound(url)


@pytest.mark.long
def test_reflections_are_sources_as_soon_as_they_are_there(tmp_path: Path) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    lines = [recorded_line(*line) + "\n" for i in range(20) for line in replies_about(sample(i))]
    (tmp_path / "replies.jsonl").write_text("".join(lines), "utf-8")
    teacher = ["[teachers.t]", 'provider = "recorded"', 'file = "replies.jsonl"']
    of = [PAIRS, 'of = ["reflect_both"]']
    configure(url, *teacher, *of, students=True)
    save_student(tmp_path / "small", "llama")
    put(url, range(8))
    outcome = sync(url)
    assert outcome["complete"]
    both = current(url, "reflect_both")
    members = [member for made in groups(url).values() for member in made]
    assert sorted(members) == sorted(both)
    assert len(both) == 7
    scored = rows(url, "SELECT count(*) AS n FROM scores WHERE kind = 'pair'")
    assert scored == [{"n": len(current(url))}]

    # Another teacher: what the old one's reflections were made into is no longer current, and what counts is told before it is done.
    (tmp_path / "others.jsonl").write_text("".join(lines), "utf-8")
    other = [
        "[teachers.u]",
        'provider = "recorded"',
        'model = "another"',
        'file = "others.jsonl"',
        "[sync]",
        'teacher = "u"',
    ]
    configure(url, *teacher, *other, *of)
    first = current(url)
    sync(url, "--only", "reflect")
    assert sync(url, "--dry-run")["augmentations"][0]["sources"] == 7
    sync(url)
    assert first < current(url)  # both teachers' names are in use
    sound(url)


# -- merge


@pytest.mark.long
@pytest.mark.parametrize(("here", "there"), [("sqlite", "duckdb"), ("duckdb", "sqlite")])
def test_merge_carries_derivations_and_nothing_is_made_twice(tmp_path: Path, here: str, there: str) -> None:
    folders = [install(tmp_path / name) for name in ("here", "there")]
    urls = [new(f"{backend}:///{folder}/store.db") for backend, folder in zip((here, there), folders, strict=True)]
    for url, numbers, dataset in zip(urls, (range(15), range(15, 40)), ("d", "e"), strict=True):
        configure(url, PAIRS)
        put(url, numbers, dataset)
        sync(url)
    both = {
        table: sorted({*a, *b})
        for (table, a), b in zip(content(urls[0]).items(), content(urls[1]).values(), strict=True)
    }
    for url, source in (urls, urls[::-1]):
        toy_method.run(folder_of(url), "merge", source)
        assert content(url) == both
        assert len(current(url)) == len(both["variant"])
        assert sync(url, "--dry-run")["ready"] == 0
        sound(url)


# -- what goes wrong


@pytest.mark.long
@pytest.mark.default_cases("raises")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_transform_must_not_give_is_one_line_and_what_was_made_before_is_kept(
    tmp_path: Path, fault: str
) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    configure(url, PAIRS, "most = 2")
    put(url, range(12))
    done = toy_method.run(tmp_path, "sync", exits=1, TOY_FAULT=fault)
    assert done.stderr.startswith("recycledb: augmentations.pairs: transform 'pairs' ")
    assert done.stderr.endswith("; what was made before is kept\n")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    before = content(url)
    assert len(before["derivation"]) == 3
    if fault == "raises":  # once it is mended, it goes on
        sync(url)
        assert set(before["derivation"]) < set(content(url)["derivation"])
        assert len(content(url)["member"]) == 12
        sound(url)


@pytest.mark.long
def test_a_check_finds_what_was_changed(tmp_path: Path) -> None:
    url = new(f"sqlite:///{install(tmp_path)}/store.db")
    configure(url, PAIRS, "most = 3")
    put(url, range(9))
    sync(url)
    made = next(key for key, members in groups(url).items() if len(members) > 1)
    broken = only(url, f"SELECT derivation_id FROM derivations WHERE variant_id = '{made}'")
    whole = next(key for key in groups(url) if key != made)
    changes = {
        f"UPDATE derivation_member SET ordinal = ordinal + 5 WHERE derivation_id = '{broken}'": [
            f"derivation {broken} has no members, or they are not numbered in one line from 0",
            "1 rows of variant were derived, but have another parent or sample than the first member of their derivation, or it has none",
        ],
        "UPDATE augmentation SET seed = seed + 1": ["has an id that does not match its content"],
        f"UPDATE derivation SET round = 3 WHERE derivation_id = '{broken}'": [
            f"derivation {broken} has an id that does not match its content"
        ],
        f"UPDATE derivation SET reason = 'none' WHERE derivation_id = '{broken}'": [
            "1 rows of derivation have both a variant and a reason for none, or neither, or two variants"
        ],
        f"UPDATE variant SET kind = 'loud' WHERE variant_id = '{whole}'": [
            "1 rows of variant are of another kind than their augmentation's transform makes"
        ],
    }
    kept = folder_of(url) / "kept.db"
    shutil.copyfile(folder_of(url) / "store.db", kept)
    for change, expected in changes.items():
        with Store.open(url) as store, store.write() as conn:
            table = change.split()[1]
            conn.exec_driver_sql(change)
            conn.exec_driver_sql(f"UPDATE {table} SET digest = NULL")
        found = json.loads(toy_method.run(folder_of(url), "db", "check", "--json", exits=1).stdout)["findings"]
        for finding in expected:
            assert [each for each in found if finding in each], (change, found)
        for log in folder_of(url).glob("store.db*"):
            log.unlink()
        shutil.copyfile(kept, folder_of(url) / "store.db")

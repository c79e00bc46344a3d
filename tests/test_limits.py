"""The limit on a reply's length is no part of a teacher: what ended by itself stays, what was cut off is asked again, old rows count."""

from pathlib import Path

import pytest
import stores
from conftest import Cli
from sync_runs import configuration, make_store, rows, run, sample, target
from teacher_server import Exchange, Fault, TeacherServer

from recycledb.config import TeacherConfig
from recycledb.schema import canonical_json, teacher_id_of, utc_now
from recycledb.store import Store
from recycledb.store.merge import merge
from recycledb.store.places import Place, replace_places
from recycledb.store.rows import TeacherRow
from recycledb.store.teachers import find
from recycledb.sync import Sync, Target, resolve
from recycledb.sync.plan import Plan

STEPS = ["reflect_response"]
BOTH = ["reflect_instruction", "reflect_response"]


def limited(server: TeacherServer, limit: int, steps: list[str] = STEPS, name: str = "max_tokens") -> Target:
    return target(server.base_url, steps, params={name: limit})


def plan(url: str, wanted: Target) -> Plan:
    with Store.open(url) as store:
        return Sync(store, wanted).plan()


def former(limit: int) -> tuple[str, str]:
    """Return the id and the parameters of the tests' teacher as they were before revision 0007."""
    config = TeacherConfig(name="t", model="made-up", params={"max_tokens": limit})
    return teacher_id_of(config.configured), canonical_json(config.configured)


def register_former(url: str, limit: int, name: str = "t") -> str:
    """Write the row of a teacher as it was before revision 0007, and let the name mean it."""
    identity, parameters = former(limit)
    with Store.open(url) as store, store.write() as conn:
        store.insert(conn, [TeacherRow(identity, name, "openai", "made-up", parameters, utc_now())])
        store.ensure_name(conn, "teacher", name, identity)
    return identity


def cut_off_thirds(exchange: Exchange) -> Fault | None:
    """Cut off every third answer below a limit of 1,000."""
    limit = exchange.body.get("max_tokens") or exchange.body.get("max_completion_tokens")
    return Fault.CUT_OFF if int(exchange.question, 16) % 3 == 0 and limit < 1000 else None


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_higher_limit_asks_for_what_was_cut_off_and_for_nothing_else(tmp_path: Path, backend: str) -> None:
    url = make_store(tmp_path, 12, backend)
    with TeacherServer(decide=cut_off_thirds) as server:
        first = run(url, limited(server, 512))
        cut = first.left.failed
        assert 0 < cut < 12 and first.asked[0].answered == 12 - cut
        for limit in (512, 256):
            same = plan(url, limited(server, limit))
            assert (same.ready, same.failed, same.cut_off.questions) == (0, cut, 0)
        raised = plan(url, limited(server, 700))
        assert (raised.ready, raised.failed, *raised.cut_off) == (cut, 0, cut, 512, 512)
        again = run(url, limited(server, 700))
        assert (again.asked[0].asked, again.left.failed) == (cut, cut)  # cut off at the new limit too: not asked again
        assert plan(url, limited(server, 700)).ready == 0
        last = run(url, limited(server, 1000, name="max_completion_tokens"))
        assert (last.asked[0].asked, last.complete) == (cut, True)
        assert len(server.log) == 12 + 2 * cut
        assert plan(url, limited(server, 2000)).state == "complete"
    found = rows(url, "SELECT max_tokens, count(*) AS n FROM attempt GROUP BY max_tokens ORDER BY max_tokens")
    assert [(row["max_tokens"], row["n"]) for row in found] == [(512, 12), (700, cut), (1000, cut)]
    assert len(rows(url, "SELECT teacher_id FROM teacher")) == 1


@pytest.mark.long
def test_without_a_limit_what_was_cut_off_is_asked_again_once(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    with TeacherServer(faults={Fault.CUT_OFF: 1.0}) as server:
        run(url, limited(server, 512))
        free = target(server.base_url, STEPS, params={"max_tokens": "unset"})
        assert run(url, free).asked[0].asked == 3
        assert plan(url, free).ready == 0  # the server has a limit of its own
        assert plan(url, limited(server, 4096)).ready == 0


@pytest.mark.long
def test_rows_of_an_older_store_keep_their_id_and_their_limit(tmp_path: Path) -> None:
    url = make_store(tmp_path, 6)
    old = register_former(url, 512)
    with TeacherServer(decide=cut_off_thirds) as server:
        first = run(url, limited(server, 512))
        cut = first.left.failed
        with Store.open(url) as store, store.write() as conn:
            conn.exec_driver_sql("UPDATE attempt SET max_tokens = NULL")  # as the rows of an older store are
        assert cut and plan(url, limited(server, 512)).ready == 0
        assert plan(url, limited(server, 2048)).cut_off == (cut, 512, 512)
        assert run(url, limited(server, 2048)).complete
    assert [row["teacher_id"] for row in rows(url, "SELECT DISTINCT teacher_id FROM reply")] == [old]
    assert [row["teacher"] for row in rows(url, "SELECT teacher FROM teachers")] == ["t"]


def asked_store(folder: Path, server: TeacherServer, limit: int, samples: range, old: bool, backend: str) -> str:
    """Make a store whose dataset has 8 samples, of which a teacher with this limit was asked about some."""
    folder.mkdir()
    url = make_store(folder, 0, backend)
    with Store.open(url) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in samples))
    if old:
        register_former(url, limit)
    run(url, limited(server, limit, BOTH))
    with Store.open(url) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in range(8)))
    return url


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
@pytest.mark.parametrize("old", [False, True], ids=["older and newer", "two older"])
def test_stores_in_which_one_teacher_has_two_ids_are_merged_into_one_teacher(
    tmp_path: Path, backend: str, old: bool
) -> None:
    states = []
    with TeacherServer() as server:
        for number, (into, source) in enumerate(((0, 1), (1, 0))):
            folder = tmp_path / str(number)
            folder.mkdir()
            urls = [
                asked_store(folder / "a", server, 512, range(5), True, backend),
                asked_store(folder / "b", server, 1024, range(3, 8), old, backend),
            ]
            server.log.clear()
            with Store.open(urls[into]) as here, Store.open(urls[source]) as there:
                clashes = merge(here, there).clashes
                assert [clash for clash in clashes if clash.kind == "teacher"] == []
                wanted = limited(server, 2048, BOTH).within(here)
                aliases = {row.teacher_id for row in here.rows("SELECT teacher_id FROM teacher_aliases")}
                assert set(wanted.known.aliases) == aliases and len(aliases) == 1  # type: ignore[union-attr]
                outcome = Sync(here, wanted).run()
                assert outcome.complete and server.log == []
                current = here.rows("SELECT variant_id FROM current_variants")
                with here.write() as conn:
                    here.insert(conn, [stores.student_row("s" * 12, "s")])
                    for row in current:
                        here.insert(conn, stores.losses(row.variant_id, "s" * 12))
                shown = here.rows(
                    "SELECT teacher, count(q_id), count(a_id), count(qa_id) FROM sample_scores GROUP BY teacher"
                )
                assert [tuple(row) for row in shown] == [("t", 8, 8, 8)]
                assert {
                    row.is_current for row in here.rows("SELECT is_current FROM variants WHERE kind = 'origin'")
                } == {1}
                named = here.rows("SELECT DISTINCT teacher FROM variants WHERE teacher IS NOT NULL")
                assert [row.teacher for row in named] == ["t"]
                kinds = here.rows("SELECT kind, count(*) AS n FROM current_variants GROUP BY kind ORDER BY kind")
                states.append([tuple(row) for row in kinds])
    assert (
        states[0]
        == states[1]
        == [("origin", 8), ("reflect_both", 8), ("reflect_instruction", 8), ("reflect_response", 8)]
    )


@pytest.mark.long
def test_the_replies_of_the_row_that_has_the_name_count_first(tmp_path: Path) -> None:
    """A store in which everything was asked with 512 and again with 1024, as before: the selection stays what it was."""
    url = make_store(tmp_path, 4)
    with TeacherServer() as server:
        register_former(url, 512, "other")
        run(url, limited(server, 512))  # both names mean the row
        with Store.open(url) as store, store.write() as conn:
            conn.exec_driver_sql("DELETE FROM name WHERE kind = 'teacher'")
        newer = register_former(url, 1024)
        with Store.open(url) as store:
            assert find(store, "t", TeacherConfig(name="t", model="made-up").identity).ids == (newer, former(512)[0])
            assert find(store, "u", TeacherConfig(name="u", model="made-up").identity).teacher_id == former(512)[0]
        assert plan(url, limited(server, 2048)).ready == 0  # the replies of 512 fill the gap
        before = {row["variant_id"] for row in rows(url, "SELECT variant_id FROM variants WHERE is_current = 1")}
        assert len(before) == 8
        with Store.open(url) as store, store.write() as conn:  # as if 1024 had been asked by an older release
            for table in ("reply", "variant"):
                names = [row[1] for row in conn.exec_driver_sql(f"PRAGMA table_info({table})")]
                keys = {
                    "text_id": "'1024' || substr(text_id, 5)",
                    "variant_id": "variant_id",
                    "teacher_id": f"'{newer}'",
                }
                if table == "variant":
                    keys["variant_id"] = "'1024' || substr(variant_id, 5)"
                columns = ", ".join(keys.get(name, f'"{name}"') for name in names)
                where = "teacher_id IS NOT NULL"
                conn.exec_driver_sql(f"INSERT INTO {table} SELECT {columns} FROM {table} WHERE {where}")
            conn.exec_driver_sql(
                "INSERT INTO extraction SELECT '1024' || substr(text_id, 5), extractor, '1024' || substr(variant_id, 5), "
                "reason, created_at, digest FROM extraction"
            )
        found = rows(url, "SELECT variant_id, teacher_id FROM variants WHERE is_current = 1 AND kind <> 'origin'")
        assert {row["teacher_id"] for row in found} == {newer} and len(found) == 4


def test_names_that_mean_different_rows_stay_different_teachers(tmp_path: Path) -> None:
    url = make_store(tmp_path, 2)
    short, long = register_former(url, 512, "short"), register_former(url, 4096, "t")
    with Store.open(url) as store:
        assert store.rows("SELECT * FROM teacher_aliases") == []
        identity = TeacherConfig(name="t", model="made-up").identity
        assert find(store, "t", identity).ids == (long,) and find(store, "short", identity).ids == (short,)


# --- what a change leaves unused ------------------------------------------------------------------


@pytest.mark.long
def test_the_plan_says_what_a_change_leaves_unused_and_how_to_go_back(tmp_path: Path) -> None:
    url = make_store(tmp_path, 5)
    prices = {"price_in": 100.0, "price_out": 100.0}
    with TeacherServer() as server:
        run(url, target(server.base_url, BOTH, params={"temperature": 0.5}, **prices))
        assert plan(url, target(server.base_url, BOTH, params={"temperature": 0.5, "max_tokens": 9})).unused == []
        [unused] = plan(url, target(server.base_url, BOTH, params={"top_p": 0.9})).unused
        assert unused.what == "[teachers.t]" and unused.changed == "params.temperature: 0.5 → 0, params.top_p: 1 → 0.9"
        assert unused.back == "set params.temperature = 0.5 in [teachers.t] and set params.top_p = 1 in [teachers.t]"
        [spent] = rows(url, "SELECT count(*) AS n, sum(cost_usd) AS usd FROM reply")
        assert (unused.replies, unused.cost_usd) == (spent["n"], pytest.approx(spent["usd"]))
        prompt = tmp_path / "mine.txt"
        prompt.write_text("Reflect: {instruction} {output}\n[New Instruction] [New Answer] [End]")
        config = configuration(server.base_url, BOTH, params={"temperature": 0.5})
        changed = resolve(config.model_copy(update={"prompts": {"reflect_instruction": prompt}}), only="reflect")
        [unused] = plan(url, changed).unused
        assert unused.what == "prompts.reflect_instruction" and unused.changed.endswith(f" → {prompt}")
        assert unused.replies == 10 and "--prompt" in unused.back  # the new instructions, and the answers to them
        outcome = run(url, changed, limit=2)
        assert outcome.as_dict()["unused"][0]["replies"] == 10
        assert [each.replies for each in plan(url, changed).unused] == [10]  # as long as it is not asked again
        run(url, changed)
        assert plan(url, changed).unused == []


@pytest.mark.long
def test_the_command_shows_cut_off_replies_and_changes(tmp_path: Path, cli: Cli) -> None:
    url = make_store(tmp_path, 3)
    with TeacherServer(faults={Fault.CUT_OFF: 1.0}) as server:
        run(url, limited(server, 512))
        text = f"""
[store]
url = "{url}"
[teachers.t]
model = "made-up"
base_url = "{server.base_url}"
params = {{ max_tokens = 1024 }}
[sync]
steps = ["reflect_response"]
"""
        (tmp_path / "recycledb.toml").write_text(text)
        done = cli("sync", "--dry-run", cwd=tmp_path)
        assert "3 of these replies were cut off at max_tokens = 512; they are asked for again with 1,024" in done.stdout

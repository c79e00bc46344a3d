"""A merge that is killed and run again brings what one brings that was not: between all backends, in every direction."""

import sys
from pathlib import Path

import forks
import pytest
import test_merge
from conftest import ALL_BACKENDS, clean_environment
from templates import drop, new_url

from recycledb.store import Store, verify
from recycledb.store.merge import merge, open_source

KILLED = Path(__file__).with_name("killed_merge.py")


@pytest.mark.long
@pytest.mark.default_cases("no case")
@pytest.mark.parametrize("target", ["sqlite", "duckdb", "server"])
@pytest.mark.parametrize("source", ["sqlite", "duckdb", "server"])
def test_a_killed_merge_is_made_good_by_the_next(source: str, target: str, tmp_path: Path) -> None:
    named = {"server": "postgresql"}
    if "server" in (source, target) and "postgresql" not in ALL_BACKENDS:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    there = new_url(named.get(source, source), tmp_path / f"source.{source}")
    whole, cut = (new_url(named.get(target, target), tmp_path / f"{name}.{target}") for name in ("whole", "cut"))
    with Store.open(there) as store:
        test_merge.fill(store, range(4))
    with Store.open(whole) as store, open_source(there) as opened:
        merge(store, opened)
        expected = test_merge.contents(store)
        assert verify.check(store).findings == []
    sizes = []
    for commits in (3, 9, 15):
        command = [sys.executable, str(KILLED), cut, there, str(commits)]
        done = forks.run(command, env=clean_environment())
        assert done.returncode == -9, done.stderr
        with Store.open(cut) as store:
            sizes.append(sum(map(len, test_merge.contents(store).values())))
    assert 0 < sizes[0] < sizes[1] < sum(map(len, expected.values()))  # each was cut in another place
    with Store.open(cut) as store, open_source(there) as opened:
        merge(store, opened)
        assert test_merge.contents(store) == expected
        assert verify.check(store).findings == []
        assert not any(merge(store, opened).rows.values())
    for url in (there, whole, cut):
        drop(url)

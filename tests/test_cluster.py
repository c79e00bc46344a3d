"""[cluster] and --ray, as far as they need no cluster: what a replica needs, why it has no place, and what is told beforehand."""

import sys
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import Cli
from sync_runs import make_store

from recycledb.cli.sync import with_addresses
from recycledb.config import StudentConfig, parse
from recycledb.errors import ConfigError
from recycledb.scoring.cluster import Need, need_of, no_room
from recycledb.workspace import Workspace

STUDENT = Path(__file__).parents[1] / "recycledb" / "demo" / "students" / "small"
GPU_NODE, CPU_NODE = {"GPU": 4.0, "CPU": 16.0, "memory": 2.0**36}, {"CPU": 2.0, "memory": 2.0**33}
BILLIONS_7 = 7_000_000_000


def settings(**cluster: Any) -> Any:
    return parse({"cluster": cluster}, Path("recycledb.toml")).cluster


@pytest.mark.parametrize(
    ("cluster", "student", "parameters", "nodes", "expected"),
    [
        ({}, {}, BILLIONS_7, [GPU_NODE, CPU_NODE], Need(1, 1)),
        ({}, {"device": "cpu", "dtype": "bfloat16"}, BILLIONS_7, [GPU_NODE], Need(0, 4, 2 * BILLIONS_7 + 2**30)),
        ({}, {}, 100_000_000, [CPU_NODE], Need(0, 2, 400_000_000 + 2**30)),  # no node has 4 CPUs
        ({}, {}, 20_000_000, [CPU_NODE], Need(0, 1, 80_000_000 + 2**30)),  # small: one thread
        ({}, {"device": "cuda"}, None, [CPU_NODE], Need(1, 1)),  # a node with a GPU may join
        ({"gpus_per_replica": 0.5, "cpus_per_replica": 3}, {}, BILLIONS_7, [GPU_NODE], Need(0.5, 3)),
        ({"gpus_per_replica": 2}, {}, None, [], Need(2, 1)),
        ({}, {}, None, [], Need(0, 1)),
    ],
)
def test_what_a_replica_needs(
    cluster: dict[str, Any], student: dict[str, Any], parameters: int | None, nodes: Any, expected: Need
) -> None:
    config = StudentConfig(name="s", model="org/s", **student)
    assert need_of(settings(**cluster), config, parameters, nodes) == expected


def test_how_many_replicas_have_room() -> None:
    assert Need(1, 1).capacity([GPU_NODE, CPU_NODE]) == 4
    assert Need(0.5, 1).capacity([GPU_NODE]) == 8
    assert Need(0.1, 0).capacity([{"GPU": 1.0}]) == 10
    assert Need(0, 4, 2**35).capacity([GPU_NODE]) == 2  # memory for two, CPUs for four
    assert Need(2, 1).capacity([CPU_NODE]) == 0


def test_why_there_is_no_room() -> None:
    told = no_room(Need(1, 4), [CPU_NODE, CPU_NODE], {}, 60)
    assert "each replica needs 1 GPU, 4 CPUs; the cluster's 2 nodes have 0 GPUs, 4 CPUs in all" in told
    assert "not enough GPUs and CPUs" in told and "set gpus_per_replica" in told
    told = no_room(Need(1, 1), [GPU_NODE], {"CPU": 12.0}, 60)
    assert "of which 0 GPUs, 12 CPUs are free after 60 s" in told and "ray_wait_s" in told
    assert "not enough memory" in no_room(Need(0, 1, 2**40), [GPU_NODE], {}, 60)
    assert "1024.0 GiB of memory" in no_room(Need(0, 1, 2**40), [GPU_NODE], {}, 60)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"ray": "atuo"}, r"cluster.ray: 'atuo' \(did you mean 'auto'\?\): give HOST:PORT"),
        ({"ray": ""}, "cluster.ray: '': give HOST:PORT"),
        ({"ray": "ray://head:10001"}, "cluster.ray: 'ray://head:10001' is an address of Ray Client"),
        ({"ray": True}, "cluster.ray: Input should be a valid string"),
        ({"replicas": 0}, 'cluster.replicas: 0: give "auto", or a number from 1'),
        ({"replicas": "eight"}, "cluster.replicas: 'eight': give \"auto\""),
        ({"gpus_per_replica": 1.5}, "cluster.gpus_per_replica: 1.5: Ray takes a part of one GPU, or whole ones"),
        ({"cpus_per_replica": -1}, "cluster.cpus_per_replica: Input should be greater"),
        ({"ray_wait_s": -1}, "cluster.ray_wait_s: -1 is out of range"),
        ({"replica": 2}, r"cluster.replica: unknown key \(did you mean 'replicas'\?\)"),
    ],
)
def test_mistakes_in_the_table_are_told(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**cluster)


def test_options_go_before_the_table() -> None:
    config = parse({"cluster": {"ray": "head:6379", "replicas": 4}}, Path("recycledb.toml"))
    assert (config.get_cluster().ray, config.get_cluster().replicas) == ("head:6379", 4)
    assert (config.get_cluster(True, "auto").ray, config.get_cluster(True, "auto").replicas) == ("auto", "auto")
    assert config.get_cluster(False).ray == "none" and config.get_cluster("local", "2").replicas == 2
    with pytest.raises(ConfigError, match="--replicas is for a Ray cluster: give --ray too"):
        parse({}, Path("recycledb.toml")).get_cluster(replicas=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of three samples, and one student."""
    url = make_store(tmp_path, 3)
    table = f'[store]\nurl = "{url}"\n[students.s]\nmodel = "{STUDENT}"\nmax_length = 512\n'
    (tmp_path / "recycledb.toml").write_text(table)
    return tmp_path


@pytest.mark.long
def test_a_dry_run_says_what_the_cluster_is_for_and_does_not_connect(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cli("sync", "--ray", "--dry-run", env={"RAY_ADDRESS": "127.0.0.1:1"}, modules=forks.MODELS).stdout
    assert "computed in a Ray cluster ($RAY_ADDRESS, else the one on this machine): s; as many replicas" in told
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with Workspace.open(f"sqlite:///{folder}/store.db", config=folder / "recycledb.toml") as db:
        plan = db.plan(ray="head:6379", replicas=3)
        assert plan.as_dict()["cluster"] == "computed in a Ray cluster (head:6379): s; replicas of each: 3"
        assert db.plan().as_dict()["cluster"] is None
        with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: Connection refused"):
            db.sync(ray="127.0.0.1:1")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--ray"], ["--ray=auto"]),
        (["--ray", "--only", "score"], ["--ray=auto", "--only", "score"]),
        (["--only", "score", "--ray"], ["--only", "score", "--ray=auto"]),
        (["--ray", "head:6379", "--json"], ["--ray", "head:6379", "--json"]),
        (["--ray=local"], ["--ray=local"]),
        ([], []),
    ],
)
def test_the_address_may_be_left_out(given: list[str], expected: list[str]) -> None:
    assert with_addresses(given) == expected


def test_without_the_extra_it_is_told_before_anything_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with Workspace.open(f"sqlite:///{folder}/store.db", config=folder / "recycledb.toml") as db:
        run = db.prepare_sync(ray=True)
        assert run.plan().warnings == [
            "students are to be computed in a Ray cluster, but Ray is not installed: pip install 'recycledb[ray]'"
        ]
        with pytest.raises(ConfigError, match=r"pip install 'recycledb\[ray\]'"):
            run.run()
        assert db.store.rows("SELECT count(*) FROM loss")[0][0] == 0

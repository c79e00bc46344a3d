"""Students computed by replicas in a real Ray cluster, whose actors, nodes and driver are killed, on this machine.

What the rows must be is what a run without Ray gives, to the last digit: kernel and packs are the same.
"""

import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import RUN_COMMAND, clean_environment
from forks import DEVNULL, PIPE
from sync_runs import make_store
from test_score_kills import CONFIGURATION, FACTS, KEYS, table_rows
from tiny_students import save_encoder, save_student

from recycledb.errors import StudentError
from recycledb.sync import Outcome, Progress
from recycledb.workspace import Workspace

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours

SAMPLES = 60
TOTAL = SAMPLES * FACTS["loss"]
ACTOR = "ray::Replica"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
COMMIT = "5" * 40


class Nodes:
    """A cluster of nodes of one CPU each, beside a head of none, and every process of it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000, "env_vars": OFFLINE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(), self.add()]

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.cluster.address)

    def add(self, **environment: str) -> Any:
        """Start a node, with more in its environment."""
        variables = {**OFFLINE, **environment}
        return self.cluster.add_node(num_cpus=1, object_store_memory=80_000_000, memory=4 << 30, env_vars=variables)

    def remove(self, node: Any) -> None:
        """Kill a node's processes."""
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End all of its processes, also those that Ray leaves for a while."""
        session = Path(self.cluster.head_node.get_session_dir_path()).name
        self.cluster.shutdown()
        for pid in processes(session):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster whose nodes have room for two replicas."""
    importlib.import_module("recycledb.scoring.ray_lanes")  # before Ray itself, which reads its environment then
    made = Nodes()
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two students, a store and its configuration, and the same store filled without Ray."""
    folder = tmp_path_factory.mktemp("ray")
    save_student(folder / "student", "llama")
    save_encoder(folder / "encoder")
    (folder / "prompts.txt").write_text("Rate from 1 to 5 how well it answers.\nFrom 1 to 5, how good?\n")
    make_store(folder, SAMPLES)
    shutil.copyfile(folder / "store.db", folder / "filled.db")
    (folder / "recycledb.toml").write_text(CONFIGURATION.format(url="sqlite:///store.db"))
    assert synced(folder, "filled.db").complete
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that folder, whose store lacks all facts."""
    shutil.copytree(undisturbed, tmp_path / "copy")
    return tmp_path / "copy"


def synced(folder: Path, store: str = "store.db", **options: Any) -> Outcome:
    """Sync a store of a folder in this process."""
    with Workspace.open(f"sqlite:///{folder}/{store}", config=folder / "recycledb.toml") as db:
        return db.sync(**options)


def assert_rows_of_a_run_without_ray(folder: Path, *tables: str) -> None:
    for table, key in KEYS.items():
        if tables and table not in tables:
            continue
        assert rows(folder, "store.db", table, key) == rows(folder, "filled.db", table, key)


def rows(folder: Path, store: str, table: str, key: str) -> list[dict[str, Any]]:
    """Return a table's rows; the digest of each is over all of its columns, numbers to the last digit."""
    return [{**row, "computed_at": None} for row in table_rows(f"sqlite:///{folder}/{store}", table, key)]


def number_of_facts(folder: Path) -> int:
    with Workspace.open(f"sqlite:///{folder}/store.db", config=folder / "recycledb.toml") as db:
        return sum(int(db.store.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in FACTS)


def processes(sign: str) -> list[int]:
    """Return the processes in whose command line a text occurs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if sign in command and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until something is true; fail where it never is."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


class Once:
    """A listener that does something when so many facts of a student are done; the run waits for it."""

    def __init__(self, done: int, act: Callable[[], None]) -> None:
        self.done, self.act, self.acted = done, act, False
        self.shares: list[float] = []

    def __call__(self, progress: Progress) -> None:
        if progress.utilisation is not None:
            self.shares.append(progress.utilisation)
        if not self.acted and progress.done >= self.done:
            self.acted = True
            self.act()


def told(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Return how many lines of our log have a text."""
    return sum(text in line for line in caplog.messages)


def test_an_actor_is_killed(
    nodes: Nodes, folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rows are complete and those of a run without Ray; a third replica has no place, which is told and changes nothing."""
    caplog.set_level(logging.INFO, "recycledb.scoring")

    def kill_one() -> None:
        wait_for(lambda: told(caplog, "a replica of s is ready") == 2)
        wait_for(lambda: told(caplog, "1 of 3 replicas of s have no place: each replica needs 1 CPU"))
        os.kill(processes(ACTOR)[0], signal.SIGKILL)

    listener = Once(50, kill_one)
    config = (folder / "recycledb.toml").read_text() + "[cluster]\nray_wait_s = 1\n"
    (folder / "recycledb.toml").write_text(config)
    term = signal.getsignal(signal.SIGTERM)
    outcome = synced(folder, ray=nodes.address, replicas=3, listener=listener)
    assert outcome.complete and listener.acted
    assert signal.getsignal(signal.SIGTERM) is term, "Ray's own handler would end the run without its end"
    assert told(caplog, "a replica on node") == 1 and told(caplog, "is lost: ") == 1
    assert told(caplog, "a replica of s is ready") >= 2 and told(caplog, "a replica of e is ready") >= 1
    assert capfd.readouterr().out == "", "stdout is for the command's result"
    assert any(0 < share < 1.5 for share in listener.shares)
    assert_rows_of_a_run_without_ray(folder)
    assert [scored.statistics for scored in outcome.scored] == [8 * SAMPLES, SAMPLES]
    wait_for(lambda: processes(ACTOR) == [])


def test_a_node_is_killed_and_another_joins(nodes: Nodes, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recycledb.scoring")

    def change_nodes() -> None:
        wait_for(lambda: told(caplog, "a replica of s is ready") == 2)
        nodes.remove(nodes.nodes.pop(0))
        wait_for(lambda: told(caplog, "is lost: ") == 1)
        nodes.nodes.append(nodes.add())
        wait_for(lambda: told(caplog, "a replica of s is ready") == 3)

    listener = Once(50, change_nodes)
    synced(folder, only="score", ray=nodes.address, listener=listener)
    assert listener.acted
    assert (
        len({line.partition("node ")[2].split(",")[0] for line in caplog.messages if "a replica of s is ready" in line})
        == 3
    )
    assert_rows_of_a_run_without_ray(folder, "loss")


def start_command(folder: Path, *words: str, **environment: str) -> forks.Forked:
    """Start the command in a process of its own."""
    return forks.start(
        [*RUN_COMMAND, *words], cwd=folder, stdout=DEVNULL, stderr=PIPE, env=clean_environment(**environment),
        modules=forks.MODELS,
    )  # fmt: skip


def test_the_driver_is_killed_and_run_again(nodes: Nodes, folder: Path) -> None:
    with start_command(folder, "sync", "--ray", "--only", "score", RAY_ADDRESS=nodes.address) as driver:
        wait_for(lambda: number_of_facts(folder) > 50)
        driver.kill()
    committed = number_of_facts(folder)
    assert 50 < committed < TOTAL
    wait_for(lambda: processes(ACTOR) == [])
    outcome = synced(folder, only="score", ray=nodes.address)
    assert [scored.statistics for scored in outcome.scored] == [TOTAL - committed]
    assert_rows_of_a_run_without_ray(folder, "loss")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_it_in_order(nodes: Nodes, folder: Path, number: signal.Signals) -> None:
    with start_command(folder, "sync", "--ray", nodes.address, "--only", "score") as driver:
        wait_for(lambda: number_of_facts(folder) > 50)
        driver.send_signal(number)
        _, err = driver.communicate(120)
        assert driver.wait() == 3
    assert b"recycledb: stopping: finishing in-flight requests" in err and b"Traceback" not in err
    wait_for(lambda: processes(ACTOR) == [])
    assert 50 < number_of_facts(folder) < TOTAL


def test_a_replica_without_a_place_is_told_and_waited_for_no_longer_than_configured(nodes: Nodes, folder: Path) -> None:
    """At once where no node has enough; a stop ends the waiting."""
    config = (folder / "recycledb.toml").read_text().replace('device = "cpu"', "")
    (folder / "recycledb.toml").write_text(config + "[cluster]\ngpus_per_replica = 1\nray_wait_s = 1\n")
    expected = (
        r"no replica of student s has a place: each replica needs 1 GPU, 1 CPU; the cluster's 3 nodes have 0 GPUs, 2 CPUs in all, "
        r"and no node has enough \(not enough GPUs\): set gpus_per_replica"
    )
    with pytest.raises(StudentError, match=expected):
        synced(folder, ray=nodes.address)
    (folder / "recycledb.toml").write_text(config + "[cluster]\ngpus_per_replica = 1\nray_wait_s = 10_000\n")
    with start_command(folder, "sync", "--ray", nodes.address, "--only", "score") as driver:
        wait_for(lambda: connected_drivers(nodes) > 0)
        driver.send_signal(signal.SIGINT)
        assert driver.communicate(120) and driver.wait() == 3
    assert number_of_facts(folder) == 0


def connected_drivers(nodes: Nodes) -> int:
    """Return how many jobs the cluster has that have not ended."""
    code = (
        "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=50); "
        "print(sum(not job['IsDead'] for job in ray._private.state.jobs()) - 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, nodes.address], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def test_a_replica_with_other_weights_is_refused(nodes: Nodes, folder: Path) -> None:
    """The folder changes after the student's identity was computed: wrong numbers would come in under the student's name."""
    with Workspace.open(f"sqlite:///{folder}/store.db", config=folder / "recycledb.toml") as db:
        run = db.prepare_sync(only="score", ray=nodes.address)
        (weights,) = (folder / "student").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
        with pytest.raises(
            StudentError, match=r"no node can be used for student s: .* has other weights or another tokenizer"
        ):
            run.run()
    assert number_of_facts(folder) == 0


def test_nodes_without_the_model_are_left_out(nodes: Nodes, folder: Path) -> None:
    """Two nodes have no copy of a Hub model: the one on the third computes it all."""
    repository = folder / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder / "student", repository / "snapshots" / COMMIT)
    (folder / "recycledb.toml").write_text(
        f'[store]\nurl = "sqlite:///{folder}/store.db"\n[students.s]\nmodel = "org/tiny"\nmax_length = 256\n'
    )
    third = nodes.add(HF_HUB_CACHE=str(folder / "hub"))
    command, env = [*RUN_COMMAND, "sync", "--ray", nodes.address], clean_environment(HF_HUB_CACHE=str(folder / "hub"))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=300, check=False)
    nodes.remove(third)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"is not used for student s: ") == 2 and number_of_facts(folder) == TOTAL


def test_a_cluster_for_the_time_of_the_sync_sees_no_key(folder: Path) -> None:
    """`--ray local` starts Ray's processes with this process's environment, without the teachers' keys and the store's address."""
    (folder / "recycledb.toml").write_text(
        (folder / "recycledb.toml").read_text() + '[teachers.t]\nmodel = "m"\napi_key_env = "MY_KEY"\n'
    )
    secrets = {"MY_KEY": "sk-secret", "RECYCLEDB_STORE": f"sqlite:///{folder}/store.db", "PGPASSWORD": "sk-secret"}
    words = ("sync", "--ray", "local", "--replicas", "1", "--only", "score")
    with start_command(folder, *words, MARKED="here", **secrets) as driver:
        wait_for(lambda: number_of_facts(folder) > 0)
        seen = [environment(pid) for pid in (*processes(ACTOR), *processes("raylet/raylet"), *processes("gcs_server"))]
        ours = [each for each in seen if each.get("MARKED") == "here"]
        assert driver.communicate(300) and driver.wait() == 0
    assert len(ours) >= 3 and all(secrets.keys().isdisjoint(each) for each in ours)
    assert all(each["RAY_USAGE_STATS_ENABLED"] == "0" for each in ours)


def environment(pid: int) -> Mapping[str, str]:
    """Return the environment that a process was started with; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)

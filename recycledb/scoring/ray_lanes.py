"""Lanes whose replicas are Ray actors, on the nodes of a cluster; the only importer of Ray.

Invariant: a pack is computed once for each result that is used, and none is lost: an actor is never restarted by Ray and no call is made
again by it (`max_restarts=0`; with restarts a call to an actor for which there is no room waits for ever). The loss of an actor is a
LaneLost, and the pool gives its pack to another lane; here a new actor is placed wherever there is room. This process's end, in any
way, ends the actors, which belong to its Ray job.
"""

import logging
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

# Read when Ray is imported, and by the processes that it starts. Without the last, reports of lost processes, which we tell in one line
# of our own, come on stdout, where the command's result is.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning for each actor without a GPU
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from recycledb.clusters import AUTO, LOCAL, ClusterSettings
from recycledb.config import StudentConfig
from recycledb.errors import ConfigError, RecycledbError, StudentError
from recycledb.scoring.cluster import Need, Resources, need_of, no_room
from recycledb.scoring.encoder import Encoder, EncoderTokeniser
from recycledb.scoring.engine import Engine, require_fit
from recycledb.scoring.identity import Identity
from recycledb.scoring.lanes import ALLOCATION, LaneLost
from recycledb.scoring.network import resolve_dtype
from recycledb.scoring.outputs import Output
from recycledb.scoring.packs import Work
from recycledb.scoring.pool import LanePool
from recycledb.scoring.replica import Loaded, Model, Place, Replica
from recycledb.scoring.scorer import Scorer
from recycledb.scoring.tokeniser import Tokeniser

log = logging.getLogger(__name__)

_SECRET = re.compile("OPENAI_|PG|RECYCLEDB_STORE$")  # beside the teachers' own variables: libpq's, and a store's URL
_CONNECT_S = 10.0
_TICK_S = 0.5
_MOST_DEATHS = 2  # of replicas on a node before they are ready


class Connection:
    """A connection to a cluster; one that another part of this process had made before is left as it is."""

    def __init__(self, *, owned: bool) -> None:
        self._owned = owned

    def close(self) -> None:
        """Leave the cluster; one that was started for us ends."""
        if self._owned:
            with _own_signals():
                ray.shutdown()


def connect(address: str, secrets: Sequence[str] = ()) -> Connection:
    """Connect to the cluster at an address ("auto", "local" or HOST:PORT); raise ConfigError where that is not possible.

    The processes of a "local" cluster inherit this process's environment, but for stores' and teachers' credentials: `secrets` are the
    names of further variables that they must not see.
    """
    if ray.is_initialized():
        return Connection(owned=False)
    told = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if told not in ("", AUTO, LOCAL):
        _require_listener(told)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if told == LOCAL:
        options["include_dashboard"] = False
    try:
        with _own_signals(), _without(secrets):
            ray.init(address=told or AUTO, **options)
    except ConnectionError as error:
        if told:
            raise _no_connection(told, error) from error
        raise ConfigError(
            "no Ray cluster runs on this machine: start one (`ray start --head`), give the address of one (--ray HOST:PORT or "
            "$RAY_ADDRESS), or use this machine alone (--ray local)"
        ) from error
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise _no_connection(told or "on this machine", error) from error
    return Connection(owned=True)


def _no_connection(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"no connection to the Ray cluster {address}: {_first_line(error)}")


def _require_listener(address: str) -> None:
    """Raise ConfigError where nothing listens at HOST:PORT: Ray itself would try for a long time."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not host or not port.isdecimal():
        raise ConfigError(f"$RAY_ADDRESS is {address!r}: give HOST:PORT of the head (the port is 6379 by default)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}; check the address, and that its head "
            "runs (`ray status` there)"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handling of signals: Ray replaces that of SIGTERM by an exit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if handler is not None:  # not set from Python
                signal.signal(number, handler)


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Remove environment variables for as long as Ray's processes are started, which inherit the others."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name in names or _SECRET.match(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def load(
    config: StudentConfig, identity: Identity, settings: ClusterSettings, stopped: Callable[[], bool]
) -> Scorer | None:
    """Return a student over replicas in the cluster, once the first is ready; None if the run is `stopped` before.

    Raises StudentError where no replica can be placed, loaded and proved to be the student.
    """
    model = Model(config, identity, 0.0, 1)
    if config.encoder:
        words: Any = EncoderTokeniser.load(config.model, model.revision, config.max_length)
    else:
        words = Tokeniser.load(config.model, model.revision, config.prompt, config.max_length)
    replicas = Replicas(config, identity, settings)
    try:
        loaded = replicas.first(stopped)
        if loaded is None:
            replicas.pool.close(at_once=True)
            return None
        if loaded.shape is None:
            return Encoder(words, replicas.pool)
        require_fit(config.model, words, loaded.positions, loaded.vocabulary)
        device = torch.device(loaded.device)
        return _ClusterEngine(words, replicas.pool, loaded.shape, device, resolve_dtype(config.dtype))
    except BaseException:
        replicas.pool.close(at_once=True)
        raise


class _ClusterEngine(Engine):
    def begin_peak(self) -> Callable[[], float] | None:
        lane = next(iter(self.pool.lanes), None)
        if not isinstance(lane, RayLane):
            return None
        try:
            peak = lane.peak()
        except (LaneLost, StudentError):  # the packs will show what is wrong
            return None
        before = self.pool.lane_seconds
        return lambda: peak * (self.pool.lane_seconds - before)


class Seat:
    """Room for one replica on a node, once the cluster has found it; the replica's actor is in it."""

    def __init__(self, need: Need, left_out: Iterable[str]) -> None:
        nodes = ",".join(left_out)
        selector = [{"ray.io/node-id": f"!in({nodes})"}] if nodes else None
        self.asked = time.monotonic()
        self.node_id = ""  # where it is; "" as long as there is no room
        self.place: Place | None = None  # once the replica has told it
        self.reference: Any = None  # of what the replica was last asked
        self._need = need
        self._actor: Any = None
        self._group = placement_group([need.resources], bundle_label_selector=selector)

    def look(self) -> None:
        """Start the actor if there is room by now."""
        table = placement_group_table(self._group) if not self.node_id else {}
        if table.get("state") != "CREATED":
            return
        self.node_id = table["bundles_to_node_id"][0]
        options: dict[str, Any] = {"num_cpus": self._need.cpus, "num_gpus": self._need.gpus}
        options |= {"memory": self._need.memory or None, "max_restarts": 0, "max_task_retries": 0}
        if not self._need.gpus:
            options["runtime_env"] = {"env_vars": ALLOCATION}
        strategy = PlacementGroupSchedulingStrategy(self._group)
        self._actor = ray.remote(Replica).options(scheduling_strategy=strategy, **options).remote()
        self.reference = self._actor.place.remote()

    def ask(self, method: str, argument: Any) -> Any:
        """Call a method of the replica; return the reference of its result."""
        return getattr(self._actor, method).remote(argument)

    def close(self) -> None:
        """End the actor, also one that lives on behind a network that is down, and free the room."""
        with suppress(
            RayError, RuntimeError, ValueError, AssertionError
        ):  # it is gone already, or so is the connection
            if self._actor is not None:
                ray.kill(self._actor)
            remove_placement_group(self._group)


class RayLane:
    """A lane whose replica is an actor."""

    def __init__(self, seat: Seat, place: Place, kernel: str) -> None:
        self.kernel, self.seat, self.place = kernel, seat, place
        self._lost = False

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        return self._result(self.seat.ask("outputs", list(batch)))  # type: ignore[no-any-return]

    def peak(self) -> float:
        """Return the measured peak of its devices."""
        return float(self._result(self.seat.ask("peak", None)))

    def close(self) -> None:
        self.seat.close()

    def _result(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise _failure(error, f"the replica on node {self.place.node} failed") from error
        except RayError as error:  # of the actor, its node, or of the objects on it: computed anew elsewhere
            self.note_loss(_reason(error))
            raise LaneLost(f"node {self.place.node}: {_reason(error)}") from error

    def note_loss(self, reason: str) -> None:
        """Tell once that it is lost."""
        if not self._lost:
            self._lost = True
            log.warning("a replica on node %s is lost: %s", self.place.node, reason)


def _failure(error: RayTaskError, otherwise: str) -> StudentError:
    """Return the error that a replica raised, as our own."""
    cause = error.cause
    if isinstance(cause, RecycledbError):
        return StudentError(str(cause))
    return StudentError(
        f"{otherwise}: {type(cause).__name__}: {cause}" if cause else f"{otherwise}: {_first_line(error)}"
    )


class Replicas:
    """Places a student's replicas in the cluster, as many as are wanted and have room, for as long as the engine runs.

    A thread of its own makes lanes of those that are ready, replaces lost ones, and uses nodes that join. A node whose replica is refused
    (other weights, another release) is left out from then on.
    """

    def __init__(self, config: StudentConfig, identity: Identity, settings: ClusterSettings) -> None:
        self._settings, self._name = settings, config.name
        self._need = need_of(settings, config, identity.parameters, [node["Resources"] for node in _nodes()])
        self._model = Model(config, identity, self._need.gpus, max(1, int(self._need.cpus)))
        self.pool = LanePool(source=self)
        self._coming: list[Seat] = []  # without a place, or loading
        self._refused: dict[str, str] = {}  # nodes by id, and why
        self._deaths: Counter[str] = Counter()  # of replicas before they were ready, by the node's id
        self._told = False
        self._empty_since: float | None = time.monotonic()
        self._first: Loaded | None = None
        self._error: StudentError | None = None
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray-replicas", daemon=True)

    def first(self, stopped: Callable[[], bool]) -> Loaded | None:
        """Place the replicas; return what the first one has loaded, None if the run is `stopped` before."""
        self._thread.start()
        while not self._news.wait(0.1):
            if stopped():
                return None
        if self._first is None:
            raise self._error or StudentError("no replica could be placed")
        return self._first

    def close(self) -> None:
        """Place no more, and end those that are not lanes yet."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        for seat in self._coming:
            seat.close()
        self._coming = []

    def _keep(self) -> None:
        try:
            while not self._closing.is_set() and self._error is None:
                self._step()
        except Exception as error:  # the engine must not wait for lanes that nobody brings
            self._fail(StudentError(f"the Ray cluster cannot be used any more: {_first_line(error)}"))

    def _step(self) -> None:
        nodes = _nodes()
        self._drop_dead({node["NodeID"] for node in nodes})
        self._place(self._wanted(nodes))
        for seat in self._coming:
            seat.look()
        asked = {seat.reference: seat for seat in self._coming if seat.reference is not None}
        if not asked:
            self._closing.wait(_TICK_S)
        else:
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TICK_S, fetch_local=False)
            for reference in ready:
                if asked[reference] in self._coming:  # not dropped for what became of another
                    self._advance(asked[reference])
        self._judge(nodes)

    def _drop_dead(self, alive: set[str]) -> None:
        """Drop the lanes whose node is gone; the calls that they had fail at once then."""
        for lane in self.pool.lanes:
            if isinstance(lane, RayLane) and lane.seat.node_id not in alive:
                reason = "its node is gone"
                lane.note_loss(reason)
                self.pool.drop(lane, LaneLost(f"node {lane.place.node}: {reason}"))

    def _wanted(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        room = self._need.capacity(self._usable(nodes))
        return room if self._settings.replicas == AUTO else int(self._settings.replicas)

    def _usable(self, nodes: Sequence[Mapping[str, Any]]) -> list[Resources]:
        return [node["Resources"] for node in nodes if node["NodeID"] not in self._refused]

    def _place(self, wanted: int) -> None:
        """Look for room for the replicas that are missing, and no longer for those that are not wanted any more."""
        missing = wanted - len(self.pool.lanes) - len(self._coming)
        for seat in [each for each in self._coming if not each.node_id][: max(0, -missing)]:
            self._drop(seat)
        self._coming += [Seat(self._need, self._refused) for _ in range(missing)]

    def _advance(self, seat: Seat) -> None:
        """Take note of what a replica has answered: its place, or that the model is loaded."""
        try:
            found = ray.get(seat.reference)
        except RayTaskError as error:
            self._refuse(seat, str(_failure(error, "its model cannot be loaded")))
        except RayError as error:
            self._note_death(seat, error)
        else:
            if isinstance(found, Loaded):
                self._use(seat, found)
            elif found.version != version("recycledb"):
                self._refuse(seat, f"recycledb {found.version} is installed there, and {version('recycledb')} here")
            else:
                seat.place, seat.reference = found, seat.ask("load", self._model)

    def _use(self, seat: Seat, loaded: Loaded) -> None:
        assert seat.place is not None
        self._coming.remove(seat)
        self.pool.add(RayLane(seat, seat.place, loaded.kernel))
        where = _named(seat.node_id)
        log.info("a replica of %s is ready: node %s, process %d", self._name, where, seat.place.pid)
        if self._first is None:
            self._first = loaded
            self._news.set()

    def _refuse(self, seat: Seat, reason: str) -> None:
        """Leave out the node of a replica that cannot be used; those without a place are placed anew, elsewhere."""
        where = _named(seat.node_id)
        if seat.node_id not in self._refused:
            log.warning("node %s is not used for student %s: %s", where, self._name, reason)
        self._refused[seat.node_id] = f"node {where}: {reason}"
        for each in [seat, *(other for other in self._coming if not other.node_id)]:
            self._drop(each)

    def _note_death(self, seat: Seat, error: RayError) -> None:
        """Leave out a node on which replicas end before they are ready, unless the node itself has ended."""
        alive = any(node["NodeID"] == seat.node_id for node in _nodes())
        self._deaths[seat.node_id] += alive
        if self._deaths[seat.node_id] >= _MOST_DEATHS:
            self._refuse(seat, f"a replica ends there before it is ready ({_reason(error)})")
        else:
            self._drop(seat)

    def _drop(self, seat: Seat) -> None:
        self._coming.remove(seat)
        seat.close()

    def _judge(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """End the run where no replica can be expected, and tell once of those that have no place."""
        now, waiting = time.monotonic(), [each for each in self._coming if not each.node_id]
        waits_for, usable = self._settings.ray_wait_s, self._usable(nodes)
        have = len(self.pool.lanes) + len(self._coming) - len(waiting)
        if have:
            self._empty_since = None
            if not self._told and any(now - each.asked > waits_for for each in waiting):
                self._told = True
                why = no_room(self._need, usable, ray.available_resources(), waits_for)  # type: ignore[no-untyped-call]
                numbers = (len(waiting), have + len(waiting))
                log.warning(
                    "%d of %d replicas of %s have no place: %s; going on with %d", *numbers, self._name, why, have
                )
            return
        if self._empty_since is None:
            self._empty_since = now
        if self._refused and not self._need.capacity(usable):
            self._fail(
                StudentError(f"no node can be used for student {self._name}: {'; '.join(self._refused.values())}")
            )
        elif now - self._empty_since > waits_for:
            why = no_room(self._need, usable, ray.available_resources(), waits_for)  # type: ignore[no-untyped-call]
            self._fail(StudentError(f"no replica of student {self._name} has a place: {why}"))

    def _fail(self, error: StudentError) -> None:
        self._error = error
        self.pool.fail(error)
        self._news.set()


def _nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _named(node_id: str) -> str:
    """Return a node's host with the beginning of its id, which is what Ray's own tools show."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    hosts = [node["NodeManagerHostname"] for node in nodes if node["NodeID"] == node_id]
    return f"{hosts[0] if hosts else '?'} ({node_id[:8]})"


def _first_line(error: BaseException) -> str:
    """Return the first line of an error that is not empty, without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:300]


def _reason(error: RayError) -> str:
    """Return why Ray says that an actor is gone: the sentence that gives the cause, or the name of the error."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    found = re.search(r"because (.{1,200}?)(?:\. |\.?$)", text)
    return f"{type(error).__name__}: {found[1]}" if found else f"{type(error).__name__}: {_first_line(error)}"

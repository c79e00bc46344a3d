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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported, and by the processes that it starts
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning for each actor without a GPU

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from recycledb import __version__
from recycledb.clusters import AUTO, LOCAL, ClusterSettings
from recycledb.config import StudentConfig
from recycledb.errors import ConfigError, RecycledbError, StudentError
from recycledb.scoring.cluster import Resources, need_of, no_room
from recycledb.scoring.encoder import Encoder, EncoderTokeniser
from recycledb.scoring.engine import Engine, require_fit
from recycledb.scoring.identity import Identity
from recycledb.scoring.lanes import ALLOCATION, LaneLost
from recycledb.scoring.network import load_tokenizer, resolve_dtype
from recycledb.scoring.outputs import Output
from recycledb.scoring.packs import Work
from recycledb.scoring.pool import LanePool
from recycledb.scoring.replica import Loaded, Model, Place, Replica
from recycledb.scoring.scorer import Scorer
from recycledb.scoring.tokeniser import Tokeniser

log = logging.getLogger(__name__)

_CONNECT_S = 10.0
_TICK_S = 0.5
_MOST_DEATHS = 3  # of replicas one after the other before any is ready, beside one for each node


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

    A process of a "local" cluster inherits this process's environment, but for the variables that are named as `secrets`.
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
        with _own_signals(), _without(secrets if told == LOCAL else ()):
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
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
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
        words = Tokeniser(load_tokenizer(config.model, model.revision), config.prompt, config.max_length)
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


class RayLane:
    """A lane whose replica is an actor."""

    def __init__(self, actor: Any, place: Place, kernel: str) -> None:
        self.kernel, self.place = kernel, place
        self._actor = actor
        self._lost = False

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        return self._result(self._actor.outputs.remote(list(batch)))  # type: ignore[no-any-return]

    def peak(self) -> float:
        """Return the measured peak of its devices."""
        return float(self._result(self._actor.peak.remote()))

    def close(self) -> None:
        kill(self._actor)

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


def _actor_class() -> type[Replica]:
    """Return the actors' class: defined here, so that it is sent by value, and a node imports little before it tells its place."""

    class Actor(Replica):
        def place(self, node_id: str = "") -> Place:
            import ray

            return super().place(node_id or ray.get_runtime_context().get_node_id())

    return Actor


def kill(actor: Any) -> None:
    """End an actor, also one that lives on behind a network that is down."""
    with suppress(RayError, RuntimeError, ValueError, AssertionError):  # it is gone already, or so is the connection
        ray.kill(actor)


def _failure(error: RayTaskError, otherwise: str) -> StudentError:
    """Return the error that a replica raised, as our own."""
    cause = error.cause
    if isinstance(cause, RecycledbError):
        return StudentError(str(cause))
    return StudentError(
        f"{otherwise}: {type(cause).__name__}: {cause}" if cause else f"{otherwise}: {_first_line(error)}"
    )


@dataclass
class _Coming:
    """An actor that is not a lane yet: without a place, or loading."""

    actor: Any
    reference: Any  # of what it was last asked
    since: float = field(default_factory=time.monotonic)
    place: Place | None = None


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
        self._coming: list[_Coming] = []
        self._refused: dict[str, str] = {}  # nodes by id, and why
        self._deaths = 0  # before they were ready, since the last that became a lane
        self._death = ""
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
        for coming in self._coming:
            kill(coming.actor)
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
        if not self._coming:
            self._closing.wait(_TICK_S)
        else:
            asked = {coming.reference: coming for coming in self._coming}
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TICK_S, fetch_local=False)
            for reference in ready:
                if asked[reference] in self._coming:  # not dropped for what became of another
                    self._advance(asked[reference])
        self._judge(nodes)

    def _drop_dead(self, alive: set[str]) -> None:
        """Drop the lanes whose node is gone; the calls that they had fail at once then."""
        for lane in self.pool.lanes:
            if isinstance(lane, RayLane) and lane.place.node_id not in alive:
                lane.note_loss("its node is gone")
                self.pool.drop(lane)

    def _wanted(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        room = self._need.capacity(self._usable(nodes))
        return room if self._settings.replicas == AUTO else int(self._settings.replicas)

    def _usable(self, nodes: Sequence[Mapping[str, Any]]) -> list[Resources]:
        return [node["Resources"] for node in nodes if node["NodeID"] not in self._refused]

    def _place(self, wanted: int) -> None:
        """Create the actors that are missing, and end those without a place that are no longer wanted."""
        missing = wanted - len(self.pool.lanes) - len(self._coming)
        for coming in [each for each in self._coming if each.place is None][: max(0, -missing)]:
            self._drop(coming)
        if self._deaths < self._most_deaths:
            for _ in range(missing):
                self._coming.append(self._created())

    @property
    def _most_deaths(self) -> int:
        return _MOST_DEATHS + len(self._refused)

    def _created(self) -> _Coming:
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": self._need.cpus}
        options |= {"num_gpus": self._need.gpus, "memory": self._need.memory or None}
        if self._refused:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._refused)})"}
        if not self._need.gpus:
            options["runtime_env"] = {"env_vars": ALLOCATION}
        actor = ray.remote(_actor_class()).options(**options).remote()
        return _Coming(actor, actor.place.remote())

    def _advance(self, coming: _Coming) -> None:
        """Take note of what an actor has answered: its place, or that the model is loaded."""
        try:
            found = ray.get(coming.reference)
        except RayError as error:
            if isinstance(error, RayTaskError) and coming.place is not None:
                self._refuse(coming, coming.place, str(_failure(error, "its model cannot be loaded")))
            else:
                self._note_death(coming, error)
        else:
            if isinstance(found, Loaded):
                self._use(coming, found)
            elif found.version != __version__:
                self._refuse(coming, found, f"recycledb {found.version} is installed there, and {__version__} here")
            else:
                coming.place, coming.reference = found, coming.actor.load.remote(self._model)

    def _use(self, coming: _Coming, loaded: Loaded) -> None:
        assert coming.place is not None
        self._coming.remove(coming)
        self._deaths = 0
        self.pool.add(RayLane(coming.actor, coming.place, loaded.kernel))
        where = coming.place
        log.info("a replica of %s is ready: node %s %.8s, process %d", self._name, where.node, where.node_id, where.pid)
        if self._first is None:
            self._first = loaded
            self._news.set()

    def _refuse(self, coming: _Coming, place: Place, reason: str) -> None:
        """Leave out the node of a replica that cannot be used; those without a place are placed anew, elsewhere."""
        if place.node_id not in self._refused:
            log.warning("node %s is not used for student %s: %s", place.node, self._name, reason)
        self._refused[place.node_id] = f"node {place.node}: {reason}"
        for each in [coming, *(other for other in self._coming if other.place is None and other is not coming)]:
            self._drop(each)

    def _note_death(self, coming: _Coming, error: RayError) -> None:
        self._deaths += 1
        where = f"on node {coming.place.node}" if coming.place else "that was being placed"
        self._death = f"a replica {where} ended before it was ready ({_reason(error)})"
        log.warning("%s", self._death)
        self._drop(coming)

    def _drop(self, coming: _Coming) -> None:
        self._coming.remove(coming)
        kill(coming.actor)

    def _judge(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """End the run where no replica can be expected, and tell once of those that have no place."""
        now, waiting = time.monotonic(), [each for each in self._coming if each.place is None]
        waits_for = self._settings.ray_wait_s
        if self.pool.lanes or len(waiting) < len(self._coming):
            self._empty_since = None
            late = [each for each in waiting if now - each.since > waits_for]
            if late and not self._told:
                self._told = True
                have = len(self.pool.lanes) + len(self._coming) - len(waiting)
                why = no_room(self._need, self._usable(nodes), ray.available_resources(), waits_for)
                log.warning("%d of %d replicas of %s have no place: %s; the run goes on with %d",
                    len(waiting), have + len(waiting), self._name, why, have)  # fmt: skip
            return
        if self._empty_since is None:
            self._empty_since = now
        usable = self._usable(nodes)
        if self._refused and not self._need.capacity(usable):
            self._fail(
                StudentError(f"no node can be used for student {self._name}: {'; '.join(self._refused.values())}")
            )
        elif self._deaths >= self._most_deaths:
            self._fail(StudentError(f"student {self._name} cannot be loaded in the Ray cluster: {self._death}"))
        elif now - self._empty_since > waits_for:
            why = no_room(self._need, usable, ray.available_resources(), waits_for)
            self._fail(StudentError(f"no replica of student {self._name} has a place: {why}"))

    def _fail(self, error: StudentError) -> None:
        self._error = error
        self.pool.fail(error)
        self._news.set()


def _nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _first_line(error: BaseException) -> str:
    """Return the first line of an error that is not empty, without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:300]


def _reason(error: RayError) -> str:
    """Return why Ray says that an actor is gone: the sentence that gives the cause, or the name of the error."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    found = re.search(r"because (.{1,200}?)(?:\. |\.?$)", text)
    return f"{type(error).__name__}: {found[1]}" if found else f"{type(error).__name__}: {_first_line(error)}"

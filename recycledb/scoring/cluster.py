"""A Ray cluster on which students are computed: what a replica needs of a node, how many there can be, and the connection.

Nothing of Ray is imported before `Cluster.connect`, and only `ray_lanes.py` uses it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from recycledb.clusters import AUTO, LOCAL, NO_CLUSTER, ClusterSettings
from recycledb.config import StudentConfig
from recycledb.errors import ConfigError
from recycledb.scoring.identity import Identity

if TYPE_CHECKING:
    from recycledb.scoring.ray_lanes import Connection
    from recycledb.scoring.scorer import Scorer

# A model with fewer parameters does not keep a second thread busy.
SINGLE_THREADED_PARAMETERS = 30_000_000
_CPUS_OF_A_REPLICA = 4
_MEMORY_BESIDE_WEIGHTS = 1 << 30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

MISSING = "students are to be computed in a Ray cluster, but Ray is not installed: pip install 'recycledb[ray]'"

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Need:
    """What a replica takes of a node; `memory` in bytes, 0 where it is not known or on the GPU."""

    gpus: float
    cpus: float
    memory: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """The amounts, by Ray's names, of what it needs at all; a part of a CPU where it is said to need nothing."""
        found = {"GPU": self.gpus, "CPU": self.cpus, "memory": float(self.memory)}
        return {name: amount for name, amount in found.items() if amount} or {"CPU": 0.01}

    def fits(self, node: Resources) -> int:
        """Return how many replicas a node of these resources has room for."""
        return min((_floor(node.get(name, 0.0) / amount) for name, amount in self.resources.items()))

    def capacity(self, nodes: Iterable[Resources]) -> int:
        """Return how many replicas nodes have room for in all."""
        return sum(self.fits(node) for node in nodes)

    def __str__(self) -> str:
        return amounts(self.resources) or "nothing"


def _floor(number: float) -> int:
    return math.floor(number + 1e-6)  # 1 / 0.1 may be a little less than 10


def amounts(resources: Resources, names: Iterable[str] = ("GPU", "CPU", "memory")) -> str:
    """Return resources in words: "2 GPUs, 8 CPUs, 3.5 GiB of memory"."""
    found = []
    for name in names:
        amount = resources.get(name, 0.0)
        if name == "memory":
            found += [f"{amount / 2**30:.1f} GiB of memory"] if amount else []
        elif name in resources:
            found.append(f"{amount:g} {name}{'' if amount == 1 else 's'}")
    return ", ".join(found)


def need_of(
    settings: ClusterSettings, config: StudentConfig, parameters: int | None, nodes: Sequence[Resources]
) -> Need:
    """Return what a replica of a student takes of a node, by what is configured and by what the nodes have."""
    gpus = settings.gpus_per_replica
    if config.device == "cpu":
        gpus = 0.0
    elif gpus is None:
        gpus = 1.0 if config.device is not None or any(node.get("GPU", 0.0) > 0 for node in nodes) else 0.0
    cpus = settings.cpus_per_replica
    if cpus is None:
        small = gpus > 0 or (parameters is not None and parameters < SINGLE_THREADED_PARAMETERS)
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        cpus = 1.0 if small else max(1.0, min(_CPUS_OF_A_REPLICA, largest))
    weights = 0 if parameters is None or gpus > 0 else parameters * _BYTES[config.dtype]
    return Need(gpus, cpus, weights + _MEMORY_BESIDE_WEIGHTS if weights else 0)


def no_room(need: Need, totals: Sequence[Resources], free: Resources, waited_s: float) -> str:
    """Return why no replica has a place: what each needs, what the cluster has, and what to change."""
    names = list(need.resources)
    has: dict[str, float] = {name: sum(node.get(name, 0.0) for node in totals) for name in names}
    nodes = f"{len(totals)} node{'' if len(totals) == 1 else 's'}"
    told = f"each replica needs {need}; the cluster's {nodes} have {amounts(has, names) or 'nothing'} in all"
    if not need.capacity(totals):
        lacking = [name for name in names if all(node.get(name, 0.0) < need.resources[name] for node in totals)]
        which = (
            f"not enough {' and '.join(_NAMES[name] for name in lacking)}"
            if lacking
            else "never enough of all together"
        )
        return f"{told}, and no node has enough ({which}): set gpus_per_replica or cpus_per_replica under [cluster], or add nodes"
    left = {name: free.get(name, 0.0) for name in names}
    return (
        f"{told}, of which {amounts(left, names)} are free after {waited_s:.0f} s: end what else runs there, or set a higher ray_wait_s "
        "under [cluster]"
    )


_NAMES = {"GPU": "GPUs", "CPU": "CPUs", "memory": "memory"}


class Cluster:
    """The Ray cluster of a run; it is connected to once, and left when it is closed."""

    def __init__(self, settings: ClusterSettings, secrets: Iterable[str] = ()) -> None:
        """`secrets` are the names of environment variables that no process on the cluster may see."""
        self.settings, self._secrets = settings, tuple(secrets)
        self._connection: Connection | None = None

    @property
    def used(self) -> bool:
        """Whether students are computed in a cluster at all."""
        return self.settings.ray != NO_CLUSTER

    @property
    def missing(self) -> str | None:
        """What has to be installed first; None where nothing."""
        return MISSING if self.used and find_spec("ray") is None else None

    def described(self, students: Sequence[str]) -> str:
        """Return where these students will be computed, in words; "" where that is in this process."""
        if not self.used or not students:
            return ""
        places = {
            "auto": "$RAY_ADDRESS, else the one on this machine",
            LOCAL: "started on this machine for the time of the sync",
        }
        number = self.settings.replicas
        many = "as many replicas of each as it has room for" if number == AUTO else f"replicas of each: {number}"
        where = places.get(self.settings.ray, self.settings.ray)
        return f"computed in a Ray cluster ({where}): {', '.join(students)}; {many}"

    def connect(self) -> None:
        """Connect now, so that a cluster that is not there is noticed before anything is paid for; raise ConfigError then."""
        if self.missing:
            raise ConfigError(self.missing)
        if self.used and self._connection is None:
            from recycledb.scoring.ray_lanes import connect

            self._connection = connect(self.settings.ray, self._secrets)

    def load(self, config: StudentConfig, identity: Identity, stopped: Callable[[], bool]) -> "Scorer | None":
        """Return a student whose replicas are in the cluster, once the first is ready; None if the run is `stopped` before."""
        from recycledb.scoring.ray_lanes import load

        self.connect()
        return load(config, identity, self.settings, stopped)

    def close(self) -> None:
        """Leave the cluster; one that was started for this run is stopped."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

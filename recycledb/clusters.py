"""The table [cluster] of recycledb.toml: the machines that work is spread over."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from recycledb.options import NonNegative, Seconds, Settings
from recycledb.suggestions import did_you_mean

NO_CLUSTER, LOCAL, AUTO = "none", "local", "auto"
ADDRESSES = (AUTO, LOCAL, NO_CLUSTER)


def _ray_address(value: Any) -> Any:
    if not isinstance(value, str) or value in ADDRESSES:
        return value
    if value.startswith("ray://"):
        raise ValueError(
            f"{value!r} is an address of Ray Client, which is not supported: run sync on a node of the cluster (for example by "
            '`ray job submit`) with "auto"'
        )
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"{value!r}{did_you_mean(value, ADDRESSES)}: give HOST:PORT of the head (the port is 6379 by default), "
            '"auto", "local" or "none"'
        )
    return value


def _replicas(value: Any) -> Any:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == "auto" or (isinstance(number, int) and not isinstance(number, bool) and number > 0):
        return number
    raise ValueError(f'{value!r}: give "auto", or a number from 1')


def _gpus(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 1 and value != int(value):
        raise ValueError(f"{value:g}: Ray takes a part of one GPU, or whole ones")
    return value


class ClusterSettings(Settings):
    """The processes and machines that work is spread over."""

    lease_s: Annotated[float, Field(ge=3, le=86_400, allow_inf_nan=False)] = Field(
        90.0,
        description="Seconds after a process's last heartbeat until others may take over its work; it sends at least three in this time.",
    )
    bucket_samples: PositiveInt = Field(
        500,
        description="Samples, about, that a process takes at a time to score them; a store of at most four times as many is not shared.",
    )
    ray: Annotated[str, BeforeValidator(_ray_address)] = Field(
        NO_CLUSTER,
        description='A Ray cluster on whose nodes students are computed: "auto" (the one at $RAY_ADDRESS, else the one that runs on this '
        'machine), HOST:PORT of its head, "local" (one is started on this machine for the time of the sync), or "none". '
        "`sync --ray` overrides it. Needs the extra `ray`.",
    )
    replicas: Annotated[int | str, BeforeValidator(_replicas)] = Field(
        "auto",
        description='How many replicas of a student are loaded in the cluster; "auto": as many as its nodes have room for, also those '
        "that join later.",
    )
    gpus_per_replica: Annotated[NonNegative | None, BeforeValidator(_gpus)] = Field(
        None,
        description="GPUs of a replica: a part of one, or several, over which the model is spread. Default: 1 where the cluster has GPUs "
        "and the student's `device` is not `cpu`, else 0.",
    )
    cpus_per_replica: NonNegative | None = Field(
        None,
        description="CPU cores of a replica, and its threads. Default: 1 beside a GPU; without one 4 (1 for models of less than 30 M "
        "parameters), or fewer where no node has as many.",
    )
    ray_wait_s: Seconds = Field(
        60.0,
        description="Seconds to wait for room in the cluster. Then a line says what is missing; the run goes on with the replicas "
        "that have a place, and ends where there is none.",
    )

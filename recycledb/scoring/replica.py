"""A student's replica on a node of a cluster: what the actor does there.

Invariant: a replica computes only after it has proved that it holds the student's own weights and tokenizer: the identity that is computed
on its node, from the files that it loads there, is the student's. It gets token ids and gives numbers; no text, address of a store or
credential is sent to it. It holds no state but the model.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from recycledb.config import StudentConfig
from recycledb.errors import StudentError
from recycledb.scoring.identity import Identity, identify

if TYPE_CHECKING:
    import torch

    from recycledb.scoring.engine import Shape
    from recycledb.scoring.lanes import LocalLane
    from recycledb.scoring.outputs import Output
    from recycledb.scoring.packs import Work


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica is, and which release of this library is there."""

    node: str
    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Model:
    """What a replica loads: the student, and the devices and threads that it may use."""

    config: StudentConfig
    identity: Identity
    gpus: float
    threads: int

    @property
    def revision(self) -> str | None:
        """The Hub's commit; None for a folder."""
        return None if self.identity.local else self.identity.revision


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready: how it computes, and what the engine has to know of it; the last three not of an encoder."""

    kernel: str
    device: str
    shape: "Shape | None" = None
    positions: int | None = None
    vocabulary: int = 0


class Replica:
    """One replica; each method is called from the engine's process."""

    def __init__(self) -> None:
        self._lane: LocalLane | None = None
        self._device_and_dtype: tuple[torch.device, torch.dtype] | None = None

    def place(self) -> Place:
        """Tell where this is; answered as soon as there is a process, and before the model is loaded."""
        return Place(platform.node(), os.getpid(), version("recycledb"))

    def load(self, model: Model) -> Loaded:
        """Check the files of this node against the student's identity, and load them; raise StudentError where they differ."""
        import torch

        self._prove(model)
        torch.set_num_threads(model.threads)
        return self._load_encoder(model) if model.config.encoder else self._load_causal(model)

    def outputs(self, batch: "Sequence[Work]") -> "list[Output]":
        """Return each work's output."""
        if self._lane is None:
            raise StudentError("the replica has not loaded its model")
        return self._lane.outputs(batch)

    def peak(self, _: None = None) -> float:
        """Return the measured peak of matrix multiplication of its devices."""
        import torch

        from recycledb.scoring.peak import measure_peak

        if self._device_and_dtype is None:
            raise StudentError("the replica has not loaded its model")
        device, dtype = self._device_and_dtype
        return measure_peak(device, dtype) * (torch.cuda.device_count() if device.type == "cuda" else 1)

    def _prove(self, model: Model) -> None:
        config = model.config
        found = identify(config.model, model.revision, encoder=config.encoder)
        if found.revision != model.identity.revision:
            raise StudentError(
                f"{config.model!r} there has other weights or another tokenizer ({short(found.revision)}) than the student "
                f"{config.name} ({short(model.identity.revision)}): copy the student's files to that node, or remove those that are there"
            )

    def _load_causal(self, model: Model) -> Loaded:
        from recycledb.scoring.engine import load_replicas, shape_of, threads_of
        from recycledb.scoring.kernels import choose
        from recycledb.scoring.lanes import LocalLane
        from recycledb.scoring.network import positions, resolve_dtype

        devices, config = self._devices(model), model.config
        [network] = load_replicas(
            config.model, model.revision, resolve_dtype(config.dtype), devices[:1], len(devices) > 1
        )
        kernel = choose(network, config.max_length)
        shape = shape_of(network)
        threads = threads_of(shape) or model.threads
        self._lane = LocalLane(kernel, network.device, threads)
        self._device_and_dtype = network.device, network.dtype
        return Loaded(self._lane.kernel, network.device.type, shape, positions(network.model), network.vocabulary)

    def _load_encoder(self, model: Model) -> Loaded:
        from recycledb.scoring.encoder import load_lane
        from recycledb.scoring.network import resolve_dtype

        config, device = model.config, self._devices(model)[0]
        self._lane = load_lane(config.model, model.revision, config.max_length, config.dtype, device)
        self._device_and_dtype = device, resolve_dtype(config.dtype)
        return Loaded(self._lane.kernel, device.type)

    def _devices(self, model: Model) -> "list[torch.device]":
        """Return the devices that the cluster gave this replica, as they are numbered in its process."""
        import torch

        if not model.gpus:
            return [torch.device("cpu")]
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise StudentError(
                f"the cluster gave it a GPU, but this torch ({torch.__version__}) sees no CUDA device: install a torch with CUDA there"
            )
        return [torch.device("cuda", index) for index in range(count)]


def short(revision: str) -> str:
    """Return the beginning of a revision, enough to tell two apart."""
    kind, separator, digest = revision.rpartition(":")
    return f"{kind}{separator}{digest[:12]}"

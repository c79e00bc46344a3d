"""Lanes that are lost and lanes that come later: every work has one result, and the numbers are those of one lane alone."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late import Encoder, Engine, Late, torch
from tiny_students import save_encoder, save_student

from recycledb.errors import StudentError
from recycledb.methods import Vector
from recycledb.methods.embedding import PARTS
from recycledb.methods.ifd import Stat
from recycledb.schema import Texts
from recycledb.scoring.packs import Work
from recycledb.scoring.requests import Request, Result

EncoderTokeniser: Any = Late("recycledb.scoring.encoder", "EncoderTokeniser")
load_lane: Any = Late("recycledb.scoring.encoder", "load_lane")
shape_of: Any = Late("recycledb.scoring.engine", "shape_of")
threads_of: Any = Late("recycledb.scoring.engine", "threads_of")
choose: Any = Late("recycledb.scoring.kernels", "choose")
Lane: Any = Late("recycledb.scoring.lanes", "Lane")
LaneLost: Any = Late("recycledb.scoring.lanes", "LaneLost")
LocalLane: Any = Late("recycledb.scoring.lanes", "LocalLane")
Network: Any = Late("recycledb.scoring.network", "Network")
load_network: Any = Late("recycledb.scoring.network", "load_network")
Output: Any = Late("recycledb.scoring.outputs", "Output")
LanePool: Any = Late("recycledb.scoring.pool", "LanePool")
Tokeniser: Any = Late("recycledb.scoring.tokeniser", "Tokeniser")

TEXTS = [Texts(f"Say {number}.", "", f"{number} it is. " * 20) for number in range(30)]
STATS = tuple(Stat)


class GoingLane:
    """A lane of this process that is lost once `lost` says so of a pack; what it computed before is in `computed`."""

    def __init__(self, lane: Lane, lost: Callable[[Sequence[Work]], bool] = lambda batch: False) -> None:
        self.kernel, self.lane, self.lost = lane.kernel, lane, lost
        self.computed: list[str] = []
        self.closed = threading.Event()

    def outputs(self, batch: Sequence[Work]) -> list[Output]:
        if self.lost(batch):
            raise LaneLost("its node is gone")
        found = self.lane.outputs(batch)
        self.computed += [work.key for work in batch]
        return found

    def close(self) -> None:
        self.closed.set()


class Others:
    """A source of lanes that brings them only when a test does."""

    def close(self) -> None:
        pass


def after(packs: int) -> Callable[[Sequence[Work]], bool]:
    """Return what says of every pack after so many that the lane is lost."""
    left = iter(range(packs))
    return lambda batch: next(left, None) is None


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "llama", "llama")


@pytest.fixture(scope="module")
def network(student: Path) -> Network:
    return load_network(str(student), None, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def lane(network: Network) -> LocalLane:
    return LocalLane(choose(network, 256), torch.device("cpu"), threads_of(shape_of(network)))


def engine(student: Path, network: Network, pool: LanePool) -> Engine:
    tokeniser = Tokeniser.load(str(student), None, "vicuna", 256)
    made = Engine(tokeniser, pool, shape_of(network), torch.device("cpu"), torch.float32)
    made.budget = 300  # many packs
    return made


def requests() -> list[Request]:
    return [Request(number, texts, STATS) for number, texts in enumerate(TEXTS)]


def collected(results: Iterable[list[Result]]) -> dict[tuple[int, str], float | None]:
    """Return each result's number; fail where there are two."""
    found: dict[tuple[int, str], float | None] = {}
    for result in (each for batch in results for each in batch):
        assert (result.key, result.stat) not in found
        found[result.key, result.stat] = result.loss_sum
    return found


@pytest.fixture(scope="module")
def alone(student: Path, network: Network, lane: LocalLane) -> dict[tuple[int, str], float | None]:
    """The numbers that one lane gives."""
    with engine(student, network, LanePool([GoingLane(lane)])) as one:
        return collected(one.score(requests()))


def test_what_a_lost_lane_had_is_computed_by_another(
    student: Path, network: Network, lane: LocalLane, alone: dict[tuple[int, str], float | None]
) -> None:
    going, staying = GoingLane(lane, after(3)), GoingLane(lane)
    with engine(student, network, LanePool([going, staying])) as two:
        assert collected(two.score(requests())) == alone
        assert two.pool.lanes == [staying] and going.closed.is_set()
    computed = going.computed + staying.computed
    assert going.computed and len(set(computed)) == len(computed)


def test_the_loss_of_all_lanes_ends_the_run_and_what_was_computed_is_there(
    student: Path, network: Network, lane: LocalLane, alone: dict[tuple[int, str], float | None]
) -> None:
    found: dict[tuple[int, str], float | None] = {}
    lost = [GoingLane(lane, after(4)), GoingLane(lane, after(2))]
    with (
        engine(student, network, LanePool(lost)) as two,
        pytest.raises(StudentError, match="no replica is left: its node is gone"),
    ):
        for batch in two.score(requests()):
            found |= collected([batch])
    assert 0 < len(found) < len(alone) and all(alone[key] == number for key, number in found.items())


def test_a_pack_that_waited_for_the_last_lane_tells_why_there_is_none(lane: LocalLane) -> None:
    computes, waits = threading.Event(), threading.Event()

    def lost(batch: Sequence[Work]) -> bool:
        computes.set()
        return waits.wait(60)

    def ended() -> bool:  # asked before each wait for a lane
        waits.set()
        return False

    pool = LanePool([GoingLane(lane, lost)])
    first = pool.submit((), lambda: False)
    assert computes.wait(60)
    second = pool.submit((), ended)
    for future in (first, second):
        with pytest.raises(StudentError, match=r"^no replica is left: its node is gone$"):
            future.result(60)
    pool.close()


def test_a_lane_that_comes_later_computes_what_waits(
    student: Path, network: Network, lane: LocalLane, alone: dict[tuple[int, str], float | None]
) -> None:
    pool = LanePool([GoingLane(lane, after(2))], source=Others())
    coming = GoingLane(lane)

    def come() -> Iterator[Request]:
        yield from requests()
        threading.Timer(0.2, pool.add, [coming]).start()  # the first is lost by then, or soon

    with engine(student, network, pool) as two:
        assert collected(two.score(come())) == alone
    assert coming.computed and coming.closed.is_set()


def test_a_pack_that_ends_one_lane_after_the_other_ends_the_run(
    student: Path, network: Network, lane: LocalLane
) -> None:
    longest = Request("deadly", Texts("Say it.", "", "Again and again. " * 90), ("A_condition",))
    deadly = lambda batch: any(len(work.ids) == 256 for work in batch)  # noqa: E731
    lanes = [GoingLane(lane, deadly) for _ in range(5)]
    with engine(student, network, LanePool(lanes, source=Others())) as many:
        with pytest.raises(StudentError, match=r"^3 replicas were lost one after the other while .* the same pack"):
            list(many.score([longest, *requests()]))
        assert len(many.pool.lanes) == 2


def test_a_run_without_lanes_waits_for_none_once_it_is_stopped(
    student: Path, network: Network, lane: LocalLane
) -> None:
    stop = threading.Event()
    with engine(student, network, LanePool([GoingLane(lane, after(1))], source=Others())) as one:
        for _ in one.score(requests(), stopped=stop.is_set):
            stop.set()
        assert stop.is_set()


def test_a_source_that_gives_up_ends_the_run_with_its_reason(student: Path, network: Network, lane: LocalLane) -> None:
    pool = LanePool([GoingLane(lane, after(1))], source=Others())
    with engine(student, network, pool) as one, pytest.raises(StudentError, match=r"^no GPU is left$"):
        for _ in one.score(requests()):
            pool.fail(StudentError("no GPU is left"))


def test_an_encoder_s_lanes_may_be_lost_too(tmp_path: Path) -> None:
    folder = str(save_encoder(tmp_path / "encoder"))
    words, local = EncoderTokeniser.load(folder, None, 64), load_lane(folder, None, 64, "float32", torch.device("cpu"))
    vector = Vector("mean", "row", PARTS["row"])
    asked = [Request(number, texts, (), vectors=(vector,)) for number, texts in enumerate(TEXTS * 10)]
    found = []
    for pool in (LanePool([local]), LanePool([GoingLane(local, after(1)), GoingLane(local)])):
        encoder = Encoder(words, pool)
        found.append({each.key: each.output for batch in encoder.score(asked) for each in batch})
    assert found[0].keys() == found[1].keys() == set(range(len(asked)))
    assert all(np.array_equal(output, found[1][key]) for key, output in found[0].items())

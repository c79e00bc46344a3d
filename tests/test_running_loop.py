"""A sync where an event loop runs already: in a notebook's cell, and awaited by a program."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import forks
import pytest
from sync_runs import configuration, make_store, rows
from teacher_server import Exchange, Fault, TeacherServer, marked_answer

from recycledb.errors import TeacherError
from recycledb.store import Store
from recycledb.sync import Progress, Stop
from recycledb.sync.attempts import STOP_CHECK_S
from recycledb.sync.notebook import Drawn
from recycledb.workspace import Workspace

STEPS = ("reflect_instruction",)
SAMPLES = 6


def workspace(folder: Path, server: TeacherServer, **teacher: Any) -> Workspace:
    url = make_store(folder, SAMPLES)
    return Workspace(Store.open(url), configuration(server.base_url, STEPS, **teacher))


def replies(folder: Path) -> list[str]:
    sql = "SELECT status FROM teacher_texts"
    return [row["status"] for row in rows(f"sqlite:///{folder}/store.db", sql)]


def held(gate: threading.Event) -> Callable[[Exchange], str]:
    """Return a teacher that answers once the gate is open."""

    def answer(exchange: Exchange) -> str:
        assert gate.wait(20)
        return marked_answer(exchange)

    return answer


async def arrival(server: TeacherServer) -> None:
    while not server.log:  # noqa: ASYNC110 - the server is in another thread
        await asyncio.sleep(0.01)


@pytest.mark.long
def test_sync_in_a_running_loop(tmp_path: Path) -> None:
    heard: list[tuple[threading.Thread, Progress]] = []

    async def cell(db: Workspace) -> Any:
        return db.sync(only="reflect", listener=lambda progress: heard.append((threading.current_thread(), progress)))

    handler = signal.getsignal(signal.SIGINT)
    with TeacherServer() as server, workspace(tmp_path, server) as db:
        outcome = asyncio.run(cell(db))
        assert (outcome.as_dict()["answered"], outcome.complete) == (SAMPLES, True)
        assert asyncio.run(cell(db)).idle
    assert replies(tmp_path) == ["ok"] * SAMPLES
    assert {thread for thread, _ in heard} == {threading.main_thread()}
    assert heard[-1][1].ended and heard[-1][1].done == SAMPLES
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.long
def test_an_error_and_a_stop_arrive_in_the_running_loop(tmp_path: Path) -> None:
    async def cell(db: Workspace, stop: Stop) -> Any:
        return db.sync(only="reflect", stop=stop)

    asked = Stop()
    asked.set()
    with TeacherServer(decide=lambda _: Fault.UNAUTHORIZED) as server, workspace(tmp_path, server) as db:
        assert asyncio.run(cell(db, asked)).stopped == "stopped on request"
        with pytest.raises(TeacherError):
            asyncio.run(cell(db, Stop()))
        with pytest.raises(TeacherError):
            asyncio.run(db.async_sync(only="reflect"))


@pytest.mark.long
def test_the_loop_goes_on_while_a_sync_is_awaited(tmp_path: Path) -> None:
    """The teacher answers only once the loop has run: a blocked loop would wait for ever."""
    heard: list[bool] = []

    async def program(db: Workspace, server: TeacherServer) -> Any:
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(
            db.async_sync(only="reflect", listener=lambda _: heard.append(asyncio.get_running_loop() is loop))
        )
        await arrival(server)
        assert not running.done()
        gate.set()
        return await running

    gate = threading.Event()
    with TeacherServer(answer=held(gate)) as server, workspace(tmp_path, server) as db:
        outcome = asyncio.run(program(db, server))
    assert outcome.as_dict()["answered"] == SAMPLES and all(heard) and heard


@pytest.mark.long
def test_cancelling_awaits_what_is_in_flight(tmp_path: Path) -> None:
    async def program(db: Workspace, server: TeacherServer) -> None:
        running = asyncio.create_task(db.async_sync(only="reflect"))
        await arrival(server)
        running.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running

    gate = threading.Event()
    with TeacherServer(answer=held(gate)) as server, workspace(tmp_path, server, concurrency=2) as db:
        asyncio.run(program(db, server))
        assert set(replies(tmp_path)) == {"ok"} and 1 <= len(replies(tmp_path)) < SAMPLES
        assert asyncio.run(db.async_sync(only="reflect")).complete
    assert not [thread for thread in threading.enumerate() if thread.name == "sync"]


CELL = """
import asyncio, os, sys
from sync_runs import configuration
from recycledb.store import Store
from recycledb.workspace import Workspace

async def cell():
    with Workspace(Store.open(sys.argv[1]), configuration(sys.argv[2], ("reflect_instruction",), concurrency=2)) as db:
        outcome = db.sync(only="reflect")
        print(outcome.stopped, outcome.as_dict()["answered"], flush=True)

asyncio.run(cell())
os._exit(0)  # as the command leaves
"""


@pytest.mark.long
def test_ctrl_c_in_a_cell_is_an_orderly_stop(tmp_path: Path) -> None:
    """What an interrupt of a notebook's kernel is: the reply in flight is awaited and kept, and the cell has an outcome."""
    url = make_store(tmp_path, SAMPLES)
    gate = threading.Event()
    with TeacherServer(answer=held(gate)) as server:
        command = [sys.executable, "-c", CELL, url, server.base_url]
        environment = forks.clean_environment(PYTHONPATH=str(Path(__file__).parent), OPENAI_API_KEY="sk-x")
        with forks.start(command, env=environment, stdout=PIPE, stderr=PIPE, text=True) as process:
            while not server.log:
                threading.Event().wait(0.02)
            process.send_signal(signal.SIGINT)
            assert "stopping: finishing in-flight requests" in process.stderr.readline()  # type: ignore[union-attr]
            threading.Event().wait(20 * STOP_CHECK_S)  # it looks that often whether to stop, and asks on until then
            gate.set()
            out, error = process.communicate(30)
            assert (process.wait(), error) == (0, "")
    stopped, _, answered = out.rpartition(" ")
    assert stopped == "stopped on request" and len(replies(tmp_path)) == int(answered) < SAMPLES


class Output:
    """What IPython's display returns."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, shown: dict[str, str], raw: bool) -> None:
        self.shown.append(shown["text/plain"])


def test_progress_in_a_notebook_is_one_output_that_is_replaced() -> None:
    made: list[Output] = []

    def display(shown: dict[str, str], raw: bool, display_id: bool) -> Output:
        made.append(Output())
        made[-1].update(shown, raw)
        return made[-1]

    drawn = Drawn(display)
    progress = Progress("reflect_instruction", "gpt", 2_000)
    for progress.done in range(2_000):
        drawn(progress)
    score = Progress("score", "7b", 10, done=10, ended=True)
    drawn(score)
    [output] = made
    assert output.shown[-1] == "reflect_instruction · gpt: 1,999/2,000, 0:00 left\nscore · 7b: 10/10, done"
    assert len(output.shown) < 20

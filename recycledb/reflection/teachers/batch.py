"""The batch service of an OpenAI-compatible server: files of questions, handed over now and answered within a day at half the price.

Invariant: handing over is one upload and one creation, neither of which is tried twice here, since a batch that was created is paid
for; the batch carries our id in its metadata, so that one whose creation was not heard of is found again. Reading is tried again
freely. A line of the output is read by the code that reads an answer online.
This module refuses to match by order: a line belongs to the attempt that its custom_id names.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, TypeVar

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import ConfigError, TeacherError
from recycledb.reflection.teachers import Message, Reply, failed
from recycledb.reflection.teachers.calls import call, pause
from recycledb.reflection.teachers.chat import CONNECT_S, ChatTeacher, _address, _api_key
from recycledb.reflection.teachers.pace import retry_delay
from recycledb.schema import ReplyStatus

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # of one file, as published
MOST_BYTES = 200_000_000
METADATA_KEY = "recycledb_batch"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
LISTED = 100
TRIES = 5  # at reading
CREATION_S = 60.0  # how long the answer to a creation is waited for after a stop: a batch that is on record need not be looked for

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A batch as the service sees it."""

    remote_id: str
    status: str
    output_files: Sequence[str]
    detail: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


class BatchTeacher:
    """The batch service at the address of a chat teacher; `close` when done."""

    def __init__(self, config: TeacherConfig, stop: threading.Event | None = None) -> None:
        """Once `stop` is set, whatever waits for the service raises Stopped."""
        if config.provider != "openai":
            raise ConfigError(f'teacher {config.name!r}: mode = "batch" needs provider = "openai"')
        self._config, self._chat, self._stop = config, ChatTeacher(config), stop or threading.Event()
        if config.price_in is None or config.price_out is None:
            self._chat._cost = None  # a price table has the online price, which a batch does not cost
        where = _address(config)
        self._who = f"teacher {config.name!r} at {where}"
        timeout = openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s))
        self._client = openai.OpenAI(api_key=_api_key(config, where), base_url=where, max_retries=0, timeout=timeout)

    def line(self, attempt_id: str, messages: Sequence[Message]) -> bytes:
        """Return the request file's line for an attempt."""
        body = {"model": self._config.model, **self._config.request_params, "messages": list(messages)}
        request = {"custom_id": attempt_id, "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(request, ensure_ascii=False).encode() + b"\n"

    def upload(self, path: Path) -> str:
        """Upload a request file; return the service's id for it."""

        def send() -> str:
            with path.open("rb") as file:
                return self._client.files.create(file=(path.name, file), purpose="batch").id

        try:
            return call(send, self._stop)
        except (openai.OpenAIError, httpx2.HTTPError, OSError) as error:
            raise self._explained(error, "the batch was not taken") from error

    def create(self, file_id: str, batch: str) -> str:
        """Create the batch of an uploaded file; return the service's id for it."""

        def create() -> str:
            created = self._client.batches.create(
                completion_window="24h", endpoint=ENDPOINT, input_file_id=file_id, metadata={METADATA_KEY: batch}
            )
            return created.id

        try:
            return call(create, self._stop, grace_s=CREATION_S)
        except (openai.OpenAIError, httpx2.HTTPError, OSError) as error:
            raise self._explained(error, "the batch was not taken") from error

    def find(self, batches: Collection[str], since: float) -> dict[str, str]:
        """Return the service's ids of those of our batches that it has, going back to a moment (in seconds, Unix time)."""

        def search() -> dict[str, str]:
            found: dict[str, str] = {}
            for remote in self._client.batches.list(limit=LISTED):
                ours = (remote.metadata or {}).get(METADATA_KEY)
                if ours in batches:
                    found[str(ours)] = remote.id
                if len(found) == len(batches) or remote.created_at < since:
                    break
            return found

        return self._read_again(search, "its batches cannot be listed")

    def look(self, remote_id: str) -> Remote:
        """Return how a batch stands."""
        batch = self._read_again(
            lambda: self._client.batches.retrieve(remote_id), f"batch {remote_id} cannot be looked at"
        )
        files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
        errors = [item.message or item.code or "" for item in (batch.errors.data or [])] if batch.errors else []
        counts = batch.request_counts
        detail = "; ".join(dict.fromkeys(errors)) or (f"{counts.completed} of {counts.total} done" if counts else None)
        return Remote(batch.id, batch.status, files, detail)

    def iter_replies(self, file_id: str) -> Iterator[tuple[str, Reply]]:
        """Yield (attempt id, reply) of an output or error file, in the file's order; lines that name no attempt are left out."""
        with TemporaryFile() as copy:
            self._read_again(lambda: self._fetch(file_id, copy), f"file {file_id} cannot be fetched")
            copy.seek(0)
            for line in copy:  # by newline alone: JSON may hold the other separators that text is split at
                if (found := self._read_line(line)) is not None:
                    yield found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _fetch(self, file_id: str, copy: IO[bytes]) -> None:
        copy.seek(0)
        copy.truncate()
        with self._client.files.with_streaming_response.content(file_id) as response:
            for part in response.iter_bytes():
                copy.write(part)

    def _read_again(self, read: Callable[[], T], what: str) -> T:
        """Return what reading brings, tried again where that may go better, after as long as the service asks."""
        tries = 1
        while True:
            try:
                return call(read, self._stop)
            except (openai.OpenAIError, httpx2.HTTPError) as error:
                delay = self._delay(tries, error)
                if delay is None or tries == TRIES:
                    raise self._explained(error, what) from error
                if delay > self._config.wait_s:
                    longer = f"it asks to wait {delay:.0f} s, more than its wait_s of {self._config.wait_s:g}"
                    raise TeacherError(f"{self._explained(error, what)}; {longer}; run sync again then") from error
            pause(delay, self._stop)
            tries += 1

    def _delay(self, tries: int, error: Exception) -> float | None:
        """Return how long to wait before reading is tried again; None where that cannot go better."""
        reply, stop = failed("connection", ""), None
        if isinstance(error, openai.APIStatusError):
            reply, stop = self._chat._refused(error)
        return retry_delay(tries, reply) if reply.retriable and not stop else None

    def _read_line(self, line: bytes) -> tuple[str, Reply] | None:
        try:
            data = json.loads(line)
        except ValueError:
            return None
        if not isinstance(data, dict) or not isinstance(data.get("custom_id"), str):
            return None
        return data["custom_id"], self._read(data)

    def _read(self, data: dict[str, Any]) -> Reply:
        response, error = data.get("response"), data.get("error")
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            body = response.get("body")
            if response["status_code"] == 200:
                return self._chat._read(json.dumps(body).encode())
            return self._refused(response["status_code"], body)
        error = error if isinstance(error, dict) else {}
        return unfinished(str(error.get("code") or "batch_error"), str(error.get("message") or "no answer came back"))

    def _refused(self, status: int, body: object) -> Reply:
        inner = body.get("error") if isinstance(body, dict) else None
        response = httpx2.Response(status, json=body, request=httpx2.Request("POST", ENDPOINT))
        message = inner.get("message", "") if isinstance(inner, dict) else ""
        return self._chat._refused(openai.APIStatusError(message, response=response, body=inner))[0]

    def _explained(self, error: Exception, what: str) -> TeacherError:
        if isinstance(error, openai.APIStatusError):
            reply, stop = self._chat._refused(error)
            return TeacherError(f"{self._who}: {what}: {stop or reply.error}")
        return TeacherError(f"{self._who}: {what}: {error.__cause__ or error}")


def unfinished(kind: str, detail: str) -> Reply:
    """Return the Reply of a question that its batch did not come to: asked again by the next one."""
    reply = failed(kind, detail)
    return Reply(status=ReplyStatus.ERROR, error=reply.error)

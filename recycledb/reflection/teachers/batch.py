"""The batch service of an OpenAI-compatible server: files of questions, handed over now and answered within a day at half the price.

Invariant: handing over is one upload and one creation, neither of which is tried twice here, since a batch that was created is paid
for; the batch carries our id in its metadata, so that one whose creation was not heard of is found again. Reading is tried again
freely. A line of the output is read by the code that reads an answer online.
This module refuses to match by order: a line belongs to the attempt that its custom_id names.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import ConfigError, TeacherError
from recycledb.reflection.teachers import Message, Reply, failed
from recycledb.reflection.teachers.chat import CONNECT_S, ChatTeacher, _address, _api_key
from recycledb.schema import ReplyStatus

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # of one file, as published
MOST_BYTES = 200_000_000
METADATA_KEY = "recycledb_batch"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
LISTED = 100
UNBEGUN_CODES = frozenset(
    {"batch_expired", "batch_cancelled"}
)  # the service says that it did not come to that question


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

    def __init__(self, config: TeacherConfig) -> None:
        if config.provider != "openai":
            raise ConfigError(f'teacher {config.name!r}: mode = "batch" needs provider = "openai"')
        self._config, self._chat = config, ChatTeacher(config)
        if config.price_in is None or config.price_out is None:
            self._chat._cost = None  # a price table has the online price, which a batch does not cost
        where = _address(config)
        self._who = f"teacher {config.name!r} at {where}"
        timeout = openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s))
        self._client = openai.OpenAI(api_key=_api_key(config, where), base_url=where, max_retries=0, timeout=timeout)
        self._patient = self._client.with_options(max_retries=4)

    def line(self, attempt_id: str, messages: Sequence[Message]) -> bytes:
        """Return the request file's line for an attempt."""
        body = {"model": self._config.model, **self._config.request_params, "messages": list(messages)}
        request = {"custom_id": attempt_id, "method": "POST", "url": ENDPOINT, "body": body}
        return json.dumps(request, ensure_ascii=False).encode() + b"\n"

    def hand_over(self, path: Path, batch: str) -> str:
        """Upload a request file and create the batch of it; return the service's id for it."""
        try:
            with path.open("rb") as file:
                uploaded = self._client.files.create(file=(path.name, file), purpose="batch")
            created = self._client.batches.create(
                completion_window="24h",
                endpoint=ENDPOINT,
                input_file_id=uploaded.id,
                metadata={METADATA_KEY: batch},
            )
        except (openai.OpenAIError, httpx2.HTTPError, OSError) as error:
            raise self._explained(error, "the batch was not taken") from error
        return created.id

    def find(self, batches: Collection[str], since: float) -> dict[str, str]:
        """Return the service's ids of those of our batches that it has, going back to a moment (in seconds, Unix time)."""
        found: dict[str, str] = {}
        try:
            for remote in self._patient.batches.list(limit=LISTED):
                ours = (remote.metadata or {}).get(METADATA_KEY)
                if ours in batches:
                    found[str(ours)] = remote.id
                if len(found) == len(batches) or remote.created_at < since:
                    break
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise self._explained(error, "its batches cannot be listed") from error
        return found

    def look(self, remote_id: str) -> Remote:
        """Return how a batch stands."""
        try:
            batch = self._patient.batches.retrieve(remote_id)
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise self._explained(error, f"batch {remote_id} cannot be looked at") from error
        files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
        errors = [item.message or item.code or "" for item in (batch.errors.data or [])] if batch.errors else []
        counts = batch.request_counts
        detail = "; ".join(dict.fromkeys(errors)) or (f"{counts.completed} of {counts.total} done" if counts else None)
        return Remote(batch.id, batch.status, files, detail)

    def iter_replies(self, file_id: str) -> Iterator[tuple[str, Reply]]:
        """Yield (attempt id, reply) of an output or error file, in the file's order; lines that name no attempt are left out."""
        with TemporaryFile() as copy:
            try:
                with self._patient.files.with_streaming_response.content(file_id) as response:
                    for part in response.iter_bytes():
                        copy.write(part)
            except (openai.OpenAIError, httpx2.HTTPError) as error:
                raise self._explained(error, f"file {file_id} cannot be fetched") from error
            copy.seek(0)
            for line in copy:  # by newline alone: JSON may hold the other separators that text is split at
                if (found := self._read_line(line)) is not None:
                    yield found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

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
        code = str(error.get("code") or "batch_error")
        return unfinished(code, str(error.get("message") or "no answer came back"), begun=code not in UNBEGUN_CODES)

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


def unfinished(kind: str, detail: str, *, begun: bool = True) -> Reply:
    """Return the Reply of a question that its batch did not answer: asked again by the next one; free unless it may have been begun."""
    reply = failed(kind, detail)
    return Reply(status=ReplyStatus.ERROR, error=reply.error, cost_usd=None if begun else 0.0)

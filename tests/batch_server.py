"""An OpenAI-compatible server with files and batches on loopback, whose batches end when and how a test says.

Shapes follow the published ones: `POST /v1/files` (multipart), `GET /v1/files/{id}/content`, `POST /v1/batches`,
`GET /v1/batches/{id}`, `GET /v1/batches?limit&after` (newest first), and `POST /v1/chat/completions` for questions asked online.
"""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from teacher_server import Exchange, marked_answer

Line = dict[str, Any]
Lines = tuple[list[Line], list[Line]]  # of the output file and of the error file


def completion(messages: list[dict[str, str]], model: str) -> dict[str, Any]:
    """Return a good answer to these messages, as the chat endpoint has it."""
    text = marked_answer(exchange_of({"messages": messages, "model": model}))
    tokens = {"prompt_tokens": 100, "completion_tokens": len(text) // 4, "total_tokens": 100 + len(text) // 4}
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": tokens,
    }


def exchange_of(body: dict[str, Any]) -> Exchange:
    """Return the exchange of a request, whose question is named by its messages."""
    question = json.dumps(body["messages"], sort_keys=True)
    name = f"{hash(question) & 0xFFFFFFFF:08x}"
    return Exchange(number=0, question=name, nth=1, arrived_at=0.0, body=body, headers={}, in_flight=1)


def answered(request: Line) -> Line:
    """Return the output line of a request that went well."""
    body = completion(request["body"]["messages"], request["body"]["model"])
    response = {"status_code": 200, "request_id": f"req-{request['custom_id'][:6]}", "body": body}
    return {
        "id": f"batch_req_{request['custom_id'][:6]}",
        "custom_id": request["custom_id"],
        "response": response,
        "error": None,
    }


def refused(request: Line, status: int, code: str, message: str) -> Line:
    """Return the line of a request that the model's endpoint refused: its status is in the response, and `error` is null."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    line = answered(request)
    line["response"] |= {"status_code": status, "body": body}
    return line


def expired(request: Line) -> Line:
    """Return the error line of a request that the batch did not come to."""
    error = {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    return {
        "id": f"batch_req_{request['custom_id'][:6]}",
        "custom_id": request["custom_id"],
        "response": None,
        "error": error,
    }


@dataclass
class BatchServer:
    """The server. `delay_created_s` is waited before the answer to the creation of a batch, which is there by then.

    `delay_uploaded_s` likewise for a file. `hang` names paths whose GET is never answered, `busy` those answered 429 with this Retry-After.
    """

    delay_created_s: float = 0.0
    delay_uploaded_s: float = 0.0
    hang: str | None = None  # a pattern
    busy: tuple[str, str] | None = None  # a pattern, a Retry-After
    got: list[str] = field(default_factory=list)  # paths of every GET
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    online: list[list[dict[str, str]]] = field(default_factory=list)  # messages asked one by one
    uploads: int = 0
    cuts: list[tuple[int, bool]] = field(
        default_factory=list
    )  # of the next files sent: bytes left out, and whether length says so
    fetched: int = 0  # files sent
    location: str | None = None  # where every request is redirected
    gone: bool = False  # no file is there any more
    headers: list[dict[str, str]] = field(default_factory=list)  # of each request, in lower case

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def requests(self, batch: str) -> list[Line]:
        """Return the requests of a batch, in the file's order."""
        return [json.loads(line) for line in self.files[self.batches[batch]["input_file_id"]].splitlines()]

    def asked(self) -> Counter[str]:
        """Return how often each question was asked, in batches and online together."""
        everything = [request["body"]["messages"] for batch in self.batches for request in self.requests(batch)]
        return Counter(json.dumps(messages, sort_keys=True) for messages in [*everything, *self.online])

    def end(
        self, batch: str, status: str = "completed", write: Callable[[list[Line]], Lines] | None = None, seed: int = 0
    ) -> None:
        """End a batch: `write` makes the lines of both files of its requests, in an order that the service shuffles."""
        requests = self.requests(batch)
        output, errors = write(requests) if write else ([answered(request) for request in requests], [])
        state = self.batches[batch]
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            random.Random(seed).shuffle(lines)
            if lines:
                state[name] = f"file-{name}-{batch}"
                self.files[state[name]] = "".join(
                    json.dumps(line, ensure_ascii=False) + "\n" for line in lines
                ).encode()
        state["status"] = status
        state["request_counts"] = {"total": len(requests), "completed": len(output), "failed": len(errors)}

    def end_as(self, batch: str, output: bytes, completed: int | None = None) -> None:
        """End a batch with an output file of these bytes, of which the service says that it has so many lines."""
        state = self.batches[batch]
        state["output_file_id"] = f"file-output-{batch}"
        self.files[state["output_file_id"]] = output
        counted = len(output.splitlines()) if completed is None else completed
        state["status"], state["request_counts"] = "completed", {"total": counted, "completed": counted, "failed": 0}

    def fail(self, batch: str, message: str) -> None:
        """Let a batch fail before anything of it is asked."""
        error = {"code": "invalid_json_line", "message": message, "param": None, "line": 1}
        self.batches[batch] |= {"status": "failed", "errors": {"object": "list", "data": [error]}}

    # -- requests

    def upload(self, body: bytes, content_type: str) -> dict[str, Any]:
        """Store a file."""
        form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        parts = {str(part.get_param("name", header="content-disposition")): part for part in form.get_payload()}  # type: ignore[union-attr]
        assert parts["purpose"].get_payload(decode=True) == b"batch"  # type: ignore[union-attr]
        content = parts["file"].get_payload(decode=True)  # type: ignore[union-attr]
        assert isinstance(content, bytes)
        self.uploads += 1
        name = f"file-{self.uploads}"
        self.files[name] = content
        time.sleep(self.delay_uploaded_s)
        shape = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "purpose": "batch",
        }
        return {**shape, "filename": parts["file"].get_filename(), "status": "processed"}  # type: ignore[union-attr]

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a batch of a file."""
        name = f"batch_{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        time.sleep(self.delay_created_s)
        return self.batches[name]

    def listed(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """Return a page of batches, newest first."""
        newest = list(reversed(self.batches.values()))
        after = query.get("after", [""])[0]
        start = next((i + 1 for i, batch in enumerate(newest) if batch["id"] == after), 0)
        page = newest[start : start + int(query.get("limit", ["20"])[0])]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, **ends, "has_more": start + len(page) < len(newest)}


class _Handler(BaseHTTPRequestHandler):
    service: BatchServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self._is_redirected():
            return
        if self.path == "/v1/files":
            self._send(self.service.upload(body, self.headers["content-type"]))
        elif self.path == "/v1/batches":
            self._send(self.service.create(json.loads(body)))
        elif self.path == "/v1/chat/completions":
            data = json.loads(body)
            self.service.online.append(data["messages"])
            self._send(completion(data["messages"], data["model"]))
        else:
            self._missing()

    def do_GET(self) -> None:
        if self._is_redirected():
            return
        address = urlsplit(self.path)
        self.service.got.append(address.path)
        if self.service.hang and re.fullmatch(self.service.hang, address.path):
            with suppress(OSError):
                self.rfile.read(1)  # ends when the client hangs up
            return
        if self.service.busy and re.fullmatch(self.service.busy[0], address.path):
            error = {"error": {"message": "busy", "type": "rate_limit_exceeded", "code": None, "param": None}}
            self._send_bytes(429, json.dumps(error).encode(), "application/json", retry_after=self.service.busy[1])
            return
        content = re.fullmatch(r"/v1/files/([\w-]+)/content", address.path)
        batch = re.fullmatch(r"/v1/batches/(\w+)", address.path)
        if content and content[1] in self.service.files and not self.service.gone:
            self._send_file(self.service.files[content[1]])
        elif batch and batch[1] in self.service.batches:
            self._send(self.service.batches[batch[1]])
        elif address.path == "/v1/batches":
            self._send(self.service.listed(parse_qs(address.query)))
        else:
            self._missing()

    def _is_redirected(self) -> bool:
        self.service.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.service.location is not None:
            self.send_response(308)
            self.send_header("location", self.service.location)
            self.send_header("content-length", "0")
            self.end_headers()
        return self.service.location is not None

    def _send_file(self, content: bytes) -> None:
        self.service.fetched += 1
        missing, told = self.service.cuts.pop(0) if self.service.cuts else (0, False)
        sent = content[: len(content) - missing]
        self._send_bytes(200, sent, "application/octet-stream", len(content) if told else len(sent))
        self.close_connection = self.close_connection or told

    def _missing(self) -> None:
        error = {
            "message": f"no such address: {self.path}",
            "type": "invalid_request_error",
            "code": None,
            "param": None,
        }
        self._send_bytes(404, json.dumps({"error": error}).encode(), "application/json")

    def _send(self, body: Any) -> None:
        self._send_bytes(200, json.dumps(body).encode(), "application/json")

    def _send_bytes(
        self, status: int, body: bytes, kind: str, length: int | None = None, retry_after: str | None = None
    ) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("retry-after", retry_after)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body) if length is None else length))
        with suppress(ConnectionError):  # the client was killed
            self.end_headers()
            self.wfile.write(body)

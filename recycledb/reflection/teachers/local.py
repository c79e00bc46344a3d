"""A chat model on this machine, through transformers: its chat template, batched generation.

Invariant: a reply does not depend on which questions share its batch, up to the arithmetic of the device: prompts are padded
on the left and masked, and at temperature 0 decoding is greedy.
Waiting questions are generated together, up to `concurrency` in a batch; twice as many are admitted, so that the next batch
fills while one is generated. Generation runs in one worker thread and does not block the event loop.
A prompt that does not fit into the model's context with its completion fails with `too_long`; it is never truncated.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jinja2.exceptions import TemplateError

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.pretrained import loader
from recycledb.reflection.teachers.contract import Message, Question, Reply, failed, judged
from recycledb.reflection.teachers.pace import Pace, Ticket

# How long a batch waits for more questions: they are admitted one after another, and each commits a row first.
LINGER_S = 0.02

# A template that cannot render this cannot render any prompt of ours.
_TRIAL: tuple[Message, ...] = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."})


@dataclass(slots=True)
class _Waiting:
    prompt: torch.Tensor  # (T,)
    answered: "asyncio.Future[Reply]"


class LocalTeacher:
    """The chat model of `config`; TeacherError if it cannot be loaded or has no chat template."""

    def __init__(self, config: TeacherConfig) -> None:
        self._config = config
        self._batch = config.concurrency
        self._params = config.request_params
        self._pace = Pace(f"teacher {config.name!r}", 2 * config.concurrency)
        self._tokenizer, self._model = _load(config)
        self._limit = _context_length(self._model)
        self._max_new_tokens = int(self._params.get("max_completion_tokens") or self._params.get("max_tokens") or 2048)
        self._options = _generation_options(self._params)
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        self._closing = threading.Event()

    @property
    def concurrency(self) -> int:
        """How many questions may be in flight now."""
        return self._pace.concurrency

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return the prompt's tokens plus the most that the completion may have."""
        try:
            return len(self._encode(messages)) + self._max_new_tokens
        except TemplateError:  # reported by `ask`
            return self._max_new_tokens

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait for a free slot."""
        return await self._pace.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Return the model's reply."""
        try:
            prompt = self._encode(question.messages)
        except TemplateError as error:  # for these messages only: the template was tested when the model was loaded
            return failed("bad_request", f"the model's chat template refuses this prompt: {error}")
        if self._limit is not None and len(prompt) + self._max_new_tokens > self._limit:
            detail = f"{len(prompt)} tokens and {self._max_new_tokens} for the answer exceed the model's {self._limit}"
            return failed("too_long", detail, prompt_tokens=len(prompt))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        waiting = _Waiting(prompt, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(waiting)
        return await waiting.answered

    async def close(self) -> None:
        """Stop after the current token, and free the model."""
        self._closing.set()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        while not self._waiting.empty():
            _settle([self._waiting.get_nowait()], TeacherError(f"teacher {self._config.name!r} was closed"))
        self._thread.shutdown(wait=True)

    def _encode(self, messages: Sequence[Message]) -> torch.Tensor:
        """Return the prompt's tokens; TemplateError if the template rejects these messages."""
        text = _rendered(self._tokenizer, messages)
        ids: torch.Tensor = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        words = self._model.get_input_embeddings().num_embeddings
        if len(ids) and int(ids.max()) >= words:
            raise TeacherError(
                f"teacher {self._config.name!r}: the tokenizer gave token {int(ids.max())}, but the model has {words}: "
                "they do not belong together"
            )
        return ids

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            started = time.monotonic()
            try:
                answers = await loop.run_in_executor(self._thread, self._generate, [item.prompt for item in batch])
            except asyncio.CancelledError:  # the teacher is being closed
                _settle(batch, TeacherError(f"teacher {self._config.name!r} was closed"))
                raise
            except Exception as error:  # every error of torch must reach the waiting questions, or they wait forever
                _settle(batch, TeacherError(f"teacher {self._config.name!r} failed: {error}"))
                continue
            duration_ms = round(1000 * (time.monotonic() - started))
            for item, answer in zip(batch, answers, strict=True):
                if not item.answered.done():
                    item.answered.set_result(self._reply(answer, duration_ms))

    async def _gather(self) -> list[_Waiting]:
        batch = [await self._waiting.get()]
        while len(batch) < self._batch:
            try:
                async with asyncio.timeout(
                    LINGER_S
                ):  # on Python 3.11 `wait_for` may swallow the cancellation by `close`
                    batch.append(await self._waiting.get())
            except TimeoutError:
                break
        return [item for item in batch if not item.answered.cancelled()]

    def _reply(self, fields: Mapping[str, Any] | None, duration_ms: int) -> Reply:
        if fields is None:
            return failed("out_of_memory", "this question alone does not fit into memory", duration_ms=duration_ms)
        return judged(**fields, served_model=self._config.model, duration_ms=duration_ms)

    def _generate(self, prompts: list[torch.Tensor]) -> list[Mapping[str, Any] | None]:
        """Return text, finish_reason and token counts for each prompt; None for one that does not fit into memory."""
        try:
            return self._generate_batch(prompts)
        except torch.OutOfMemoryError:
            if len(prompts) <= 1:
                return [None] * len(prompts)
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        return self._generate(prompts[:half]) + self._generate(prompts[half:])

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[torch.Tensor]) -> list[Mapping[str, Any] | None]:
        if not prompts:
            return []
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._ends[0])  # (B, T)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        device = self._model.device
        out = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=self._max_new_tokens,
            pad_token_id=self._ends[0],
            eos_token_id=self._ends,
            stopping_criteria=transformers.StoppingCriteriaList([_Closed(self._closing)]),
            **self._options,
        )
        answers = out[:, longest:].tolist()  # (B, at most max_new_tokens)
        return [self._answer(len(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _answer(self, prompt_tokens: int, answer: list[int]) -> Mapping[str, Any]:
        end = next((at for at, token in enumerate(answer) if token in self._ends), None)
        text = self._tokenizer.decode(answer[:end], skip_special_tokens=True)
        return {
            "text": text,
            "finish_reason": "length" if end is None else "stop",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(answer) if end is None else end + 1,
        }


class _Closed(transformers.StoppingCriteria):
    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._closing.is_set(), device=input_ids.device)


def _settle(batch: list[_Waiting], error: TeacherError) -> None:
    for item in batch:
        if not item.answered.done():
            item.answered.set_exception(error)


def _load(config: TeacherConfig) -> tuple[Any, Any]:
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def failing(line: str) -> TeacherError:
        return TeacherError(f"teacher {config.name!r}: {line}")

    tokenizer = loader.load_tokenizer(config.model, failing)
    if not tokenizer.chat_template:
        raise failing(f"{config.model!r} has no chat template; use an instruct model")
    try:
        _rendered(tokenizer, _TRIAL)
    except TemplateError as error:
        raise failing(f"the chat template of {config.model!r} fails: {_one_line(error)}; use another model") from error
    model = loader.load_model(config.model, failing, dtype=config.dtype or "auto", device=device)
    return tokenizer, model


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return the prompt rendered by the model's template in transformers' sandbox; TemplateError if that fails."""
    try:
        return _applied(tokenizer, messages)
    except TemplateError:  # templates without a system role reject one by raising this
        return _applied(tokenizer, _one_message(messages))


def _applied(tokenizer: Any, messages: Sequence[Message]) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError:
        raise
    except Exception as error:  # a template is a program and may raise any Python error, for example TypeError
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _context_length(model: Any) -> int | None:
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def _generation_options(params: Mapping[str, Any]) -> dict[str, Any]:
    temperature = float(params.get("temperature", 1.0))
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    known = {"top_k", "repetition_penalty", "min_p"} & params.keys()
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": float(params.get("top_p", 1.0)),
        **{name: params[name] for name in known},
    }


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    ids = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise TeacherError(
            "the chat model has no end-of-sequence token, so its replies would never end: set eos_token_id in generation_config.json"
        )
    return sorted(ids)


def _one_message(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]

"""Requests to spans with a model's own tokenizer, and counting work without loading a model.

Invariant: each distinct string of a call is tokenised once, by the tokenizer's default encode. Of a student only the
tokenizer is loaded.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from recycledb.errors import StudentError
from recycledb.methods.ifd import TEMPLATES
from recycledb.pretrained import loader
from recycledb.pretrained.folder import is_library_error
from recycledb.scoring.requests import Request, TokenCount
from recycledb.scoring.spans import Item, Span, batch_spans

# Requests are tokenised a window at a time; the first is small so that results come at once.
_FIRST_WINDOW = 64
_LAST_WINDOW = 2048


class Tokeniser:
    """A model's tokenizer, with the template and the maximal length of spans."""

    def __init__(self, tokenizer: Any, prompt: str, max_length: int) -> None:
        if prompt not in TEMPLATES:
            raise StudentError(f"unknown prompt template {prompt!r}: choose one of {', '.join(TEMPLATES)}")
        if max_length < 2:
            raise StudentError(f"max_length is {max_length}, but a loss needs at least 2 tokens")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_length = max_length
        self._choices: dict[tuple[str, ...], list[int]] = {}

    @classmethod
    def load(cls, model: str, revision: str | None, prompt: str, max_length: int) -> "Tokeniser":
        """Load the tokenizer of a folder or a Hub model; the model itself is not loaded."""
        return cls(loader.load_tokenizer(model, StudentError, revision=revision), prompt, max_length)

    def spans(self, requests: Sequence[Request]) -> list[list[Span]]:
        """Return the spans of each request, every distinct string tokenised once."""
        items = [
            Item(request.texts, request.stats, request.readouts, request.vectors, request.reference)
            for request in requests
        ]
        return batch_spans(self._encode, self.prompt, self.max_length, items, self.choices)

    def choices(self, texts: tuple[str, ...]) -> list[int]:
        """Return the token id of each choice of a readout: the last token of a line break and the text.

        Without the line break, some tokenizers would encode each of them as a word-start marker. Raises StudentError where two
        choices are the same token.
        """
        if texts not in self._choices:
            ids = [encoded[-1] for encoded in self._encode([f"\n{text}" for text in texts])]
            if len(set(ids)) < len(ids):
                raise StudentError(
                    f"the tokenizer of {self.tokenizer.name_or_path!r} has one token for several of the choices "
                    f"{', '.join(map(repr, texts))}; this measure cannot be computed with this model"
                )
            self._choices[texts] = ids
        return self._choices[texts]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Spans truncate texts longer than the model's limit; verbose=False keeps the tokenizer from warning about them.
        try:
            encoded = self.tokenizer(
                texts, return_attention_mask=False, return_token_type_ids=False, truncation=False, verbose=False
            )
        except BaseException as error:  # tokenizers raises bare Exception, say for a word that a vocabulary lacks
            if not is_library_error(error):
                raise
            line = " ".join(str(error).split())[:300]
            name = self.tokenizer.name_or_path
            raise StudentError(
                f"the tokenizer of {name!r} fails: {line}; use the one that the model came with"
            ) from error
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def count_tokens(
    requests: Iterable[Request],
    model: str,
    *,
    revision: str | None = None,
    prompt: str = "vicuna",
    max_length: int = 2048,
) -> TokenCount:
    """Count the work in `requests` with the model's tokenizer alone; the model is not loaded."""
    tokeniser = Tokeniser.load(model, revision, prompt, max_length)
    seen: set[str] = set()
    number = statistics = tokens = targets = 0
    for window in windows(requests):
        number += len(window)
        for span in (span for item in tokeniser.spans(window) for span in item):
            statistics += 1
            if span.pair_id is not None and span.key not in seen:
                seen.add(span.key)
                tokens += len(span.ids)
                targets += span.n_tokens if span.is_loss else bool(span.choices)
    return TokenCount(number, statistics, len(seen), tokens, targets)


def windows(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield requests in lists of growing size."""
    iterator = iter(requests)
    size = _FIRST_WINDOW
    while window := list(islice(iterator, size)):
        yield window
        size = min(2 * size, _LAST_WINDOW)

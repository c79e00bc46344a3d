"""The number of prompt tokens of a plan, and the source of the estimate.

Invariant: nothing is downloaded and no request is sent. The sources, best first: the counts of the teacher's server in earlier replies,
the tokenizer of a local model, and four characters a token (English prompts: 15 to 19 % too many, see docs/experiments-teacher.md).
A tokenizer's ratio of characters to tokens is measured on a sample of the prompts to be sent, then applied to all their characters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from recycledb.config import TeacherConfig
from recycledb.pretrained.folder import is_library_error
from recycledb.reflection import prompts
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.store.pending import Wanted
from recycledb.store.questions import sample_questions, texts_beside
from recycledb.store.replies import prompt_tokens_seen

CHARACTERS_PER_TOKEN = 4.0  # of English text
SAMPLE = 300  # prompts tokenised
LEAST_REPLIES = 20  # with token counts before they are used


@dataclass(frozen=True)
class Measure:
    """Prompt characters per token, and the source of the ratio."""

    characters_per_token: float = CHARACTERS_PER_TOKEN
    source: str = "4 characters a token"

    def tokens(self, characters: int) -> int:
        """Return the estimated tokens of this many characters."""
        return round(characters / self.characters_per_token)


def measure(
    store: Store,
    teacher: TeacherConfig,
    wanted: Wanted,
    wordings: Mapping[str, prompts.PromptText],
    *,
    exact: bool = True,
) -> Measure:
    """Return the ratio of characters to tokens for this teacher; without `exact` no tokenizer is loaded."""
    overhead = {step: sum(len(text) for _, text in wording.messages) for step, wording in wordings.items()}
    counted = prompt_tokens_seen(store, wanted.teacher_ids)
    known = [(row, overhead[row.step]) for row in counted if row.step in overhead and row.tokens]
    replies = sum(row.replies for row, _ in known)
    if replies >= LEAST_REPLIES:
        characters = sum(row.characters + row.replies * more for row, more in known)
        source = f"what the server counted in {replies:,} earlier replies"
        return Measure(characters / sum(row.tokens for row, _ in known), source)
    if not exact:
        return Measure()
    found = _local(teacher.model)
    return _sampled(store, wanted, wordings, *found) if found else Measure()


def _sampled(
    store: Store,
    wanted: Wanted,
    wordings: Mapping[str, prompts.PromptText],
    count: Callable[[str], int],
    source: str,
) -> Measure:
    """Measure with a tokenizer, on prompts in the order of their ids, which are hashes and so as good as random."""
    texts = []
    rows = sample_questions(store, wanted, SAMPLE)
    beside = texts_beside(store, rows)
    for row in rows:
        messages = prompts.render(wordings[row.step], (Texts.of(row), *beside[row.others]))
        texts += [message["content"] for message in messages]
    tokens = sum(count(text) for text in texts)
    return Measure(sum(map(len, texts)) / tokens, source) if tokens else Measure()


Counter = tuple[Callable[[str], int], str]


def _local(model: str) -> Counter | None:
    """Return a counter that uses the model's own tokenizer, if the model is a folder or in the Hugging Face cache."""
    file = Path(model, "tokenizer.json")
    if not file.is_file():
        file = _cached(model) or file
    if not file.is_file():
        return None
    try:
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(file))
    except BaseException as error:  # tokenizers raises bare Exception
        if not is_library_error(error):
            raise
        return None  # reported when the teacher is loaded; the plan goes without it
    return (lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)), f"the tokenizer of {model}"


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "tokenizer.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None

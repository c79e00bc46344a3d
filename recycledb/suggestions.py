"""What a mistyped name may have meant, and which parameters of a request are known."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

CLOSEST = 0.6  # difflib's own limit

# What OpenAI's chat completions take; tests compare it with the SDK.
_OPENAI = """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens metadata modalities
    moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
    reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice
    tools top_logprobs top_p user verbosity web_search_options extra_body
"""
# What vLLM, SGLang, llama.cpp and Ollama take beside: a store with replies made with these must not be told to move them.
_SERVERS = """
    best_of chat_template_kwargs enable_thinking guided_choice guided_grammar guided_json guided_regex ignore_eos length_penalty
    min_p min_tokens num_ctx reasoning repeat_penalty repetition_penalty skip_special_tokens stop_token_ids structured_outputs
    thinking top_k typical_p use_beam_search
"""
KNOWN_PARAMS: Mapping[str, Sequence[str]] = {
    "openai": (*_OPENAI.split(), *_SERVERS.split()),
    "transformers": [
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "top_k",
        "repetition_penalty",
        "min_p",
    ],
}


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a mistyped one; None if none is."""
    from difflib import get_close_matches

    by_form = {each.casefold(): each for each in known}
    found = get_close_matches(name.casefold(), by_form, n=5, cutoff=CLOSEST)
    same = [each for each in found if sorted(each) == sorted(name.casefold())]  # two letters that changed places
    return by_form[(same or found)[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)", to follow a wrong name in an error; "" if no known name is like it."""
    found = closest(name, known)
    return f" (did you mean {found!r}?)" if found is not None else ""


def unknown_params(provider: str, params: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each parameter that the teacher's API does not know."""
    known = KNOWN_PARAMS.get(provider)
    for name in params:
        if known is not None and name not in known:
            why = "is ignored" if provider == "transformers" else "is not one that OpenAI's API takes"
            hint = "" if provider == "transformers" else "; a server's own parameters belong in params.extra_body"
            yield f"params.{name} {why}{did_you_mean(name, known)}{hint}"


def explained(model: "type[BaseModel]", error: Mapping[str, Any]) -> str:
    """Return the message of an error that pydantic found in a configuration, with what was meant."""
    message: str = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return unknown_key(model, error["loc"])
    if error["type"] == "literal_error":
        return message + did_you_mean(str(error["input"]), re.findall(r"'([^']*)'", message))
    return message


def no_table(table: str, name: str, known: Iterable[str]) -> str:
    """Return the end of an error about a reference to a table that a configuration lacks."""
    return f"{name!r}, but there is no [{table}.{name}]{did_you_mean(name, known)}"


def unknown_key(model: "type[BaseModel]", place: Sequence[int | str]) -> str:
    """Return the error of an unknown key of a configuration: the key that was meant, or the table to which it belongs."""
    key = str(place[-1])
    here = _table(model, place[:-1])
    if here is not None and (found := closest(key, _keys(here))):
        return f"unknown key (did you mean {found!r}?)"
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is not None and key in _keys(inner) and key != "name":
            table = f"[{name}]" if field.annotation is inner else f"[{name}.NAME]"
            return f"unknown key (it belongs in {table})"
    return "unknown key"


def _table(model: "type[BaseModel]", place: Sequence[int | str]) -> "type[BaseModel] | None":
    """Return the model of the table at a place: ("sync",), or ("teachers", "gpt")."""
    if not place:
        return model
    field = model.model_fields.get(str(place[0]))
    return _inner(field.annotation) if field is not None else None


def _inner(annotation: Any) -> "type[BaseModel] | None":
    """Return the model that a field is, or that it has by name."""
    from pydantic import BaseModel

    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _keys(model: "type[BaseModel]") -> list[str]:
    """Return the keys of a table as users write them."""
    from pydantic import AliasChoices

    found: list[str] = []
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        found += [str(each) for each in alias.choices] if isinstance(alias, AliasChoices) else [name]
    return [name for name in found if name not in ("name", "path")]

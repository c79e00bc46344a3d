"""Preference pairs: a rewrite as the chosen answer, the sample's own answer as the rejected one.

| format | one row |
|---|---|
| `dpo` | TRL's conversational preference format: prompt, chosen and rejected are lists of messages |
| `dpo-text` | TRL's standard preference format: the same as three texts |
| `dpo-llamafactory` | LLaMA-Factory's ranking columns: instruction, input, chosen, rejected, system, history |

The prompt is the rewrite's own instruction and input. This module does not decide which rows are pairs.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from recycledb.formats.contexts import system_and_history
from recycledb.schema import context_messages

PAIR_FORMATS = ("dpo", "dpo-text", "dpo-llamafactory")
PAIR = "\0pair"  # the key of a row's Pair: no column of a query has such a name


class Pair(NamedTuple):
    """The rejected answer, and the JSON list of messages before the question."""

    rejected: str
    context: str | None


def pair_row(format: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with instruction, input, output and its Pair as it is written in `format`."""
    return _LAYOUTS[format](row, row[PAIR])


def _messages(row: Mapping[str, Any], pair: Pair) -> dict[str, Any]:
    return {
        "prompt": [*_context(pair), {"role": "user", "content": _question(row)}],
        "chosen": [{"role": "assistant", "content": row["output"]}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def _texts(row: Mapping[str, Any], pair: Pair) -> dict[str, Any]:
    before = [message["content"] for message in _context(pair)]
    return {"prompt": "\n\n".join((*before, _question(row))), "chosen": row["output"], "rejected": pair.rejected}


def _ranking(row: Mapping[str, Any], pair: Pair) -> dict[str, Any]:
    """LLaMA-Factory has one system prompt, and earlier turns as pairs of question and answer."""
    system, history = system_and_history(context_messages(pair.context))
    return {
        "instruction": row["instruction"],
        "input": row["input"],
        "chosen": row["output"],
        "rejected": pair.rejected,
        "system": system,
        "history": history,
    }


_LAYOUTS: dict[str, Callable[[Mapping[str, Any], Pair], dict[str, Any]]] = {
    "dpo": _messages,
    "dpo-text": _texts,
    "dpo-llamafactory": _ranking,
}


def _question(row: Mapping[str, Any]) -> str:
    return "\n".join(text for text in (row["instruction"], row["input"]) if text)


def _context(pair: Pair) -> list[dict[str, str]]:
    return json.loads(pair.context) if pair.context else []

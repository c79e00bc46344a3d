"""The context of a sample (system prompt, earlier turns) in written rows.

| format | where |
|---|---|
| sharegpt, messages | turns before the question |
| llamafactory | `system` and `history` (pairs of question and answer) |
| jsonl, parquet | a column `context`, a list of messages |
| alpaca, alpaca_eval | nowhere: their rows have three and four keys |
"""

from collections.abc import Mapping, Sequence
from typing import Any

from recycledb.schema import context_messages

CONTEXT = "\0context"  # the key of a row's context, as the store has it: no column of a query has such a name
WITHOUT_CONTEXT = ("alpaca", "alpaca_eval")  # formats that leave it out

_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def turns_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row as a conversation, as (role, text): its context, then instruction and input as one turn, then the output."""
    asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    return [*context_messages(row.get(CONTEXT)), ("user", asked), ("assistant", row["output"])]


def sharegpt_turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row as the turns of a ShareGPT conversation."""
    return [{"from": _SHAREGPT[role], "value": text} for role, text in turns_of(row)]


def message_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as OpenAI messages."""
    return {"messages": [{"role": role, "content": text} for role, text in turns_of(row)]}


def llama_factory_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with LLaMA-Factory's columns."""
    system, history = system_and_history(context_messages(row.get(CONTEXT)))
    texts = {name: row[name] for name in ("instruction", "input", "output")}
    return {**texts, "system": system, "history": history}


def context_column(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the column `context` of a row; none without a context, or if a recipe has a column of that name."""
    if row.get(CONTEXT) is None or "context" in row:
        return {}
    return {"context": [{"role": role, "content": text} for role, text in context_messages(row[CONTEXT])]}


def system_and_history(messages: Sequence[tuple[str, str]]) -> tuple[str, list[list[str]]]:
    """Return system prompt and history as LLaMA-Factory has them: one text, and pairs of question and answer.

    Turns of one side that follow each other are joined; a turn without its other half gets an empty one.
    """
    system = "\n\n".join(text for role, text in messages if role == "system")
    history: list[list[str]] = []
    before = "assistant"
    for role, text in messages:
        if role == "system":
            continue
        side = int(role == "assistant")
        if role == before and history:
            history[-1][side] += f"\n\n{text}"
        elif side and history:
            history[-1][1] = text
        else:
            history.append(["", text] if side else [text, ""])
        before = role
    return system, history

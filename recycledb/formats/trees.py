"""OpenAssistant's message trees: the best path through a tree, and trees from a flat list of messages.

Invariant: of several replies the one with the lowest rank is taken, the first where ranks are equal or missing; deleted ones never.
Messages of a tree must follow each other in a flat file, as in the published ones, so that one tree at a time is in memory.
"""

import math
from collections.abc import Iterator
from typing import Any

from recycledb.formats.checks import Unusable, kind, sound
from recycledb.formats.values import Bad

FLAT_FIELDS = ("message_id", "parent_id", "text", "role")
MOST_TURNS = 1_000  # of a path


def best_path(node: Any) -> list[dict[str, Any]]:
    """Return the turns from a tree's first message along its best replies."""
    if not isinstance(node, dict):
        raise Unusable(f"no message in 'prompt' but {kind(node)}")
    path: list[dict[str, Any]] = []
    while node is not None and len(path) < MOST_TURNS:
        path.append({"role": node.get("role"), "content": node.get("text")})
        replies = node.get("replies")
        there = (
            [each for each in replies if isinstance(each, dict) and not each.get("deleted")]
            if isinstance(replies, list)
            else []
        )
        node = min(there, key=_rank, default=None)
    return path


def _rank(message: dict[str, Any]) -> float:
    rank = message.get("rank")
    return float(rank) if isinstance(rank, int | float) and not math.isnan(rank) else math.inf


def trees(values: Iterator[Any]) -> Iterator[Any]:
    """Yield a flat file's messages as trees, each as an object with `prompt`; values that are no messages as they are, or as `Bad`."""
    group: list[dict[str, Any]] = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("message_id"), str):
            yield value if isinstance(value, Bad) else Bad("no text in 'message_id'")
            continue
        if group and not _belongs(value, group):
            yield _tree(group)
            group = []
        group.append(value)
    if group:
        yield _tree(group)


def _belongs(message: dict[str, Any], group: list[dict[str, Any]]) -> bool:
    """Return whether a message is of the tree that is being read."""
    tree = message.get("message_tree_id")
    if tree is not None:
        return bool(tree == group[0].get("message_tree_id"))
    return message.get("parent_id") is not None


def _tree(group: list[dict[str, Any]]) -> Any:
    """Return the tree of some messages, or `Bad` if they are none."""
    nodes = {message["message_id"]: {**message, "replies": []} for message in group}
    roots = []
    for message in group:
        parent = message.get("parent_id")
        if parent is None:
            roots.append(message["message_id"])
        elif parent in nodes:
            nodes[parent]["replies"].append(nodes[message["message_id"]])
    if len(roots) != 1:
        return Bad(
            f"{'no first message' if not roots else 'several first messages'} among {len(group)} messages of a tree that follow each "
            "other: sort the file by message_tree_id"
        )
    root = nodes[roots[0]]
    try:
        more = (
            {"message_tree_id": sound(root["message_tree_id"], "'message_tree_id'")}
            if root.get("message_tree_id")
            else {}
        )
    except Unusable as error:
        return Bad(str(error))
    return {"prompt": root, **more, **({"lang": root["lang"]} if isinstance(root.get("lang"), str) else {})}

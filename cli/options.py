"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from recycledb.errors import SelectionError

Params = Annotated[
    list[str],
    typer.Option(
        "--param",
        metavar="K=V",
        help="A parameter of the SQL; may be given several times. 1e10 is text, 1e+10 a number.",
    ),
]
Student = Annotated[
    str | None, typer.Option(help="The student's name in the store. Default: the only one.", metavar="NAME")
]
Teacher = Annotated[
    str | None, typer.Option(help="The teacher's name, or best where a recipe allows it. Default: the only one.")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="ID[+ID…]",
        help="See what older prompts made, as if they were in use: the first letters of a prompt_id; of several steps, joined by +.",
    ),
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Only samples of this dataset.")]
LlamaFactory = Annotated[
    Path | None,
    typer.Option("--llama-factory", metavar="DIR", help="Add the data to LLaMA-Factory's dataset_info.json in DIR."),
]
Card = Annotated[
    Path | None, typer.Option("--card", metavar="README.md", help="Write a Hugging Face dataset card with the lineage.")
]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop the SQL after so long.")]
OutFormat = Annotated[str, typer.Option("--format", help="alpaca, sharegpt, jsonl or parquet.")]


def parse_params(texts: list[str]) -> dict[str, str]:
    """Return K=V options as a mapping."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise SelectionError(f"--param {text}: give NAME=VALUE")
        found[name] = value
    return found

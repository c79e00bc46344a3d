"""Options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

from recycledb.cli import completion
from recycledb.errors import SelectionError

Params = Annotated[
    list[str],
    typer.Option(
        "--param",
        metavar="K=V",
        help="A named parameter of the SQL; repeatable. 1e10 is text, 1e+10 a number.",
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        help="The student's name in the store. Default: the only student.",
        metavar="NAME",
        autocompletion=completion.stored_student,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="The teacher's name, or best if the recipe allows it. Default: the only teacher.",
        autocompletion=completion.stored_teacher,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="ID[+ID…]",
        help="Use variants made with an older prompt: a prompt_id prefix; join the prompts of several steps with +.",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", help="Only samples of this dataset.", autocompletion=completion.dataset),
]
DatasetNames = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Only samples that are in this dataset; repeatable.",
        autocompletion=completion.dataset,
    ),
]
LlamaFactory = Annotated[
    Path | None,
    typer.Option(
        "--llama-factory", metavar="DIR", help="Register the file in LLaMA-Factory's dataset_info.json in DIR."
    ),
]
Marks = Annotated[
    str | None,
    typer.Option(
        metavar="respect|ignore",
        help="Whether samples and variants that people marked drop are left out. Default: respect.",
    ),
]
Card = Annotated[
    Path | None,
    typer.Option("--card", metavar="README.md", help="Write a Hugging Face dataset card with the data's lineage."),
]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Abort the SQL after this time.")]
OutFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="The file's format: alpaca, sharegpt, messages (OpenAI), llamafactory (with system and history), jsonl or parquet; "
        "preference pairs, with the origin's answer as the rejected one: "
        "dpo (TRL, messages), dpo-text (TRL, texts) or dpo-llamafactory.",
        autocompletion=completion.format_out,
    ),
]
WithExtra = Annotated[
    bool, typer.Option("--with-extra", help="Write the other fields of the samples' source rows too (`extra`).")
]
Holdout = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Write this share of the samples, such as 5%, to FILE.holdout.json instead. Drawn by --seed; adding samples moves none.",
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of what is drawn.")]


def target(output: Path | None, *, as_json: bool = False) -> Path | None:
    """Return the file to write: `-` is stdout, which --json also needs."""
    path = Path("/dev/stdout") if output == Path("-") else output
    if as_json and goes_to_stdout(path):
        raise typer.BadParameter("-o - and --json both write to stdout: give -o FILE, or leave out --json")
    return path


def goes_to_stdout(path: Path | None) -> bool:
    """Return whether a file to write is this process's stdout, so that nothing else may be printed there."""
    from recycledb.files import is_stdout

    return path is not None and is_stdout(path)


def parse_params(texts: list[str]) -> dict[str, str]:
    """Parse K=V options into a mapping."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise SelectionError(f"--param {text}: give NAME=VALUE")
        found[name] = value
    return found

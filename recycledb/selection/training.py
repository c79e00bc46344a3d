"""Files for trainers and the Hugging Face Hub: LLaMA-Factory's dataset entry and training file, a dataset card.

Invariant: an existing `dataset_info.json` keeps its other entries; one that cannot be read is an error and not overwritten.
The hyperparameters are those of Selective Reflection-Tuning (Li et al., arXiv:2402.10110): FastChat's vicuna prompt, global batch
128, learning rate 2e-5, 3 epochs, 2048 tokens, weight decay 0, warm-up ratio 0.03.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.files import write_text
from recycledb.store import Store

SUFFIXES = {"jsonl": ".jsonl", "messages": ".jsonl", "parquet": ".parquet"}  # of the others .json
LOADED = {"parquet": (".parquet",)}  # the suffixes by which LLaMA-Factory knows a format
LOADED_AS_JSON = (".json", ".jsonl")
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "conversations"},
    "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
}
MESSAGES = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
    },
}  # fmt: skip
HISTORY = {"columns": {**COLUMNS, "system": "system", "history": "history"}}
RANKING = {
    "ranking": True,
    "columns": {
        "prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected", "system": "system", "history": "history",
    },
}  # fmt: skip
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Written:
    """A file of rows and its lineage, as used in an entry or a card."""

    name: str
    file: Path
    format: str
    rows: int
    counts: Mapping[str, int]
    sha256: str
    recipe: str
    parameters: Mapping[str, Any]
    held_out: Path | None = None  # the second file of a hold-out split, if it has rows


def write_beside(
    store: Store, written: Written, llama_factory: Path | None, card: Path | None, student: str | None
) -> tuple[str, ...]:
    """Write the files requested for a file of rows: LLaMA-Factory's entry in a folder, a card; return the paths.

    A file without rows is not registered, since LLaMA-Factory cannot load one.
    """
    paths = []
    if llama_factory is not None and written.rows:
        paths = write_llama_factory(store, llama_factory, written, student)
    if card is not None:
        write_card(card, written)
        paths.append(card)
    return tuple(str(path) for path in paths)


def data_file(folder: Path, name: str, format: str) -> Path:
    """Return the default file in LLaMA-Factory's folder for rows of that name."""
    return folder / (entry_name(name) + SUFFIXES.get(format, ".json"))


def entry_name(name: str) -> str:
    """Return the name as a key and a file name: letters, digits, dots, dashes, underscores."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "recycledb"


def require_loadable(folder: Path, name: str, file: Path, format: str, held_out: Path | None) -> None:
    """Raise SelectionError, before anything is written, if LLaMA-Factory could not load the file or has another dataset of that name."""
    if not folder.is_dir():
        raise SelectionError(f"{folder} is not a folder; give LLaMA-Factory's data folder")
    if format in ("dpo", "dpo-text"):
        raise SelectionError(
            f"LLaMA-Factory does not read --format {format}, which is TRL's: give --format dpo-llamafactory"
        )
    suffixes = LOADED.get(format, LOADED_AS_JSON)
    if file.suffix not in suffixes:
        ending = " or ".join(suffixes)
        raise SelectionError(
            f"LLaMA-Factory does not load {file.name}: the name of a {format} file must end in {ending}"
        )
    entries = _entries(folder / "dataset_info.json")
    for key, path in _entry_names(name, file, held_out):
        entry = entries.get(key)
        if entry is not None and entry not in _entries_of(folder, path):
            of = entry.get("file_name") or next(iter(entry.values()), "?") if isinstance(entry, dict) else "?"
            raise SelectionError(
                f"{folder / 'dataset_info.json'} already has a dataset {key!r} ({of}); give this one another name "
                "(select --name, export -o), or take that entry out"
            )


def _entry_names(name: str, file: Path, held_out: Path | None) -> list[tuple[str, Path]]:
    own = entry_name(name)
    return [(own, file), *([(f"{own}_holdout", held_out)] if held_out is not None else [])]


def write_llama_factory(store: Store, folder: Path, written: Written, student: str | None) -> list[Path]:
    """Add the entries to `folder`/dataset_info.json and, for a student, write a training file beside it; return the paths.

    SelectionError if the folder is missing or its dataset_info.json is not a JSON object.
    """
    require_loadable(folder, written.name, written.file, written.format, written.held_out)
    info = folder / "dataset_info.json"
    entries = _entries(info)
    names = _entry_names(written.name, written.file, written.held_out)
    entries.update({name: _entry(folder, path, written.format) for name, path in names})
    write_text(info, json.dumps(entries, ensure_ascii=False, indent=2) + "\n")
    if student is None:
        return [info]
    training = folder / f"{names[0][0]}.yaml"
    write_text(training, _training(store, training, [name for name, _ in names], student, written.format))
    return [info, training]


def train_command(training: Path) -> str:
    """Return the command that trains with a training file, to be run in the present folder."""
    return f"llamafactory-cli train {shlex.quote(str(training))}"


def _entries(info: Path) -> dict[str, Any]:
    if not info.exists():
        return {}
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SelectionError(f"{info} cannot be read, so it is left unchanged: {error}") from error
    if not isinstance(entries, dict):
        raise SelectionError(f"{info} is not a JSON object, so it is left unchanged")
    return entries


def _entry(folder: Path, file: Path, format: str) -> dict[str, Any]:
    file = file.resolve()
    inside = file.is_relative_to(folder.resolve())
    name = str(file.relative_to(folder.resolve())) if inside else str(file)
    return {"file_name": name, **_SHAPES.get(format, {"columns": COLUMNS})}


_SHAPES: dict[str, dict[str, Any]] = {
    "sharegpt": SHAREGPT,
    "messages": MESSAGES,
    "llamafactory": HISTORY,
    "dpo-llamafactory": RANKING,
}


def _entries_of(folder: Path, file: Path) -> list[dict[str, Any]]:
    """Return the entries that this module writes for a file, in any format: those that it may replace."""
    return [_entry(folder, file, format) for format in ("alpaca", *_SHAPES)]


def _training(store: Store, training: Path, names: list[str], student: str, format: str) -> str:
    rows = store.rows("SELECT model, prompt, max_length FROM students WHERE student = :student", student=student)
    if not rows:
        raise SelectionError(f"no student {student!r} in the store")
    model, prompt, max_length = rows[0]
    if Path(model).is_dir():  # else a name on the Hub
        model = Path(model).resolve()
    pairs = format == "dpo-llamafactory"
    values = {
        "model": model,
        "dir": training.resolve().parent,
        "name": names[0],
        "output": f"saves/{names[0]}",
    }
    quoted = {key: json.dumps(str(value), ensure_ascii=False) for key, value in values.items()}
    evaluation = f"\n### eval\neval_dataset: {json.dumps(names[1])}\neval_strategy: epoch\n" if len(names) > 1 else ""
    method = "stage: dpo\npref_beta: 0.1\npref_loss: sigmoid" if pairs else "stage: sft"
    what = (
        f"# Direct preference optimisation of {json.dumps(student)}; start from a model that was fine-tuned on such data."
        if pairs
        else f"# Full fine-tuning of {json.dumps(student)} as in Selective Reflection-Tuning (arXiv:2402.10110), for 7B and 13B models."
    )
    return f"""\
{what}
# Run it with: {train_command(training.resolve())}
# The global batch is 128 = per_device_train_batch_size x gradient_accumulation_steps x number of GPUs (here 8).
### model
model_name_or_path: {quoted["model"]}

### method
{method}
do_train: true
finetuning_type: full

### dataset
dataset: {quoted["name"]}
dataset_dir: {quoted["dir"]}
template: {"alpaca" if prompt == "alpaca" else "vicuna"}
cutoff_len: {max_length}
{evaluation}
### output
output_dir: {quoted["output"]}
logging_steps: 10
save_strategy: epoch

### train
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: {"5.0e-7" if pairs else "2.0e-5"}
num_train_epochs: {"1.0" if pairs else "3.0"}
weight_decay: 0.0
warmup_ratio: {"0.1" if pairs else "0.03"}
lr_scheduler_type: cosine
bf16: true
"""


def write_card(path: Path, written: Written) -> None:
    """Write a dataset card for the Hugging Face Hub: a YAML header, then where the rows come from."""
    file = os.path.relpath(written.file.resolve(), path.resolve().parent)
    size = next((label for limit, label in SIZES if written.rows < limit), "1M<n<10M")
    header = {
        "pretty_name": written.name,
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "recycledb"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": file}],
    }
    yaml = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items())
    lineage = {
        "recipe": written.recipe,
        **{key: value for key, value in written.parameters.items() if value is not None},
        "rows": written.rows,
        "file": file,
        "SHA-256": written.sha256,
    }
    said = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in lineage.items())
    counts = "\n".join(f"| {_cell(kind)} | {count} |" for kind, count in written.counts.items())
    write_text(
        path,
        f"---\n{yaml}\n---\n\n# {_cell(written.name)}\n\nInstruction-tuning data, chosen by recycledb.\n\n"
        f"## Lineage\n\n| | |\n|---|---|\n{said}\n\n## Kinds\n\n| kind | rows |\n|---|---|\n{counts}\n",
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")

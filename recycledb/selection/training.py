"""Files for trainers and the Hugging Face Hub: LLaMA-Factory's dataset entry and training file, a dataset card.

Invariant: an existing `dataset_info.json` keeps its other entries; one that cannot be read is an error and not overwritten.
The hyperparameters are those of Selective Reflection-Tuning (Li et al., arXiv:2402.10110): FastChat's vicuna prompt, global batch
128, learning rate 2e-5, 3 epochs, 2048 tokens, weight decay 0, warm-up ratio 0.03.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.files import write_text
from recycledb.store import Store

SUFFIXES = {"alpaca": ".json", "sharegpt": ".json", "jsonl": ".jsonl", "parquet": ".parquet"}
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "conversations"},
    "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
}
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


def write_beside(
    store: Store, written: Written, llama_factory: Path | None, card: Path | None, student: str | None
) -> tuple[str, ...]:
    """Write the files requested for a file of rows: LLaMA-Factory's entry in a folder, a card; return the paths."""
    paths = write_llama_factory(store, llama_factory, written, student) if llama_factory is not None else []
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


def write_llama_factory(store: Store, folder: Path, written: Written, student: str | None) -> list[Path]:
    """Add the entry to `folder`/dataset_info.json and, for a student, write a training file beside it; return both paths.

    SelectionError if the folder is missing or its dataset_info.json is not a JSON object.
    """
    if not folder.is_dir():
        raise SelectionError(f"{folder} is not a folder; give LLaMA-Factory's data folder")
    info = folder / "dataset_info.json"
    entries = _entries(info)
    name = entry_name(written.name)
    entries[name] = _entry(folder, written)
    write_text(info, json.dumps(entries, ensure_ascii=False, indent=2) + "\n")
    if student is None:
        return [info]
    training = folder / f"{name}.yaml"
    write_text(training, _training(store, folder, name, student))
    return [info, training]


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


def _entry(folder: Path, written: Written) -> dict[str, Any]:
    file = written.file.resolve()
    inside = file.is_relative_to(folder.resolve())
    name = str(file.relative_to(folder.resolve())) if inside else str(file)
    return {"file_name": name, **(SHAREGPT if written.format == "sharegpt" else {"columns": COLUMNS})}


def _training(store: Store, folder: Path, name: str, student: str) -> str:
    rows = store.rows("SELECT model, prompt FROM students WHERE student = :student", student=student)
    if not rows:
        raise SelectionError(f"no student {student!r} in the store")
    model, prompt = rows[0]
    template = "alpaca" if prompt == "alpaca" else "vicuna"
    quoted = {key: json.dumps(str(value), ensure_ascii=False) for key, value in (("model", model), ("dir", folder))}
    return f"""\
# Full fine-tuning of {json.dumps(student)} as in Selective Reflection-Tuning (arXiv:2402.10110), for 7B and 13B models.
# Run it with: llamafactory-cli train {name}.yaml
# The global batch is 128 = per_device_train_batch_size x gradient_accumulation_steps x number of GPUs (here 8).
### model
model_name_or_path: {quoted["model"]}

### method
stage: sft
do_train: true
finetuning_type: full

### dataset
dataset: {json.dumps(name)}
dataset_dir: {quoted["dir"]}
template: {template}
cutoff_len: 2048

### output
output_dir: {json.dumps(f"saves/{name}")}
logging_steps: 10
save_strategy: epoch

### train
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 2.0e-5
num_train_epochs: 3.0
weight_decay: 0.0
warmup_ratio: 0.03
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

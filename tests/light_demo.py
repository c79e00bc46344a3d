"""The demo's folder with students that take a tenth of the time: the lowest layers of its small one."""

import json
import shutil
from pathlib import Path

from late import tensors

from recycledb import demo

LAYERS = {"small": 1, "large": 2}


def lay_out(folder: Path) -> None:
    """Lay out the demo's folder; its data, recorded replies and configuration are the demo's own."""
    demo.lay_out(folder)
    whole = folder / "students" / "small"
    weights = tensors.load_file(whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    for name, count in LAYERS.items():
        student = folder / "students" / name
        if student != whole:
            shutil.copytree(whole, student, dirs_exist_ok=True)
        gone = tuple(f"model.layers.{layer}." for layer in range(count, config["num_hidden_layers"]))
        kept = {key: value for key, value in weights.items() if not key.startswith(gone)}
        tensors.save_file(kept, student / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps({**config, "num_hidden_layers": count})
        (student / "config.json").write_text(text, encoding="utf-8")

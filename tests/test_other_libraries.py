"""What other libraries warn of stays off the terminal of a normal run, and is there with --debug; our own lines are there in both."""

import json
import os
import sys
from pathlib import Path

import forks
import pytest
from tiny_students import save_student, tokenizer

from recycledb.store import Store

# The fork server runs with warnings as errors; a user does not.
AS_A_USER = "import sys, warnings; sys.warnoptions.clear(); warnings.resetwarnings(); "
COMMAND = f"{AS_A_USER}from recycledb.cli import main; main()"
WARNINGS = f"""{AS_A_USER}
import logging, os, torch, transformers, huggingface_hub
from recycledb.cli.printing import hide_libraries, make_safe, show_libraries, tell
make_safe()
(show_libraries if sys.argv[1] == "debug" else hide_libraries)()
for name in ("transformers.models", "huggingface_hub.file_download", "torch.distributed", "openai", "datasets.load", "recycledb.scoring"):
    logging.getLogger(name).warning("%s warns", name)
warnings.warn("the module warns", FutureWarning)
logging.getLogger("asyncio").error("a task failed", exc_info=ValueError("odd"))
logging.getLogger("recycledb.scoring").info("a detail")
tell("an error")
sys.stderr.flush()
os._exit(0)  # as the command leaves
"""
SETTINGS = """
[store]
url = "sqlite:///store.db"
[teachers.t]
provider = "transformers"
model = "model"
device = "cpu"
params = { max_tokens = 2, temperature = 0 }
"""


def run(code: str, *arguments: str, cwd: Path, **more: str) -> str:
    """Run code with these arguments as a user would; return what it wrote to stderr."""
    environment = {name: value for name, value in forks.clean_environment(**more).items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", code, *arguments]
    done = forks.run(command, cwd=cwd, env=environment, modules=forks.MODELS)
    assert done.returncode in (0, 3), done.stderr
    return done.stderr


def test_only_our_own_lines_are_printed(tmp_path: Path) -> None:
    told = run(WARNINGS, "quiet", cwd=tmp_path)
    ours = ["recycledb.scoring warns", "a task failed: ValueError: odd", "an error"]
    assert told == "".join(f"recycledb: {line}\n" for line in ours)


def test_a_command_started_by_a_command_is_as_quiet(tmp_path: Path) -> None:
    """The first has set the variables, the second finds them set and the libraries imported already."""
    variables = dict.fromkeys(("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"), "critical")
    told = run(WARNINGS, "quiet", cwd=tmp_path, TORCH_LOGS="-all", **variables)
    assert told.count("\n") == 3 and "transformers" not in told and "torch" not in told
    assert "transformers.models warns" in run(WARNINGS, "quiet", cwd=tmp_path, TRANSFORMERS_VERBOSITY="warning")


def test_debug_shows_everything(tmp_path: Path) -> None:
    told = run(WARNINGS, "debug", cwd=tmp_path)
    for name in (
        "transformers.models",
        "huggingface_hub.file_download",
        "openai",
        "datasets.load",
        "recycledb.scoring",
    ):
        assert f"{name} warns" in told
    assert "the module warns" in told and "a detail" in told


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_model_that_makes_transformers_warn(tmp_path: Path) -> None:
    """By its log and by Python's warnings: lengths for generation that contradict each other, a tokenizer with a short limit."""
    folder = save_student(tmp_path / "model", "llama")
    words = tokenizer(bos=True)
    words.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    words.model_max_length = 5
    words.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 50, "min_length": 5000}))
    settings = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float32", "an_odd_key": 1}
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 2048}))
    (tmp_path / "recycledb.toml").write_text(SETTINGS)
    (tmp_path / "d.json").write_text(json.dumps([{"instruction": "Name a river.", "input": "", "output": "The Nile."}]))
    Store.open(f"sqlite:///{tmp_path}/store.db", create=True).close()
    run(COMMAND, "add", "d.json", cwd=tmp_path)
    loud = run(COMMAND, "--debug", "sync", "--only", "reflect", cwd=tmp_path)
    assert "Unfeasible length constraints" in loud and "Token indices" in loud
    (tmp_path / "store.db").unlink()
    Store.open(f"sqlite:///{tmp_path}/store.db", create=True).close()
    run(COMMAND, "add", "d.json", cwd=tmp_path)
    assert run(COMMAND, "sync", "--only", "reflect", cwd=tmp_path) == ""
    (folder / "model.safetensors").write_bytes(b"")
    (tmp_path / "more.json").write_text(json.dumps([{"instruction": "Name a lake.", "input": "", "output": "Baikal."}]))
    run(COMMAND, "add", "more.json", cwd=tmp_path)
    with pytest.raises(AssertionError, match=r"recycledb: teacher 't': cannot load model .*truncated"):
        run(COMMAND, "sync", "--only", "reflect", cwd=tmp_path)

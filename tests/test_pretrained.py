"""Models that do not load as they should: one line each; no code of theirs runs, and no weight is made up."""

import asyncio
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import stores
from late import Engine, tensors, torch
from tiny_students import SAMPLES, config, save_student, tokenizer, transformers

from recycledb.cli import run as run_command
from recycledb.cli.app import session
from recycledb.config import TeacherConfig
from recycledb.errors import StudentError, TeacherError
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Step
from recycledb.pretrained.folder import NEVER_RUNS_CODE
from recycledb.reflection.teachers import Question, Reply, open_teacher
from recycledb.schema import ReplyStatus, Texts
from recycledb.scoring.frames import Failure, Setup, read_frame, write_frame
from recycledb.scoring.identity import identify
from recycledb.scoring.requests import Request
from recycledb.store import Store

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a tiny chat model, to be damaged in copies, and one whose embeddings are tied."""
    folder = tmp_path_factory.mktemp("originals")
    found = {name: save_student(folder / name, name) for name in ("llama", "gpt2")}
    words = tokenizer(bos=True)
    words.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    words.save_pretrained(found["llama"])
    return found


@pytest.fixture
def folder(originals: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the chat model."""
    return Path(shutil.copytree(originals["llama"], tmp_path / "model"))


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process, which has torch loaded already, on a store of one sample and a student in `model`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recycledb.toml").write_text(STUDENT)
    with Store.open(sqlite_url) as store:
        stores.add_samples(store, [Texts("Name a river.", "", "The Nile.")])

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        words = ["recycledb", *arguments]
        session.forget()
        monkeypatch.setattr(sys, "argv", words)
        ended = run_command()  # all of `main` but its leaving, which would take the tests along
        output = capsys.readouterr()
        assert ended == code, output.err
        return subprocess.CompletedProcess(words, code, output.out, output.err)

    return run


def teacher(folder: Path) -> Any:
    settings: dict[str, Any] = {"provider": "transformers", "model": str(folder), "device": "cpu"}
    return open_teacher(TeacherConfig(name="tiny", params={"max_tokens": 4}, **settings))


def sums(folder: Path) -> list[float | None]:
    """Return the sums of a few statistics, from an engine made for them."""
    with Engine.load(str(folder), max_length=256, device="cpu", workers=0) as engine:
        batches = list(engine.score([Request(i, texts, tuple(Stat)) for i, texts in enumerate(SAMPLES[:3])]))
    found = {(result.key, result.stat): result.loss_sum for batch in batches for result in batch}
    return [found[key] for key in sorted(found)]


def refused(folder: Path, *, as_teacher: bool = True) -> str:
    """Return the one line with which a folder is refused as a student, the same as for a teacher."""
    with pytest.raises(StudentError) as student:
        sums(folder)
    line = str(student.value)
    assert "\n" not in line and len(line) < 600
    if as_teacher:
        with pytest.raises(TeacherError) as told:
            asyncio.run(teacher(folder).close())
        assert str(told.value) == f"teacher 'tiny': {line}"
    return line


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, end: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def configured(name: str = "config.json", **settings: Any) -> Change:
    """Change a file of settings; None takes one out."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | settings
        kept = {key: value for key, value in found.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def indexed(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def pickled(content: bytes | None = None, end: int | None = None, **more: Any) -> Change:
    """Replace the weights by pickled ones, with `more` among them, or by `content`."""

    def change(folder: Path) -> None:
        weights = tensors.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        torch.save({**weights, **more}, path)
        if content is not None or end is not None:
            path.write_bytes(path.read_bytes()[:end] if content is None else content)

    return change


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


DAMAGE: dict[str, tuple[Change, str]] = {
    "header cut": (cut("model.safetensors", 100), r"model\.safetensors: .*header.*; it is truncated or damaged"),
    "data cut": (
        cut("model.safetensors", -100),
        r"model\.safetensors: .*not fully covered; it is truncated or damaged",
    ),
    "empty": (cut("model.safetensors", 0), r"model\.safetensors: .*header too small; it is truncated or damaged"),
    "pickle cut": (pickled(end=-200), "its pickled weights cannot be read"),
    "pickle empty": (pickled(b""), "its pickled weights cannot be read"),
    "pickle is text": (pickled(b"hello"), "KeyError"),
    "config is no JSON": (write("config.json", b'{"model_type":'), r"config\.json' is not valid JSON"),
    "config is binary": (write("config.json", b"\xff\xfe\x00"), r"config\.json' is not valid JSON"),
    "config is nested": (write("config.json", b"[" * 200_000), r"config\.json' is not valid JSON"),
    "config is a list": (write("config.json", b"[1]"), r"config\.json' holds a list, not an object"),
    "no model type": (configured(model_type=None), "Should have a `model_type` key"),
    "unknown model type": (configured(model_type="nonsense"), "model type `nonsense`"),
    "negative size": (configured(hidden_size=-32), "negative dimension -32"),
    "negative layers": (configured(num_hidden_layers=-1), "that its config does not have"),
    "size is a text": (configured(hidden_size="a"), "expected int, got str"),
    "heads do not divide": (configured(num_attention_heads=3), "not a multiple"),
    "unknown activation": (configured(hidden_act="nonsense"), "KeyError: 'nonsense'"),
    "quantised by nobody": (configured(quantization_config="x"), "AttributeError"),
    "auto_map is a number": (configured(auto_map=3), "TypeError"),
    "tokenizer missing": (without("tokenizer.json"), "has no tokenizer"),
    "tokenizer cut": (cut("tokenizer.json", 500), "Unterminated string"),
    "tokenizer is empty": (write("tokenizer.json", b"{}"), "KeyError: 'added_tokens'"),
    "tokenizer config is a list": (write("tokenizer_config.json", b"[]"), "AttributeError"),
    "index names no shard": (indexed({"a": "model-00002-of-00002.safetensors"}), "lacks 1 of its weight files"),
    "index leads away": (indexed({"a": "../other/model.safetensors"}), "names weights outside of it"),
    "index is odd": (indexed([1, 2]), "has no weight_map"),
    "weights are elsewhere": (configured(transformers_weights="/etc/x.safetensors"), "names weights outside of it"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_one_line(folder: Path, name: str) -> None:
    change, message = DAMAGE[name]
    change(folder)
    line = refused(folder)
    assert re.search(message, line), line
    assert str(folder) in line


def test_a_panic_in_the_tokenizer_is_one_line(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
        "pair": [],
    }
    content["post_processor"]["special_tokens"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert str(folder) in refused(folder)


def test_a_word_that_the_tokenizer_lacks_is_one_line(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {"<s>": 0, "</s>": 1, "A": 2, "few": 3, "words": 4, ".": 5}
    content["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"}
    content["pre_tokenizer"], content["decoder"] = {"type": "Whitespace"}, None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert re.search("the tokenizer of .* fails: .*UNK", refused(folder, as_teacher=False))


# ---------------------------------------------------------------- every weight from the files


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a folder's weights anew, changed."""
    weights = tensors.load_file(folder / "model.safetensors")
    change(weights)
    tensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


LACKS = "lacks weights that its config needs"


def test_a_missing_weight_is_refused_by_name(folder: Path) -> None:
    changed(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert f"{LACKS} (model.layers.1.mlp.up_proj.weight)" in refused(folder)
    changed(folder, lambda weights: [weights.pop(key) for key in sorted(weights)[:5]])
    assert "… 6 in all" in refused(folder)


def test_a_wrong_shape_is_refused_by_name(folder: Path) -> None:
    changed(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(399, 32)}))
    assert "lm_head.weight is [399, 32], not [400, 32]" in refused(folder)


def test_layers_that_the_config_leaves_out_are_refused_by_name(folder: Path) -> None:
    configured(num_hidden_layers=1)(folder)
    line = refused(folder)
    assert "does not have (model.layers.1.input_layernorm.weight, " in line and "… 9 in all" in line


def test_biases_of_another_architecture_are_refused_by_name(folder: Path) -> None:
    changed(folder, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    assert "does not have (model.layers.0.self_attn.q_proj.bias)" in refused(folder)


def test_a_model_without_its_head_is_refused(folder: Path) -> None:
    transformers.AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert f"{LACKS} (lm_head.weight)" in refused(folder)


def test_a_tied_head_need_not_be_there(originals: dict[str, Path], tmp_path: Path) -> None:
    before = sums(originals["gpt2"])
    bare = Path(shutil.copytree(originals["gpt2"], tmp_path / "bare"))
    transformers.AutoModel.from_pretrained(bare).save_pretrained(bare)  # as GPT-2 itself was published
    assert "lm_head.weight" not in tensors.load_file(bare / "model.safetensors")
    assert sums(bare) == before == sums(bare)


def test_what_stands_beside_the_body_is_let_by(folder: Path) -> None:
    before = sums(folder)
    more = {
        "v_head.weight": torch.ones(1, 32),
        "visual.layers.0.weight": torch.ones(3),
        "mtp.layers.0.norm.weight": torch.ones(3),
    }
    more |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
    }
    changed(folder, lambda weights: weights.update(more))
    assert sums(folder) == before


def test_pickled_weights_give_the_same_numbers(folder: Path) -> None:
    before = sums(folder)
    pickled()(folder)
    assert sums(folder) == before


def test_only_weights_that_the_revision_covers_are_loaded(folder: Path) -> None:
    pickled()(folder)
    tensors.save_file(
        {"a": torch.zeros(1)}, folder / "other.safetensors"
    )  # now this is what `identify` takes for the weights
    assert "model.safetensors" in refused(folder)
    without("other.safetensors")(folder)
    (folder / "pytorch_model.bin").rename(folder / "shard.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(torch.load(folder / "shard.bin"), "shard.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    before = identify(str(folder)).revision
    torch.save({key: value + 1 for key, value in torch.load(folder / "shard.bin").items()}, folder / "shard.bin")
    assert identify(str(folder)).revision != before


def test_the_dtype_is_ours_and_not_the_config_s(folder: Path) -> None:
    before = sums(folder)
    configured(dtype="float16", torch_dtype="float16", attention_dropout=0.9)(folder)
    assert sums(folder) == before


@pytest.mark.long
def test_a_worker_refuses_what_the_engine_refuses(folder: Path) -> None:
    changed(folder, lambda weights: weights.pop("lm_head.weight"))
    with forks.start_worker() as worker:
        assert worker.stdin is not None and worker.stdout is not None
        write_frame(worker.stdin, Setup(str(folder), None, "float32", 256, 1))
        failure = read_frame(worker.stdout)
    assert isinstance(failure, Failure) and failure.known and "lacks weights" in failure.message


# ---------------------------------------------------------------- nothing is run

MODELING = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "mine"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
CODE = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
STUDENT = """
[store]
url = "sqlite:///store.db"
[students.s]
model = "model"
max_length = 256
device = "cpu"
"""


def with_code(folder: Path, marker: Path, *, model_type: str) -> None:
    (folder / "modeling_mine.py").write_text(MODELING.format(marker=str(marker)))
    configured(model_type=model_type, auto_map=CODE)(folder)
    auto_map = {"AutoTokenizer": [None, "modeling_mine.Tokenizer"]}
    configured("tokenizer_config.json", auto_map=auto_map, tokenizer_class="Tokenizer")(folder)


def test_code_of_a_model_never_runs_and_nobody_is_asked(
    folder: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "it ran"
    with_code(folder, marker, model_type="mine")
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("y\n" * 20)
    )  # transformers asks there, unless it is told not to trust
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    assert NEVER_RUNS_CODE in refused(folder)
    for arguments in (["sync", "--dry-run"], ["status"]):
        here(*arguments)
    told = here("sync", code=1)
    assert told.stderr.count("\n") == 1 and NEVER_RUNS_CODE in told.stderr
    assert sys.stdin.read().count("y") == 20
    assert not marker.exists()


def test_code_beside_a_known_model_does_not_matter(folder: Path, tmp_path: Path) -> None:
    before = sums(folder)
    marker = tmp_path / "it ran"
    with_code(folder, marker, model_type="llama")
    configured("tokenizer_config.json", tokenizer_class="TokenizersBackend")(folder)
    assert sums(folder) == before
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(MODELING.format(marker=str(marker)))
    asyncio.run(teacher(folder).close())
    assert not marker.exists()


class Touch:
    """What a malicious pickle is: an object that runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("bare", [True, False])
def test_a_malicious_pickle_does_not_run(folder: Path, tmp_path: Path, bare: bool) -> None:
    evil = Touch(tmp_path / "it ran")
    (pickled(pickle.dumps(evil)) if bare else pickled(evil=evil))(folder)
    assert "pickled weights hold more than tensors" in refused(folder)
    assert not evil.marker.exists()


# ---------------------------------------------------------------- the local teacher's template


def template(folder: Path, text: str) -> Path:
    (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% for %}", "Expected"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages[5].content.x }}", "no element 5"),
    ],
)
def test_a_template_that_fails_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(TeacherError) as told:
        teacher(template(folder, text))
    assert "the chat template of" in str(told.value) and message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_prompt_that_the_template_refuses_fails_alone(folder: Path) -> None:
    template(folder, "{% if 'bad' in messages[0].content %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}")

    async def ask() -> list[Reply]:
        one = teacher(folder)
        questions = [
            Question(text, Step.COMPRESS, [{"role": "user", "content": text}], (Texts(text, "", ""),))
            for text in ("bad", "good")
        ]
        try:
            assert one.estimate(questions[0].messages) > 0
            return [await one.ask(question) for question in questions]
        finally:
            await one.close()

    bad, good = asyncio.run(ask())
    assert (bad.status, bad.kind) == (ReplyStatus.FAILED, "bad_request") and "ZeroDivisionError" in (bad.error or "")
    assert good.kind != "bad_request" and good.completion_tokens


def test_a_teacher_whose_tokenizer_is_another_model_s_is_one_line(folder: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(config("llama", 50)).save_pretrained(folder)
    one = teacher(folder)
    with pytest.raises(TeacherError, match="do not belong together"):
        one.estimate([{"role": "user", "content": "The quick brown fox"}])
    asyncio.run(one.close())


# ---------------------------------------------------------------- status


def test_a_bad_student_hides_nothing_of_status(folder: Path, here: Here) -> None:
    for change in (cut("config.json", 10), indexed({"a": "gone.safetensors"}), shutil.rmtree):
        change(folder)
        found = json.loads(here("status", "--json").stdout)
        assert found["samples"] == 1 and folder.name in found["missing_unknown"]
        told = here("sync", code=1)
        assert told.stderr.count("\n") == 1
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("model", ["~nobody-of-this-name/model", "/" + "x" * 5000, "folder"])
def test_a_path_that_cannot_be_looked_at_is_one_line(folder: Path, model: str) -> None:
    model = str(folder) if model == "folder" else model
    user = os.geteuid()
    folder.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(StudentError, match=r"Permission denied|not a folder|too long") as told:
            identify(model)
        assert "\n" not in str(told.value)
        with pytest.raises(StudentError, match=r"Permission denied|not a folder|too long"):
            Engine.load(model, max_length=256, device="cpu", workers=0)
    finally:
        os.seteuid(user)
        folder.chmod(0o700)

"""The engine against the naive loop, on real tiny models of several architectures."""

import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forks
import naive
import numpy as np
import pytest
from forks import PIPE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from late import Engine, Late, torch
from tiny_students import ARCHITECTURES, SAMPLES, config, save_student, transformers

from recycledb.errors import StudentError
from recycledb.methods.ifd import Stat
from recycledb.schema import LossStatus, Texts
from recycledb.scoring.frames import Ready, Setup, read_frame, write_frame
from recycledb.scoring.packs import Work, by_beginning, by_length, lay_out
from recycledb.scoring.requests import Progress, Request, Result
from recycledb.scoring.spans import Span

STATS = tuple(Stat)
MAX_LENGTH = 256
attention, heads, kernels = (Late(f"recycledb.scoring.{name}") for name in ("attention", "heads", "kernels"))
lanes, networks = (Late(f"recycledb.scoring.{name}") for name in ("lanes", "network"))

Key = tuple[Any, Stat]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one tiny model of each architecture."""
    folder = tmp_path_factory.mktemp("students")
    return {name: save_student(folder / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def llama(students: dict[str, Path]) -> Iterator[Engine]:
    with load(students["llama"]) as engine:
        yield engine


def load(folder: Path, **options: Any) -> Engine:
    everything: dict[str, Any] = {"max_length": MAX_LENGTH, "device": "cpu", "workers": 0, **options}
    return Engine.load(str(folder), **everything)


def ask(samples: Iterable[Texts], stats: tuple[Stat, ...] = STATS) -> list[Request]:
    return [Request(i, texts, stats) for i, texts in enumerate(samples)]


def collect(batches: Iterable[list[Result]]) -> dict[Key, Result]:
    results = [result for batch in batches for result in batch]
    by_key = {(result.key, result.stat): result for result in results}
    assert len(by_key) == len(results)
    return by_key


def sums(results: Mapping[Key, Result]) -> dict[Key, float]:
    return {key: result.loss_sum for key, result in results.items() if result.loss_sum is not None}


def numbers(outputs: Iterable[Any]) -> list[float]:
    """Return sums of losses, each the only number of its work's output."""
    return [float(number) for (number,) in outputs]


def close_to(loss_sum: float | None) -> Any:
    return None if loss_sum is None else pytest.approx(loss_sum, rel=1e-4)


def oracle(folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def random_works(seed: int, count: int, vocabulary: int, longest: int = 120) -> list[Work]:
    """Make sequences of which many begin alike."""
    generator = np.random.default_rng(seed)
    stems = [generator.integers(0, vocabulary, 40).astype(np.int32) for _ in range(3)]
    works = []
    for i in range(count):
        stem = stems[generator.integers(3)][: generator.integers(0, 41)]
        tail = generator.integers(0, vocabulary, generator.integers(2, longest)).astype(np.int32)
        ids = np.concatenate([stem, tail])
        works.append(Work(str(i), ids, int(generator.integers(1, len(ids)))))
    return works


# ---------------------------------------------------------------- the same numbers as the naive loop


@pytest.mark.parametrize("words", [3, 1024, 1025, 2500])
@pytest.mark.parametrize("rows", [1, 2, 513])
def test_losses_in_blocks_are_those_of_all_logits_at_once(rows: int, words: int) -> None:
    chance = torch.Generator().manual_seed(words)
    hidden, weight, bias = (torch.randn(shape, generator=chance) for shape in ((rows, 8), (words, 8), (words,)))
    targets = torch.randint(0, words, (rows,), generator=chance)
    targets[0] = words - 1
    for offset in (None, bias):
        found = heads.block_losses(hidden, weight, offset, targets)
        logits = torch.nn.functional.linear(hidden, weight, offset)
        torch.testing.assert_close(found, heads.token_losses(logits, targets), rtol=1e-5, atol=1e-5)


def test_only_a_linear_head_is_computed_in_blocks() -> None:
    for architecture in ARCHITECTURES:
        model = transformers.AutoModelForCausalLM.from_config(config(architecture, 300))
        assert (networks.split(model).linear is None) is (architecture == "gemma2"), architecture  # it caps its logits


@pytest.mark.default_cases("llama-vicuna", "gpt2-none", "qwen3-none", "gemma2-vicuna")
@pytest.mark.parametrize("prompt", ["vicuna", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_the_naive_loop(students: dict[str, Path], architecture: str, prompt: str) -> None:
    folder = students[architecture]
    with load(folder, prompt=prompt) as engine:
        assert engine.kernels == ["cpu/packed"]
        results = collect(engine.score(ask(SAMPLES)))
    model, tokenizer = oracle(folder)
    for i, texts in enumerate(SAMPLES):
        for stat, expected in naive.score(model, tokenizer, prompt, MAX_LENGTH, texts).items():
            result = results[i, Stat(stat)]
            assert result.n_tokens == expected.n_tokens, (i, stat)
            assert (result.status is LossStatus.OK) == (expected.loss_sum is not None), (i, stat)
            assert result.loss_sum == close_to(expected.loss_sum), (i, stat)


fragments = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.sampled_from(["", "\n", ") ", "def f(x):\n\treturn x\n", "שלום עולם", "👩‍👩‍👧‍👦🏳️‍🌈", "<s>", "word " * 90]),
)


@pytest.mark.long
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Texts, fragments, fragments, fragments), min_size=1, max_size=4))
def test_agrees_with_the_naive_loop_on_any_text(students: dict[str, Path], llama: Engine, samples: list[Texts]) -> None:
    model, tokenizer = oracle_of_llama(students["llama"])
    results = collect(llama.score(ask(samples)))
    for i, texts in enumerate(samples):
        for stat, expected in naive.score(model, tokenizer, "vicuna", MAX_LENGTH, texts).items():
            result = results[i, Stat(stat)]
            assert result.n_tokens == expected.n_tokens
            assert result.loss_sum == close_to(expected.loss_sum)


_oracles: dict[Path, tuple[Any, Any]] = {}


def oracle_of_llama(folder: Path) -> tuple[Any, Any]:
    if folder not in _oracles:
        _oracles[folder] = oracle(folder)
    return _oracles[folder]


@pytest.mark.default_cases("mistral")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_agree_on_sequences_that_begin_alike(students: dict[str, Path], architecture: str) -> None:
    network = networks.load_network(str(students[architecture]), None, torch.float32, torch.device("cpu"))
    works = random_works(1, 40, network.vocabulary)
    with torch.inference_mode():
        expected = numbers(kernels.Single(network).outputs(works))
        padded = numbers(kernels.Padded(network).outputs(works))
        kernel = kernels.choose(network, MAX_LENGTH)
        assert kernel.name == "packed"
        packed = {
            w.pair_id: float(found[0])
            for b in by_beginning(works, 300)
            for w, found in zip(b.works, kernel.outputs(b.works), strict=True)
        }
    assert padded == pytest.approx(expected, rel=1e-4)
    assert [packed[work.pair_id] for work in works] == pytest.approx(expected, rel=1e-4)


# bfloat16 carries 8 bits: a loss moves with the shape of the batch. The bound that we promise, in nats a token.
BFLOAT16_BOUND = 0.05


@pytest.mark.default_cases("llama")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_stays_within_its_bound(students: dict[str, Path], architecture: str) -> None:
    folder = students[architecture]
    with load(folder, dtype="bfloat16") as engine:
        results = collect(engine.score(ask(SAMPLES)))
    model, tokenizer = oracle(folder, "bfloat16")
    for i, texts in enumerate(SAMPLES):
        for stat, expected in naive.score(model, tokenizer, "vicuna", MAX_LENGTH, texts).items():
            found = results[i, Stat(stat)].loss_sum
            if expected.loss_sum is not None and found is not None:
                # A mean over few tokens is as uncertain as they are: the bound is for a text of 16 tokens or more.
                tokens = max(expected.n_tokens, 16)
                assert abs(found - expected.loss_sum) / tokens < BFLOAT16_BOUND, (i, stat)


# ---------------------------------------------------------------- no matter in what company


def test_order_and_company_do_not_matter(llama: Engine) -> None:
    together = sums(collect(llama.score(ask(SAMPLES))))
    requests = ask(SAMPLES)
    backwards = sums(collect(llama.score(requests[::-1])))
    alone = {key: s for request in requests for key, s in sums(collect(llama.score([request]))).items()}
    assert together == pytest.approx(alone, rel=1e-5)
    assert together == pytest.approx(backwards, rel=1e-5)


def test_fewer_stats_are_the_same_numbers(llama: Engine) -> None:
    only_answers = collect(llama.score(ask(SAMPLES, (Stat.A_DIRECT, Stat.A_CONDITION))))
    assert {stat for _, stat in only_answers} == {Stat.A_DIRECT, Stat.A_CONDITION}
    everything = sums(collect(llama.score(ask(SAMPLES))))
    assert sums(only_answers) == pytest.approx({key: everything[key] for key in sums(only_answers)}, rel=1e-5)


# ---------------------------------------------------------------- no wasted work


def test_equal_work_is_computed_once(llama: Engine) -> None:
    seen: list[Progress] = []
    list(llama.score(ask(SAMPLES[:3]), progress=seen.append))
    once = seen[-1]
    results = collect(llama.score(ask(SAMPLES[:3] * 50), progress=seen.append))
    assert len(results) == 3 * 50 * 4
    assert seen[-1].tokens == once.tokens
    assert seen[-1].results == len(results)
    assert seen[-1].seconds > 0
    assert seen[-1].utilisation is not None


def test_what_the_store_knows_is_not_computed(llama: Engine) -> None:
    first = collect(llama.score(ask(SAMPLES)))
    stored = {r.pair_id: r.output for r in first.values() if r.pair_id and r.output is not None}
    asked: list[str] = []

    def known(spans: Sequence[Span]) -> dict[str, Any]:
        asked.extend(str(span.pair_id) for span in spans)
        return {span.key: stored[str(span.pair_id)] for span in spans if span.pair_id in stored}

    seen: list[Progress] = []
    again = collect(llama.score(ask(SAMPLES), known, seen.append))
    assert sums(again) == sums(first)
    assert seen[-1].tokens == 0
    assert {result.kernel for result in again.values() if result.status is LossStatus.OK} == {"known"}
    assert sorted(asked) == sorted(stored)


def test_results_come_as_they_are_computed_and_requests_are_read_lazily(students: dict[str, Path]) -> None:
    read = 0

    def requests() -> Iterator[Request]:
        nonlocal read
        for i in range(5000):
            read += 1
            yield Request(i, Texts(f"question {i} " * 5, "", f"answer {i} " * 9), STATS)

    with load(students["llama"]) as engine:
        batches = engine.score(requests())
        first = next(batches)
        assert 0 < len(first) < 1000
        assert read < 1000
        batches.close()  # type: ignore[attr-defined]


def test_beginnings_are_shared_and_nothing_is_lost() -> None:
    works = random_works(3, 200, 50)
    for budget in (100, 1000, 10**6):
        batches = list(by_beginning(works, budget))
        assert sorted(w.pair_id for b in batches for w in b.works) == sorted(w.pair_id for w in works)
        for batch in batches:
            layout = lay_out(batch.works)
            assert len(layout.ids) == batch.tokens
            assert len(batch.works) == 1 or batch.tokens <= budget
            for work, path in zip(batch.works, layout.paths, strict=True):
                assert layout.ids[path].tolist() == work.ids.tolist()
                assert layout.positions[path].tolist() == list(range(len(work.ids)))
            for block in layout.blocks:
                seen = np.concatenate([np.arange(begin, end) for begin, end in block.keys])
                assert layout.positions[seen].tolist() == list(range(block.n_keys))
    everything = sum(len(work.ids) for work in works)
    assert sum(batch.tokens for batch in by_beginning(works, 10**6)) < 0.9 * everything
    padded = list(by_length(works, 400))
    assert sum(batch.tokens for batch in padded) == everything
    assert all(len(b.works) == 1 or len(b.works) * max(len(w.ids) for w in b.works) <= 400 for b in padded)


def test_tokens_are_counted_without_the_model(students: dict[str, Path], tmp_path: Path) -> None:
    for file in students["llama"].iterdir():
        if not file.name.endswith(".safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    count = Late("recycledb.scoring.engine").count_tokens(ask(SAMPLES * 2), str(tmp_path), max_length=MAX_LENGTH)
    assert (count.requests, count.statistics) == (2 * len(SAMPLES), 8 * len(SAMPLES))
    assert count.works < 4 * len(SAMPLES)
    assert 0 < count.targets < count.tokens


# ---------------------------------------------------------------- the kernel of a GPU, held against a reference


def reference_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """Do what torch.nn.attention.varlen.varlen_attn documents, a sequence at a time, aligned to the bottom right."""
    assert window_size[1] == 0
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (cu_seq_q.dtype, cu_seq_k.dtype) == (torch.int32, torch.int32)
    parts = []
    for i in range(len(cu_seq_q) - 1):
        q, k, v = (
            query[cu_seq_q[i] : cu_seq_q[i + 1]],
            key[cu_seq_k[i] : cu_seq_k[i + 1]],
            value[cu_seq_k[i] : cu_seq_k[i + 1]],
        )
        assert len(q) <= max_q
        assert len(k) <= max_k
        at = torch.arange(len(q))[:, None] + len(k) - len(q)
        other = torch.arange(len(k))[None]
        mask = other <= at
        if window_size[0] >= 0:
            mask &= other >= at - window_size[0]
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.default_cases("llama", "mistral")
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gemma2"])
def test_the_variable_length_path_gives_the_same_numbers(students: dict[str, Path], architecture: str) -> None:
    network = networks.load_network(str(students[architecture]), None, torch.float32, torch.device("cpu"))
    works = [work for batch in by_beginning(random_works(2, 20, network.vocabulary), 10**6) for work in batch.works]
    parameters = frozenset({"window_size", "enable_gqa", "scale"})
    with torch.inference_mode():
        expected = numbers(kernels.Single(network).outputs(works))
        network.model.set_attn_implementation(attention.NAME)
        kernel = kernels.Packed(network, ("reference", attention.adapt_torch_varlen(reference_varlen, parameters)))
        assert kernel.name == "packed-reference"
        assert numbers(kernel.outputs(works)) == pytest.approx(expected, rel=1e-4)


def test_the_reference_takes_what_the_installed_torch_takes() -> None:
    kernel: Any = Late("torch.nn.attention.varlen").varlen_attn
    installed = inspect.signature(kernel).parameters
    ours = inspect.signature(reference_varlen).parameters
    assert list(installed)[:7] == list(ours)[:7]
    assert set(ours) - {"window_size", "enable_gqa"} <= set(installed)


# ---------------------------------------------------------------- models that do not fit the fast kernels


def test_positions_that_depend_on_the_batch_are_scored_one_by_one() -> None:
    for longest, kernel in ((512, "packed"), (513, "single")):
        shape = config("llama", 300)
        shape.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        network = networks.split(transformers.AutoModelForCausalLM.from_config(shape))
        assert kernels.choose(network, longest).name == kernel


def test_a_recurrent_model_is_padded() -> None:
    shape = transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    network = networks.split(transformers.AutoModelForCausalLM.from_config(shape))
    kernel = kernels.choose(network, 512)
    assert kernel.name == "padded"
    works = random_works(4, 6, 300, 30)
    with torch.inference_mode():
        assert numbers(kernel.outputs(works)) == pytest.approx(
            numbers(kernels.Single(network).outputs(works)), rel=1e-4
        )


class _Small:
    """A real kernel with little memory: it cannot hold more than so many tokens."""

    name = "small"

    def __init__(self, kernel: Any, limit: int) -> None:
        self.kernel, self.limit = kernel, limit
        self.sizes: list[int] = []

    def outputs(self, works: Sequence[Work]) -> list[Any]:
        self.sizes.append(sum(len(work.ids) for work in works))
        if self.sizes[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.kernel.outputs(works)


def test_running_out_of_memory_halves_the_batch_and_goes_on(students: dict[str, Path]) -> None:
    network = networks.load_network(str(students["llama"]), None, torch.float32, torch.device("cpu"))
    works = random_works(5, 16, network.vocabulary, 30)
    kernel = _Small(kernels.Padded(network), 200)
    lane = lanes.LocalLane(kernel, torch.device("cpu"))
    with torch.inference_mode():
        expected = numbers(kernels.Single(network).outputs(works))
    assert numbers(lane.outputs(works)) == pytest.approx(expected, rel=1e-4)
    failures = [size for size in kernel.sizes if size > kernel.limit]
    kernel.sizes.clear()
    assert numbers(lane.outputs(works)) == pytest.approx(expected, rel=1e-4)
    assert failures
    assert max(kernel.sizes) <= kernel.limit  # the budget was learned: nothing is tried in vain again
    with pytest.raises(StudentError, match=r"out of memory on cpu with a single text of \d+ tokens"):
        lanes.LocalLane(_Small(kernels.Padded(network), 1), torch.device("cpu")).outputs(works)


# ---------------------------------------------------------------- processes


@pytest.mark.long
def test_workers_give_the_same_numbers_and_a_killed_one_is_a_clear_error(
    students: dict[str, Path], llama: Engine
) -> None:
    with load(students["llama"], workers=2) as engine:
        assert engine.kernels == ["cpu/packed", "cpu/packed"]
        results = collect(engine.score(ask(SAMPLES)))
        assert sums(results) == pytest.approx(sums(collect(llama.score(ask(SAMPLES)))), rel=1e-5)
        pids = workers_of(os.getpid())
        assert len(pids) == 2
        for pid in pids:
            assert os.getsid(pid) != os.getsid(0)  # the terminal sends it no signal
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(StudentError, match=r"scoring process \d+ ended with status -9"):
            list(engine.score(ask(SAMPLES)))


@pytest.mark.long
def test_a_worker_follows_no_signal_that_asks_for_an_end_and_ends_with_its_engine(students: dict[str, Path]) -> None:
    with forks.start_worker() as worker:
        assert worker.stdin is not None and worker.stdout is not None
        write_frame(worker.stdin, Setup(str(students["llama"]), None, "float32", MAX_LENGTH, 1))
        assert read_frame(worker.stdout) == Ready("cpu/packed")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            worker.send_signal(number)
        works = random_works(6, 3, 300)
        write_frame(worker.stdin, works)
        network = networks.load_network(str(students["llama"]), None, torch.float32, torch.device("cpu"))
        with torch.inference_mode():
            expected = numbers(kernels.Single(network).outputs(works))
            assert numbers(read_frame(worker.stdout)) == pytest.approx(expected, rel=1e-4)
        worker.stdin.close()  # as the kernel does for an engine that is killed
        assert worker.wait(60) == 0


@pytest.mark.long
def test_a_stop_leaves_only_what_lanes_compute(llama: Engine) -> None:
    texts = [Texts(f"Say {number}.", "", f"{number} it is. " * 20) for number in range(400)]
    stopped, everything = threading.Event(), 4 * len(texts)
    yielded = 0
    for results in llama.score(ask(texts), stopped=stopped.is_set):
        yielded += len(results)
        stopped.set()
    assert 0 < yielded < everything
    assert list(llama.score(ask(texts), stopped=stopped.is_set)) == []
    assert len(collect(llama.score(ask(texts)))) == everything


def test_an_engine_that_is_closed_waits_for_no_worker_that_is_still_loading(students: dict[str, Path]) -> None:
    with load(students["llama"], workers=1, workers_after_s=0.0) as engine:
        engine.note_duration(0.0)
        wait_for(lambda: workers_of(os.getpid()))
        (worker,) = workers_of(os.getpid())
        assert engine.kernels == ["cpu/packed"]
    assert not alive(worker)


@pytest.mark.long
def test_a_long_run_goes_on_in_workers(
    students: dict[str, Path], llama: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [Texts(f"Say {number}.", "", f"{number} it is. " * 9) for number in range(1_000)]
    told = "scoring goes on in 1 processes"
    with (
        caplog.at_level(logging.INFO, "recycledb.scoring.engine"),
        load(students["llama"], workers=1, workers_after_s=0.0) as engine,
    ):
        results: dict[Key, Result] = {}
        before = None
        for batch in engine.score(ask(texts)):
            results |= collect([batch])
            if before is None and workers_of(os.getpid()):  # it starts beside the lane at work, which goes on
                wait_for(lambda: told in caplog.text)
                before = len(results)
    assert before is not None and len(results) == len(texts) * len(STATS) > before + 400
    late = [result for result in list(results.values())[before + 300 :] if result.loss_sum is not None][-50:]
    alone = collect(llama.score([Request(r.key, texts[r.key], (r.stat,)) for r in late]))
    for result in late:
        assert result.loss_sum == pytest.approx(alone[result.key, result.stat].loss_sum, rel=1e-5)


_ENGINE_WITH_WORKERS = """
import sys, time
from recycledb.scoring.engine import Engine
engine = Engine.load(sys.argv[1], max_length=256, device="cpu", workers=1)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow  # above, a worker ends when its input does
def test_workers_do_not_outlive_a_killed_engine(students: dict[str, Path]) -> None:
    command = [sys.executable, "-c", _ENGINE_WITH_WORKERS, students["llama"]]
    with forks.start(command, stdout=PIPE, text=True, modules=forks.MODELS) as engine:
        assert engine.stdout is not None and engine.stdout.readline() == "ready\n"
        (worker,) = workers_of(engine.pid)
        engine.kill()
    wait_for(lambda: not alive(worker))


def workers_of(parent: int) -> list[int]:
    """Return the numbers of the scoring processes that a process has started and not collected."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            is_child = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and b"recycledb.scoring.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until something is true; fail where it never is."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Say whether a process runs; one that ended and was not collected (its parent is gone) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- memory

# Over the weights, for a vocabulary of 150,000 and texts of 2,048 tokens. All logits of one such text in float32 alone
# would be 1.2 GB, and their log-softmax as much again.
PEAK_BYTES_OVER_WEIGHTS = 640 * 2**20

_MEASURE = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from recycledb.scoring.packs import Work
from recycledb.scoring.kernels import choose
from recycledb.scoring.network import split
from tiny_students import config, transformers
shape = config("llama", 150_000)
shape.max_position_embeddings = 2048
network = split(transformers.AutoModelForCausalLM.from_config(shape))
kernel = choose(network, 2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = np.random.default_rng(0).integers(0, 150_000, 2048).astype(np.int32)
with torch.inference_mode():
    kernel.outputs([Work("a", ids, 1)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
def test_memory_stays_bounded_for_a_large_vocabulary() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = forks.run([sys.executable, "-c", _MEASURE], env=environment, modules=forks.MODELS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < PEAK_BYTES_OVER_WEIGHTS


# ---------------------------------------------------------------- clear errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"prompt": "llama3"}, "unknown prompt template 'llama3'"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 600}, r"has 512 positions: set max_length = 512"),
    ],
)
def test_wrong_options_are_one_clear_error(students: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentError, match=message):
        load(students["gpt2"], **options)


def test_a_missing_gpu_is_one_clear_error(students: dict[str, Path]) -> None:
    with pytest.raises(StudentError, match="device 'cuda:99' was asked for, but"):
        load(students["gpt2"], device="cuda:99")


def test_spreading_over_gpus_says_what_it_needs(students: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as where it is not installed
    with pytest.raises(StudentError, match=r"needs accelerate: pip install 'recycledb\[sharded\]'"):
        load(students["llama"], sharded=True)


def test_a_folder_without_a_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="has no tokenizer"):
        load(tmp_path)


def test_a_tokenizer_of_another_model_is_one_clear_error(students: dict[str, Path], tmp_path: Path) -> None:
    mixed = save_student(tmp_path / "mixed", "llama")
    transformers.AutoModelForCausalLM.from_config(config("llama", 50)).save_pretrained(mixed)
    with pytest.raises(StudentError, match="do not belong together"):
        load(mixed)

"""Readouts, vectors and the measures derived from them, against naive loops on real tiny models of six architectures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from late import Encoder, Engine, torch
from scored_stores import add_students, origin_of, student_id
from stores import add_samples, loss_row
from tiny_students import ARCHITECTURES, SAMPLES, save_encoder, save_student, transformers

from recycledb import methods
from recycledb.methods import DIGITS, Facts, Readout, Vector
from recycledb.methods.embedding import PARTS, POOLINGS
from recycledb.methods.expected import EXPECTED, SCORERS
from recycledb.methods.ifd import Stat
from recycledb.methods.selectit import SELECTIT, token_score
from recycledb.schema import LossStatus, Texts
from recycledb.scoring.requests import Request, Result
from recycledb.store import Store

MAX_LENGTH = 256
SHORT = [texts for texts in SAMPLES if len(texts.instruction + texts.input + texts.output) < 200]
PROMPTS = ["Rate from 1 to 5 how well the answer fits.", "Rate from 1 to 5 how well the text is written, {please}."]
VECTORS = [*(Vector(pooling, "answer", PARTS["answer"]) for pooling in POOLINGS), Vector("mean", "row", PARTS["row"])]
MEASURES_OF_LOSSES = {
    "ifd": ("A_condition", "A_direct"),
    "rifd": ("Q_condition", "Q_direct"),
    "ppl": ("A_condition", None),
}
[EXPECTED_MEASURE], [SELECTIT_MEASURE] = EXPECTED.measures, SELECTIT.measures


def options(measure: methods.StudentMeasure, **given: Any) -> dict[str, Any]:
    defaults = {
        key: value.text if isinstance(value, methods.TextFile) else value for key, value in measure.options.items()
    }
    return defaults | given


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Any, Any]]:
    """An engine, and the same model and tokenizer for the naive loop."""
    folder = save_student(tmp_path_factory.mktemp("student") / request.param, request.param)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with Engine.load(str(folder), max_length=MAX_LENGTH, device="cpu", workers=0) as engine:
        yield engine, model, transformers.AutoTokenizer.from_pretrained(folder)


def results(engine: Engine, requests: Sequence[Request]) -> Mapping[tuple[Any, str], Result]:
    found = {(result.key, result.stat): result for results in engine.score(requests) for result in results}
    assert len(found) == sum(len(each.stats) + len(each.readouts) + len(each.vectors) for each in requests)
    return found


@pytest.mark.default_cases("llama")
def test_measures_agree_with_the_naive_loop(loaded: tuple[Engine, Any, Any]) -> None:
    """SelectIT, Self-J with and without a reference, DEITA's two, and vectors of three poolings, in one run beside the losses."""
    engine, model, tokenizer = loaded
    selectit = options(SELECTIT_MEASURE, prompts="\n".join(PROMPTS))
    judges = {
        "selfj": options(EXPECTED_MEASURE),
        "selfj_reference": options(EXPECTED_MEASURE, reference="origin"),
        **{
            name: options(EXPECTED_MEASURE, prompts=SCORERS[name], scale=[1, 6])
            for name in ("deita_quality", "deita_complexity")
        },
    }
    asked = {
        "selectit": SELECTIT_MEASURE.readouts(selectit),
        **{name: EXPECTED_MEASURE.readouts(chosen) for name, chosen in judges.items()},
    }
    readouts = tuple(readout for each in asked.values() for readout in each)
    found = results(
        engine,
        [Request(i, texts, ("A_condition",), readouts, tuple(VECTORS), "a reference") for i, texts in enumerate(SHORT)],
    )
    n_ok = 0
    for i, texts in enumerate(SHORT):
        facts = {
            name: Facts({}, {each.name: logs_of(found[i, each.prompt_id]) for each in those}, texts)
            for name, those in asked.items()
        }
        question = f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction
        if None not in facts["selectit"].readouts.values():
            expected = naive.selectit(model, tokenizer, texts, PROMPTS)
            assert SELECTIT_MEASURE.value(facts["selectit"], selectit) == pytest.approx(expected, abs=1e-4)
            n_ok += 1
        for name, chosen in judges.items():
            [readout] = asked[name]
            text = readout.wording.replace("{question}", question).replace("{answer}", texts.output)
            text = text.replace("{reference}", "a reference")
            if len(tokenizer.encode(text)) > MAX_LENGTH:
                assert found[i, readout.prompt_id].status is LossStatus.TOO_LONG
                continue
            expected = naive.expected(model, tokenizer, text, chosen["scale"])
            assert EXPECTED_MEASURE.value(facts[name], chosen) == pytest.approx(expected, abs=1e-4)
        for vector in VECTORS:
            result = found[i, vector.key]
            text = texts.output if vector.part == "answer" else f"{texts.instruction}\n{texts.input}\n{texts.output}"
            if not text:
                assert result.status is LossStatus.EMPTY and result.output is None
                continue
            assert result.output is not None
            truth = naive.vector(model, tokenizer, text, vector.pooling, MAX_LENGTH)
            assert np.allclose(result.output[:-1], truth.numpy(), atol=1e-4)
            assert result.n_tokens == len(tokenizer.encode(text))
    assert n_ok >= 5


@pytest.mark.default_cases("llama")
def test_measures_of_losses_agree_with_the_naive_loop(loaded: tuple[Engine, Any, Any], sqlite_url: str) -> None:
    """ifd, rifd, ppl and length as the view `measures` has them, from the engine's losses."""
    engine, model, tokenizer = loaded
    samples = [texts for texts in SHORT if texts.instruction]
    with Store.open(sqlite_url) as store:
        origins = dict(zip((origin_of(store, key) for key in add_samples(store, samples)), samples, strict=True))
        add_students(store, "s")
        found = results(engine, [Request(key, texts, tuple(Stat)) for key, texts in origins.items()])
        with store.write() as conn:
            store.insert(conn, [
                loss_row(student_id("s"), variant, stat, result.loss_sum, result.n_tokens, status=result.status.value)
                for (variant, stat), result in found.items()
            ])  # fmt: skip
        values = {(row.variant_id, row.measure): row.value for row in store.rows("SELECT * FROM measures")}
    numbers = 0
    for variant, texts in origins.items():
        sums = naive.score(model, tokenizer, engine.tokeniser.prompt, MAX_LENGTH, texts)
        losses = {stat: None if each.loss_sum is None else each.loss_sum / each.n_tokens for stat, each in sums.items()}
        for measure, (upper, lower) in MEASURES_OF_LOSSES.items():
            above, below = losses[upper], losses[lower] if lower else 0.0
            expected = None if above is None or below is None else math.exp(above - below)
            assert values[variant, measure] == (expected if expected is None else pytest.approx(expected, rel=1e-4))
            numbers += expected is not None
        length = None if found[variant, "A_direct"].status is LossStatus.TOO_SHORT else sums["A_direct"].n_tokens
        assert values[variant, "length"] == length
    assert numbers >= 15


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_agrees_with_the_naive_loop(tmp_path: Path, pooling: str) -> None:
    """Each text alone, without padding; a long one is cut."""
    folder = save_encoder(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vector = Vector(pooling, "row", PARTS["row"])
    with Encoder.load(str(folder), revision=None, max_length=64, device="cpu") as encoder:
        requests = [Request(i, texts, (), vectors=(vector,)) for i, texts in enumerate(SAMPLES)]
        found = {each.key: each for batch in encoder.score(requests) for each in batch}
    for i, texts in enumerate(SAMPLES):
        truth = naive.vector(model, tokenizer, f"{texts.instruction}\n{texts.input}\n{texts.output}", pooling, 64)
        output = found[i].output
        assert output is not None and np.allclose(output[:-1], truth.numpy(), atol=1e-4)
    assert any(result.truncated for result in found.values())


def logs_of(result: Result) -> list[float] | None:
    return None if result.output is None else result.output.tolist()


def test_a_prompt_that_is_too_long_is_not_cut(loaded: tuple[Engine, Any, Any]) -> None:
    """Its question is at the end; the vector of a long text is that of its beginning."""
    engine, _, _ = loaded
    long = Texts("a", "", "The quick brown fox jumps over the lazy dog. " * 90)
    readout = Readout("r", "{answer}\nThe answer is: \n", DIGITS)
    found = results(engine, [Request(0, long, (), (readout,), (VECTORS[0],))])
    assert found[0, readout.prompt_id].status is LossStatus.TOO_LONG and found[0, readout.prompt_id].output is None
    vector = found[0, VECTORS[0].key]
    assert vector.truncated and vector.n_tokens == MAX_LENGTH and vector.status is LossStatus.OK


def test_a_readout_computes_its_prompt_once(loaded: tuple[Engine, Any, Any]) -> None:
    """Ten choices cost no token, and the hidden states of A_condition give a vector for nothing."""
    engine, _, _ = loaded
    readout = Readout("r", "{question}\n{answer}\nThe answer is: \n", DIGITS)
    tokens = []
    for requests in (
        [Request(i, texts, (), (readout,)) for i, texts in enumerate(SHORT[:4])],
        [Request(i, texts, ("A_condition",)) for i, texts in enumerate(SHORT[:4])],
        [Request(i, texts, ("A_condition",), (), (whole(engine),)) for i, texts in enumerate(SHORT[:4])],
    ):
        counts: list[int] = []
        list(engine.score(requests, progress=lambda each, counts=counts: counts.append(each.tokens)))  # type: ignore[misc]
        tokens.append(counts[-1])
    lengths = [len(engine.tokeniser.tokenizer.encode(readout.prompt(texts))) for texts in SHORT[:4]]
    assert tokens[0] <= sum(lengths)
    assert tokens[1] == tokens[2]


def whole(engine: Engine) -> Vector:
    from recycledb.methods.ifd import forward_prompt

    return Vector("mean", "whole", lambda template, texts: forward_prompt(template, texts) + texts.output)


# -- the functions alone


def test_token_scores_by_hand() -> None:
    """The bounds of the published form, ties to the lowest digit, and no underflow."""
    certain = token_score([0.0, -1e4, -1e4, -1e4, -1e4], 1, plain=False)
    assert certain == pytest.approx((5 * math.e / (math.e + 4) - 1) / 4)
    assert token_score([-1e4] * 4 + [0.0], 1, plain=False) == pytest.approx(5 * (math.e - 1) / (math.e + 4))
    assert token_score([-3.0] * 5, 1, plain=False) == 0.0
    assert token_score([-1.0, -1.0, -9.0, -9.0, -9.0], 1, plain=True) < 1  # base 1, not 2
    assert token_score([-1e4 + 1, -1e4, -1e4, -1e4, -1e4], 1, plain=True) > 0


@pytest.mark.parametrize(
    ("measure", "given", "message"),
    [
        (SELECTIT_MEASURE, {"scale": [5, 1]}, "scale"),
        (SELECTIT_MEASURE, {"scale": [1, 10]}, "scale"),
        (SELECTIT_MEASURE, {"prompts": "\n\n"}, "no prompt"),
        (SELECTIT_MEASURE, {"prompts": "Rate {answer}"}, "{answer}"),
        (SELECTIT_MEASURE, {"normalise": "none"}, "normalise"),
        (SELECTIT_MEASURE, {"alpha": -1.0}, "alpha"),
        (EXPECTED_MEASURE, {"prompts": "Rate it"}, "neither"),
        (EXPECTED_MEASURE, {"prompts": "{answer} {reference}"}, "reference"),
        (EXPECTED_MEASURE, {"prompts": "{answer}", "reference": "origin"}, "no {reference}"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    measure: methods.StudentMeasure, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        measure.check(options(measure, **given))

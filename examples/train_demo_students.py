"""Train the demo's two students on CPython's own documentation, and say what they have learned.

    python examples/train_demo_students.py train       # writes recycledb/demo/students/{small,large}
    python examples/train_demo_students.py evaluate    # their IFD and rIFD on the demo's samples, one text at a time

Invariant: everything a student has read comes from the running Python itself: `pydoc_data.topics` and the standard
library's docstrings (PSF licence). Another Python version has other texts and so gives other weights; the seeds are
fixed. The script refuses to train on the demo's samples: they are what the students are measured on.

The texts are arranged as tasks in the very templates that the metric uses, so that a template is no surprise in itself
and what an answer gains from its instruction is what the instruction says. A share of them stands alone, as in the
direct statistics.
"""

import argparse
import ast
import json
import math
import random
import re
import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
import transformers as hugging_face
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recycledb.formats import is_placeholder
from recycledb.methods.reflection import Step, extract
from recycledb.schema import Texts

transformers: Any = hugging_face  # its constructors are only partly typed

DEMO = Path(__file__).parents[1] / "recycledb" / "demo"
KINDS = ("origin", "reflect_instruction", "reflect_response", "reflect_both")
VOCABULARY = 2048
LONGEST = 1024  # tokens of a training text
BATCH_TOKENS = 3072
WARM_UP = 40  # steps
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
REVERSE = (
    "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
    "{output}\nGenerate the instruction for the above response."
)
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}


@dataclass(frozen=True)
class Size:
    """The shape of a student and how it is trained."""

    width: int
    layers: int
    heads: int
    inner: int
    steps: int
    learning_rate: float


SIZES = {
    "small": Size(width=96, layers=3, heads=4, inner=256, steps=1100, learning_rate=5e-3),
    "large": Size(width=192, layers=4, heads=6, inner=512, steps=700, learning_rate=3e-3),
}


@dataclass(frozen=True)
class Piece:
    """A text of CPython's with what it is about, as a question would name it."""

    about: str
    text: str


@dataclass(frozen=True)
class Task:
    """One training text in two halves; `context` is empty for a text that stands alone."""

    context: str
    target: str


# The texts -----------------------------------------------------------------------------------------------------------


def unwrap(text: str) -> str:
    """Join the hard-wrapped lines of prose paragraphs, and leave indented blocks and tables as they are."""
    blocks = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(b if re.search(r"^\s|^[+|*=-]", b, re.MULTILINE) else b.replace("\n", " ") for b in blocks)


def in_parts(text: str, longest: int) -> Iterator[str]:
    """Yield `text` in runs of whole paragraphs of at most about `longest` characters."""
    part = ""
    for block in text.split("\n\n"):
        if part and len(part) + len(block) > longest:
            yield part
            part = ""
        part = f"{part}\n\n{block}" if part else block[:longest]
    if part:
        yield part


def read_topics() -> Iterator[Piece]:
    """Yield the topics of `help()`, part by part."""
    for name, text in sorted(topics.items()):
        title, _, body = text.partition("\n")
        about = title.replace('"', "") or name
        whole = unwrap(body.lstrip("*\n"))
        # Long parts too: a student that has never seen a text of this length finds the end of a long answer strange.
        for part in (*in_parts(whole, 1100), *in_parts(whole, 2600)):
            yield Piece(about, part)


def docstrings(module: str, tree: ast.Module) -> Iterator[Piece]:
    """Yield the docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module):
            about = f"the module {module}"
        elif isinstance(node, ast.ClassDef):
            about = f"the class {node.name} in the module {module}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = ", ".join(a.arg for a in node.args.args if a.arg not in ("self", "cls"))
            about = f"the function {node.name}({arguments}) in the module {module}"
        else:
            continue
        for part in in_parts(unwrap(ast.get_docstring(node) or ""), 1300):
            yield Piece(about, part)


def read_docstrings() -> Iterator[Piece]:
    """Yield the standard library's docstrings in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not LEFT_OUT.intersection(parts):
            yield from docstrings(".".join(parts), ast.parse(path.read_bytes()))


def read_pieces() -> list[Piece]:
    """Return every text that is long enough to be an answer, each once, in a fixed order."""
    pieces = {p.text: p for p in (*read_topics(), *read_docstrings()) if len(p.text) > 40}
    return list(pieces.values())


# The tasks -----------------------------------------------------------------------------------------------------------


def ask(instruction: str, given: str = "") -> str:
    """Return the question in the vicuna template, up to where the answer begins."""
    with_input = f"{instruction}\nInput:\n{given}" if given else instruction
    return f"{SYSTEM}USER: {with_input} ASSISTANT:"


class Words:
    """Knows which words are rare, and so what a text is about."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.counts = Counter(w.lower() for p in pieces for w in re.findall(r"[A-Za-z]{4,}", p.text))

    def keys(self, text: str, rng: random.Random, most: int = 5) -> list[str]:
        """Return a few of the rarer words of `text`, in its order."""
        words = list(dict.fromkeys(re.findall(r"[A-Za-z_]{4,}", text)))
        rare = sorted(words, key=lambda w: self.counts[w.lower()])[: max(3, len(words) // 4)]
        chosen = set(rng.sample(rare, min(len(rare), rng.randint(2, most))))
        return [w for w in words if w in chosen]


def question(piece: Piece, words: Words, rng: random.Random) -> str:
    """Return an instruction that `piece` answers; every third is made of two."""
    first = one_question(piece, words, rng)
    return f"{first} {one_question(piece, words, rng)}" if rng.random() < 0.33 else first


def one_question(piece: Piece, words: Words, rng: random.Random) -> str:
    """Return an instruction by what `piece` is about, by its key words, or by one of its sentences."""
    about, keys = piece.about, ", ".join(words.keys(piece.text, rng))
    length = len(piece.text.split())
    said = sentences(piece.text)
    forms = [
        f"Explain {about}.",
        f"What is {about}?",
        f"What does {about} do, and how is it used?",
        f"Describe {about} in about {length} words.",
        f"Explain {about}. Mention {keys}.",
        f"Write a short text about {keys}.",
        f"Write about {length} words on {keys}, and explain how they are related.",
        f"You are writing the documentation of Python. Explain {about} to a beginner, covering {keys}.",
        f"How are {keys} related? Give a detailed answer.",
        f"Explain {about}, and say what it has to do with {keys}.",
        f"Name the main points about {keys}.",
        *(f"Explain why this is so and give the details: {s}" for s in rng.sample(said, min(2, len(said)))),
    ]
    return rng.choice(forms)


def sentences(text: str) -> list[str]:
    """Return the prose sentences of `text`."""
    return [s for s in re.split(r"(?<=[.:!?])\s+", text) if 20 < len(s) < 240 and "\n" not in s]


def answer(piece: Piece, words: Words, rng: random.Random) -> Task:
    """Make a question with its answer."""
    return Task(ask(question(piece, words, rng)), piece.text)


def reverse(piece: Piece, words: Words, rng: random.Random) -> Task:
    """Make an answer from which its instruction is to be guessed."""
    return Task(ask(REVERSE.format(output=piece.text)), question(piece, words, rng))


def with_input(piece: Piece, words: Words, rng: random.Random) -> Task:
    """Make a task about a given text: find a sentence, list its words, continue it, or repeat it."""
    parts = sentences(piece.text)
    if len(parts) < 3:
        return Task(ask("Repeat the text.", piece.text[:400]), piece.text[:400])
    keys = words.keys(piece.text, rng)
    start = rng.randrange(len(parts))
    shown = " ".join(parts[max(0, start - 3) : start + 3])
    chosen = parts[start]
    found = words.keys(chosen, rng, 2) or keys
    forms = [
        Task(ask(f"Find the sentence that mentions {' and '.join(found)}.", shown), chosen),
        Task(ask("List the important words of this text.", piece.text), "\n".join(f"- {k}" for k in keys)),
        Task(ask("Write this text as a list of points.", shown), "\n".join(f"- {s}" for s in sentences(shown))),
        Task(ask("Continue this text.", " ".join(parts[:start] or parts[:1])), " ".join(parts[max(1, start) :])),
        Task(ask(f"What does this text say about {found[0]}?", shown), chosen),
    ]
    return rng.choice([t for t in forms if t.target])


def alone(piece: Piece, words: Words, rng: random.Random) -> Task:
    """Make a text, or rarely a question, that stands alone."""
    return Task("", question(piece, words, rng) if rng.random() < 0.08 else piece.text)


MIX: list[tuple[Callable[[Piece, Words, random.Random], Task], float]] = [
    (answer, 0.38),
    (with_input, 0.15),
    (reverse, 0.23),
    (alone, 0.24),
]


def make_tasks(pieces: list[Piece], passes: int, seed: int) -> Iterator[Task]:
    """Yield `passes` tasks made of each piece, every pass in a new order and with new kinds of task."""
    rng = random.Random(seed)
    words = Words(pieces)
    makers, weights = zip(*MIX, strict=True)
    for _ in range(passes):
        for piece in rng.sample(pieces, len(pieces)):
            yield rng.choices(makers, weights)[0](piece, words, rng)


# Training ------------------------------------------------------------------------------------------------------------


def train_tokenizer(pieces: list[Piece]) -> Any:
    """Train a byte-level BPE on the texts and the templates; like Llama's it puts BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([p.text for p in pieces] + [ask(REVERSE)] * 200, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def make_model(size: Size, tokenizer: Any) -> Any:
    """Return an untrained Llama of this size with tied embeddings."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.04,
    )
    return transformers.LlamaForCausalLM(config)


def encode(tokenizer: Any, tasks: list[Task]) -> list[list[int]]:
    """Return the tokens of each task, with EOS at the end where it was not cut."""
    ids: list[list[int]] = tokenizer([t.context + t.target for t in tasks])["input_ids"]
    return [[*i, tokenizer.eos_token_id][:LONGEST] for i in ids]


def batches(rows: list[list[int]], rng: random.Random) -> Iterator[torch.Tensor]:
    """Yield batches of rows of like length, padded with −100, of about `BATCH_TOKENS` tokens: (B, T)."""
    group: list[torch.Tensor] = []
    groups = []
    for row in sorted(rows, key=lambda r: (len(r), r)):
        if group and (len(group) + 1) * len(row) > BATCH_TOKENS:
            groups.append(group)
            group = []
        group.append(torch.tensor(row))
    rng.shuffle(groups)
    for g in groups:
        yield torch.nn.utils.rnn.pad_sequence(g, batch_first=True, padding_value=-100)


def endless_batches(tokenizer: Any, pieces: list[Piece], seed: int) -> Iterator[torch.Tensor]:
    """Yield training batches without end; each pass over the pieces makes new tasks of them."""
    rng = random.Random(seed)
    while True:
        tasks = list(make_tasks(pieces, 1, rng.randrange(2**32)))
        yield from batches(encode(tokenizer, tasks), rng)


def learning_rate(step: int, size: Size) -> float:
    """Return the learning rate: a linear warm-up, then a cosine down to a twentieth."""
    if step < WARM_UP:
        return size.learning_rate * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, size.steps - WARM_UP)
    return size.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(name: str, tokenizer: Any, pieces: list[Piece]) -> Any:
    """Train one student, printing its loss on the way."""
    size = SIZES[name]
    torch.manual_seed(20261120)
    model = make_model(size, tokenizer).train()
    print(f"{name}: {model.num_parameters():,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    started, losses = time.perf_counter(), []
    for step, batch in zip(range(size.steps), endless_batches(tokenizer, pieces, 7), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, size)
        with torch.autocast("cpu", torch.bfloat16):  # a third faster, and the weights are kept in bfloat16 anyway
            loss = model(input_ids=batch.clamp(min=0), labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            print(f"{name} step {step + 1}: loss {statistics.mean(losses[-50:]):.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def train_all(names: list[str], folder: Path) -> None:
    """Train the tokenizer and the named students, and write them in bfloat16."""
    pieces = read_pieces()
    print(f"{len(pieces):,} texts, {sum(len(p.text) for p in pieces):,} characters, Python {sys.version.split()[0]}")
    tokenizer = train_tokenizer(pieces)
    for name in names:
        model = train(name, tokenizer, pieces)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder / name)


# Evaluation: IFD and rIFD as published (arXiv:2402.10110), without any of the library's scoring -----------------------


def read_variants(folder: Path = DEMO) -> list[dict[str, Texts]]:
    """Return, for each distinct sample, its scored variants by kind, as the recorded replies make them."""
    replies: dict[tuple[str, Texts], str] = {}
    for line in (folder / "replies.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        replies[row["step"], Texts(**row["reads"])] = row["text"]
    rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    samples = [Texts(r["instruction"], "" if is_placeholder(r["input"]) else r["input"], r["output"]) for r in rows]

    def ask_teacher(step: Step, read: Texts | None) -> Texts | None:
        return extract(step, replies[step, read], read).texts if read else None

    found = []
    for origin in dict.fromkeys(samples):
        short = ask_teacher(Step.COMPRESS, origin) if origin.input else origin
        harder = ask_teacher(Step.REFLECT_INSTRUCTION, short)
        variants = {
            "origin": origin,
            "reflect_instruction": harder,
            "reflect_response": ask_teacher(Step.REFLECT_RESPONSE, origin),
            "reflect_both": ask_teacher(Step.REFLECT_RESPONSE, harder),
        }
        found.append({kind: texts for kind, texts in variants.items() if texts})
    return found


class Score(NamedTuple):
    """What one student says about one variant."""

    ifd: float  # by perplexity, as is rifd
    rifd: float
    loss: float  # of the answer by itself


@dataclass(frozen=True)
class Scorer:
    """A student and its tokenizer, asked about one text at a time."""

    model: Any
    tokenizer: Any
    max_length: int

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, BOS in front."""
        return list(self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"])

    def loss(self, text: str, start: int, longest: int) -> float:
        """Return the mean negative log-likelihood of the tokens of `text` from `start` on, each given all before it."""
        ids = torch.tensor([self.encode(text)[:longest]])
        with torch.inference_mode():
            log_likelihoods = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        each = log_likelihoods.gather(1, ids[0, 1:, None])[:, 0]
        return -float(each[start - 1 :].mean())

    def losses(self, prompt: str, target: str) -> tuple[float, float]:
        """Return the loss of the target by itself and after the prompt."""
        n = len(self.encode(prompt))
        direct = self.loss(target, 1, self.max_length - n + 1)
        return direct, self.loss(prompt + target, n, self.max_length)

    def score(self, texts: Texts) -> Score:
        """Score one variant."""
        a_direct, a_condition = self.losses(ask(texts.instruction, texts.input), texts.output)
        backward = ask(REVERSE.format(output=texts.output))
        q_direct, q_condition = self.losses(backward, texts.instruction + texts.input)
        return Score(math.exp(a_condition - a_direct), math.exp(q_condition - q_direct), a_direct)


def load_scorer(folder: Path, max_length: int = 2048) -> Scorer:
    """Return the student in `folder`, in float32."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return Scorer(
        model.eval(), transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True), max_length
    )


def pick(scores: dict[str, Score]) -> str | None:
    """Return the kind that Selective Reflection-Tuning takes of a sample's variants, None where it takes none."""
    chosen = "origin"
    if "reflect_instruction" in scores and scores["reflect_instruction"].ifd > scores["origin"].ifd:
        chosen = "reflect_instruction"
    better = {"origin": "reflect_response", "reflect_instruction": "reflect_both"}[chosen]
    if better in scores and scores[better].rifd < scores[chosen].rifd:
        chosen = better
    return chosen if scores[chosen].ifd < 1 and scores[chosen].rifd < 1 else None


@dataclass(frozen=True)
class Figures:
    """What a student makes of the samples: for each, the scores of its variants by kind."""

    samples: list[dict[str, Score]]

    def scores(self, kind: str | None = None) -> list[Score]:
        """Return the scores of one kind of variant, or of all."""
        return [score for scores in self.samples for k, score in scores.items() if kind in (k, None)]

    def median_ifd(self, kind: str | None = None) -> float:
        """Return the median IFD."""
        return statistics.median(s.ifd for s in self.scores(kind))

    def rifd_below_1(self, kind: str | None = None) -> float:
        """Return the share of variants whose rIFD is below 1."""
        return statistics.mean(s.rifd < 1 for s in self.scores(kind))

    def mean_loss(self) -> float:
        """Return the mean loss of the answers by themselves."""
        return statistics.mean(s.loss for s in self.scores())

    def picks(self) -> list[str | None]:
        """Return what is picked of each sample."""
        return [pick(scores) for scores in self.samples]


def evaluate(folder: Path, variants: list[dict[str, Texts]]) -> Figures:
    """Return the figures of the student in `folder`."""
    scorer = load_scorer(folder)
    return Figures([{kind: scorer.score(texts) for kind, texts in sample.items()} for sample in variants])


def report(folder: Path) -> None:
    """Print the figures of all students and where they disagree."""
    variants, picks = read_variants(), []
    for name in SIZES:
        figures = evaluate(folder / name, variants)
        picks.append(figures.picks())
        print(f"{name}: mean loss of an answer by itself {figures.mean_loss():.3f}")
        for kind in (*KINDS, None):
            ifd, below = figures.median_ifd(kind), figures.rifd_below_1(kind)
            low, middle, high = statistics.quantiles(s.rifd for s in figures.scores(kind))
            below_ifd = statistics.mean(s.ifd < 1 for s in figures.scores(kind))
            print(f"  {kind or 'all':19} IFD median {ifd:.3f}, {below_ifd:4.0%} below 1;", end=" ")
            print(f"rIFD median {middle:.3f} ({low:.3f} to {high:.3f}), {below:4.0%} below 1")
        print(f"  selective picks {dict(Counter(str(p) for p in picks[-1]))}")
    differ = sum(len(set(each)) > 1 for each in zip(*picks, strict=True))
    print(f"the students differ on {differ} of {len(variants)} samples")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["train", "evaluate"])
    parser.add_argument("--folder", type=Path, default=DEMO / "students")
    parser.add_argument("--student", choices=SIZES, action="append", help="train only this one")
    options = parser.parse_args()
    # Scoring one short text at a time gains nothing by a second thread, and loses much where the machine is busy.
    torch.set_num_threads(2 if options.what == "train" else 1)
    if options.what == "train":
        train_all(options.student or list(SIZES), options.folder)
    else:
        report(options.folder)


if __name__ == "__main__":
    main()

"""Find samples whose questions are nearly the same: MinHash proposes pairs, and the sets of shingles themselves decide.

A question is the instruction, the input and the earlier turns; a system prompt, which many samples share, does not count, and neither
do answers. Its text is normalised (NFKC, lower case, no white space, no punctuation) and taken as the set of its shingles, which are
runs of neighbouring words; the similarity of two questions is the Jaccard similarity of their sets.

Invariant: every pair that is stored has the exact similarity of its sets, at least the threshold; which pairs are found depends on the
texts and parameters only, not on the order of the samples. A sample whose set is that of another is paired with the one with the
smallest id only, so that a thousand equal questions are a thousand pairs and not half a million.
MinHash may overlook a pair: at the threshold itself one in a thousand at most, above it fewer.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recycledb.errors import SelectionError
from recycledb.schema import canonical_json
from recycledb.selection import identities
from recycledb.store import Store
from recycledb.store import duplicates as stored
from recycledb.store.duplicates import Asked, Pair

METHOD, VERSION = "minhash", 1
THRESHOLD, WORDS, SEED = 0.8, 2, 0
PERMUTATIONS = 128
OVERLOOKED = 0.001  # the share of pairs at the threshold that may be overlooked
MOST_PAIRS = 5_000_000

# Words; in scripts without spaces (Han, kana, Thai, Lao, Khmer, Burmese) each character; operators, which make a difference in a formula.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|[^\w\s.,;:!?'\"“”‘’`´()\[\]{{}}。、「」『』«»]")

Shingles = frozenset[int]
Counted = Callable[[str, int, int], None]  # what is being done, how much of it is done, the total


@dataclass(frozen=True)
class Duplicates:
    """The result of a search for near-duplicates."""

    threshold: float
    words: int
    seed: int
    dataset: str | None
    samples: int  # that were searched
    pairs: int  # in the store with these parameters
    new: int  # of which this search has added
    groups: int
    in_groups: int  # samples
    largest: int  # samples in the largest group
    searched_before: bool  # the same samples with the same parameters: nothing was done
    duplicate_search_id: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def find_duplicates(
    store: Store,
    *,
    threshold: float = THRESHOLD,
    words: int = WORDS,
    seed: int = SEED,
    dataset: str | None = None,
    progress: Counted = lambda what, done, total: None,
) -> Duplicates:
    """Find the near-duplicates among the samples in datasets (in `dataset`), store them and put this search in use.

    `words` is the length of a shingle; `progress` is called with what is being done, how much of it is done, and the total.
    """
    if not 0.1 <= threshold <= 1:
        raise SelectionError(f"the threshold is {threshold:g}; give a similarity from 0.1 to 1, such as 0.8")
    if words < 1:
        raise SelectionError(f"words is {words}; give the number of words in a shingle, 1 or more")
    if dataset is not None:
        identities.find_dataset(store, dataset)
    parameters: dict[str, object] = {
        "threshold": float(threshold),
        "words": words,
        "seed": seed,
        "permutations": PERMUTATIONS,
    }
    search = stored.search_id_of(METHOD, VERSION, canonical_json(parameters))
    samples = stored.sample_ids(store, dataset)
    if not samples:
        raise SelectionError("there are no samples to compare; add some: `recycledb add FILE`")
    before = stored.is_searched(store, search, samples)
    new = 0
    if before:
        stored.use_search(store, search)
    else:
        asked = stored.questions(store, dataset)
        found = near_duplicates(asked, threshold=threshold, words=words, seed=seed, progress=progress)
        new = stored.add_pairs(store, METHOD, VERSION, parameters, [each.sample_id for each in asked], found)
        samples = [each.sample_id for each in asked]
    pairs = stored.pairs_of(store, search)
    groups = stored.groups_of(pairs)
    sizes = [len(members) for _, members in stored.members_of(groups)]
    return Duplicates(
        float(threshold), words, seed, dataset, len(samples), len(pairs), new,
        len(sizes), sum(sizes), max(sizes, default=0), before, search,
    )  # fmt: skip


def near_duplicates(
    asked: Sequence[Asked],
    *,
    threshold: float = THRESHOLD,
    words: int = WORDS,
    seed: int = SEED,
    progress: Counted = lambda what, done, total: None,
) -> list[Pair]:
    """Return the pairs of questions that are at least as similar as `threshold`, in order."""
    first: dict[Shingles, str] = {}  # the smallest id with this set
    pairs = []
    for number, each in enumerate(sorted(asked)):
        _now_and_then(progress, "questions read", number, len(asked))
        shingles = shingles_of(question_text(each), words)
        if not shingles:
            continue  # nothing but punctuation: no similarity
        other = first.setdefault(shingles, each.sample_id)
        if other != each.sample_id:
            pairs.append(Pair(other, each.sample_id, 1.0))
    sets = list(first)
    for number, others in enumerate(_proposed(sets, threshold, seed, progress)):
        for other_number in others:
            similarity = _jaccard(sets[number], sets[other_number])
            if similarity >= threshold:
                pairs.append(Pair(first[sets[other_number]], first[sets[number]], similarity))
        if len(pairs) > MOST_PAIRS:
            raise SelectionError(f"there are more than {MOST_PAIRS} pairs at the threshold {threshold:g}: raise it")
    return sorted(pairs)


def _proposed(sets: Sequence[Shingles], threshold: float, seed: int, progress: Counted) -> Iterator[set[int]]:
    """Yield for each set the numbers of the earlier ones that agree with it in a whole band of their MinHash signatures."""
    import numpy
    from datasketch import MinHash  # imports scipy, which takes a second

    count, size = bands(threshold)
    signatures = numpy.empty((len(sets), PERMUTATIONS), dtype=numpy.uint32)  # (sets, permutations)
    sketches = MinHash.generator(sets, num_perm=PERMUTATIONS, seed=seed + 1, scheme="affine32", hashfunc=_low)
    for number, sketch in enumerate(sketches):
        signatures[number] = sketch.hashvalues
        _now_and_then(progress, "signatures computed", number, len(sets))
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(count)]
    for number in range(len(sets)):
        _now_and_then(progress, "questions compared", number, len(sets))
        whole = signatures[number].tobytes()
        others: set[int] = set()
        for band, bucket in enumerate(buckets):
            key = whole[band * size * 4 : (band + 1) * size * 4]
            before = bucket.setdefault(key, [])
            others.update(before)
            before.append(number)
        yield others
    progress("questions compared", len(sets), len(sets))


def _now_and_then(progress: Counted, what: str, done: int, total: int) -> None:
    if done % 1_000 == 0:
        progress(what, done, total)


def _low(shingle: int) -> int:
    return shingle & 0xFFFF_FFFF


def question_text(asked: Asked) -> str:
    """Return the text that is compared: earlier turns without the system prompt, the instruction, the input."""
    turns = json.loads(asked.context) if asked.context else []
    said = [str(turn.get("content", "")) for turn in turns if turn.get("role") != "system"]
    return "\n".join((*said, asked.instruction, asked.input))


def shingles_of(text: str, words: int) -> Shingles:
    """Return 64-bit hashes of the runs of `words` neighbouring tokens; of all tokens together if there are fewer."""
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    if not tokens:
        return frozenset()
    last = max(len(tokens) - words, 0)
    return frozenset(_hash("\x1f".join(tokens[i : i + words])) for i in range(last + 1))


def _hash(shingle: str) -> int:
    return int.from_bytes(hashlib.blake2b(shingle.encode(errors="surrogatepass"), digest_size=8).digest())


def _jaccard(a: Shingles, b: Shingles) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def bands(threshold: float) -> tuple[int, int]:
    """Return the number of bands and their size: the largest with which at most OVERLOOKED pairs at the threshold are not proposed."""
    sizes = range(PERMUTATIONS // 2, 0, -1)
    fitting = (size for size in sizes if (1 - threshold**size) ** (PERMUTATIONS // size) <= OVERLOOKED)
    size = next(fitting, 1)
    return PERMUTATIONS // size, size

"""The demo's data: samples written for this project, recorded replies, two tiny students. See README.md in this folder.

The configuration comes in two parts, so that the demo can show what the second one adds to a store.
"""

from importlib import resources
from pathlib import Path

from recycledb.errors import StoreError
from recycledb.files import make_folder, write_bytes, write_text
from recycledb.store import Store

FILE = "recycledb.toml"
CONFIGURATION = """\
# The demo: recorded teachers and two tiny students. Change it, then run `recycledb sync` again.

[store]
url = "sqlite:///recycle.db"

[teachers.recorded]
provider = "recorded"
file = "replies.jsonl"

[students.small]
model = "students/small"
max_length = 1024

[students.large]
model = "students/large"
max_length = 1024

[sync]
steps = ["compress", "reflect_instruction", "reflect_response", "score"]
teacher = "recorded"
students = ["small", "large"]
"""
FILES = ("samples.json", "replies.jsonl", "judge.jsonl", "selectit.txt")
MEASURES = """
[measures.selectit]           # each student's own rating of a sample
kinds = ["origin"]            # default: every kind that is scored
prompts = "selectit.txt"      # one rating prompt a line; default: five of ours

[measures.vectors]            # to tell similar samples from others
method = "embedding"
part = "row"
students = ["small"]          # better: a sentence encoder
kinds = ["origin"]

[teachers.judge]              # not the model that rewrites
provider = "recorded"
file = "judge.jsonl"

[measures.quality]            # a rating by a teacher, from 0 to 5
method = "rating"
teacher = "judge"
kinds = ["origin"]

[judgings.better]             # which of two answers is better, in both orders
teacher = "judge"
between = ["reflect_response", "origin"]

[augmentations.mosaic]        # Mosaic-IT: several samples in one
most = 3
max_tokens = 250

[augmentations.ruler]         # RuleR: answers that follow stated rules
rate = 0.1                    # of a tenth of the samples
"""


def lay_out(folder: Path) -> list[str]:
    """Write the configuration and copy the data into `folder`; return the names. StoreError if it has another configuration."""
    configuration = folder / FILE
    if configuration.exists() and configuration.read_text(encoding="utf-8") not in (
        CONFIGURATION,
        CONFIGURATION + MEASURES,
    ):
        raise StoreError(f"{configuration} is not the demo's configuration; give another folder: recycledb demo DIR")
    make_folder(folder)
    write_text(configuration, CONFIGURATION)
    with resources.as_file(resources.files("recycledb.demo")) as data:
        for name in FILES:
            write_bytes(folder / name, (data / name).read_bytes())
        for file in sorted((data / "students").glob("*/*")):
            copy = folder / file.relative_to(data)
            make_folder(copy.parent)
            write_bytes(copy, file.read_bytes())
    return [FILE, *FILES, "students"]


def add_measures(folder: Path) -> str:
    """Append the second part to the configuration in `folder`; return its text."""
    write_text(folder / FILE, CONFIGURATION + MEASURES)
    return MEASURES.strip()


def worth_showing(store: Store) -> str:
    """Return the sample whose reflect_both variant the two students disagree on most: an instructive one for `show`."""
    found = store.rows("""
        SELECT a.sample_id FROM scores a JOIN scores b ON b.variant_id = a.variant_id
        WHERE a.student = 'small' AND b.student = 'large' AND a.kind = 'reflect_both'
        AND a.is_current = 1 AND a.ifd_ppl IS NOT NULL AND b.ifd_ppl IS NOT NULL
        ORDER BY abs(a.ifd_ppl - b.ifd_ppl) DESC, a.sample_id LIMIT 1
    """)
    if not found:
        raise StoreError("the demo's store has no scores; run `recycledb sync` in its folder")
    return str(found[0][0])

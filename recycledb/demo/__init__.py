"""The demo's data: samples written for this project, recorded replies, two tiny students. See README.md in this folder."""

from importlib import resources
from pathlib import Path

from recycledb.errors import StoreError
from recycledb.files import make_folder, write_bytes, write_text
from recycledb.store import Store

CONFIGURATION = """\
# The demo: a recorded teacher and two tiny students. Change it, then run `recycledb sync` again.

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


def lay_out(folder: Path) -> list[str]:
    """Write the configuration and copy the data into `folder`; return the names. StoreError if it has another configuration."""
    configuration = folder / "recycledb.toml"
    if configuration.exists() and configuration.read_text(encoding="utf-8") != CONFIGURATION:
        raise StoreError(f"{configuration} is not the demo's configuration; give another folder: recycledb demo DIR")
    make_folder(folder)
    write_text(configuration, CONFIGURATION)
    with resources.as_file(resources.files("recycledb.demo")) as data:
        for name in ("samples.json", "replies.jsonl"):
            write_bytes(folder / name, (data / name).read_bytes())
        for file in sorted((data / "students").glob("*/*")):
            copy = folder / file.relative_to(data)
            make_folder(copy.parent)
            write_bytes(copy, file.read_bytes())
    return ["recycledb.toml", "samples.json", "replies.jsonl", "students"]


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

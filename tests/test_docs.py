"""The generated pages are as their sources are, and the SQL surface holds at least what was promised."""

import re
import sys
from pathlib import Path

import forks
import pytest
from conftest import clean_environment

from recycledb.store import Store

GENERATE = Path(__file__).parents[1] / "docs" / "generate.py"
EXAMPLE = Path(__file__).parents[1] / "examples" / "methods"


def test_the_generated_pages_are_not_stale() -> None:
    """This fails, too, when a view's column lacks its sentence in docs/schema.toml: then the page cannot be made."""
    done = forks.run([sys.executable, GENERATE, "--check"], env=clean_environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "file", ["pyproject.toml", *(f"recycledb_example/{name}.py" for name in ("plain", "clear", "paired"))]
)
def test_the_page_on_methods_holds_the_example_package_as_it_is(file: str) -> None:
    """tests/test_example_methods.py installs and uses the very package."""
    page = (GENERATE.parent / "methods.md").read_text("utf-8")
    assert f"\n{(EXAMPLE / file).read_text('utf-8').rstrip()}\n```\n" in page


SPELLED = re.compile(r"(?<![\w/.-])(?:r-?ifd|ifd|reverse[ -]ifd)(?![\w/-]|\.\w)", re.IGNORECASE)
SHOWN = (
    "README.md",
    "docs/*.md",
    "cli/*.py",
    "recycledb/reporting/*.py",
    "recycledb/reporting/*.js",
    "recycledb/view/**/*.html",
)


def test_ifd_and_rifd_have_one_spelling() -> None:
    """Wherever a word of a text is the score's name; what stands in code (`ifd_ppl`, "ifd", ifd(Q)) is a column or a formula."""
    root = GENERATE.parents[1]
    found = set()
    for path in (path for pattern in SHOWN for path in root.glob(pattern)):
        text = re.sub(r"```.*?```|`[^`\n]*`|\bifd\(|\brifd\(", "", path.read_text("utf-8"), flags=re.DOTALL)
        found |= {(path.name, match.group()) for match in SPELLED.finditer(text)} if path.suffix != ".py" else set()
        if path.suffix == ".py":
            found |= {
                (path.name, match) for match in re.findall(r"\b(?:R-?IFD|Ifd|Rifd|r-IFD|[Rr]everse[ -]IFD)\b", text)
            }
    assert not {each for each in found if each[1] not in ("IFD", "rIFD")}


RATIOS = "ifd_ppl rifd_ppl ifd_loss rifd_loss"
MEANS = " ".join(
    f"{what}_{stat}" for what in ("ppl", "loss") for stat in ("Q_direct", "A_direct", "Q_condition", "A_condition")
)
PROMISED = {
    "datasets": "dataset source format added_at",
    "dataset_samples": "dataset position sample_id",
    "samples": "sample_id instruction input output extra",
    "teacher_texts": "text_id variant_id step teacher prompt_id attempt status text finish_reason prompt_tokens "
    "completion_tokens cost_usd error created_at",
    "variants": "variant_id sample_id kind parent_id text_id teacher instruction input output",
    "students": "student model revision prompt max_length dtype parameters",
    "losses": "variant_id student stat loss_sum n_tokens truncated status",
    "scores": f"sample_id variant_id kind teacher student {MEANS} {RATIOS}",
    "selections": "selection recipe sql parameters created_at rows output_sha256",
    "selection_items": "selection position variant_id",
}


@pytest.mark.parametrize("view", PROMISED)
def test_the_sql_surface_keeps_its_promise(store: Store, view: str) -> None:
    store.rows(f"SELECT {', '.join(PROMISED[view].split())} FROM {view}")

"""A judge that was trained on the files of `judge data` comes back as a student."""

import json
from pathlib import Path

import pytest
from late import torch
from test_reviews import rated
from tiny_students import save_student, transformers

from recycledb.store import Store


@pytest.mark.long
def test_a_trained_judge_comes_back_as_a_student(sqlite_url: str, tmp_path: Path) -> None:
    """The files train a tiny model, whose expected digit is then that of the rating; likeness to the reference counts on request."""
    save_student(tmp_path / "base", "llama")
    tables = {
        "students": {
            "judge": {"model": str(tmp_path / "judge"), "prompt": "none", "stats": []},
            "base": {"model": str(tmp_path / "base")},
        },
    }
    selfj = {"method": "expected", "students": ["judge"], "kinds": ["answer"]}
    likeness = {"method": "embedding", "students": ["base"], "part": "answer", "kinds": ["origin", "answer"]}
    quality = {"method": "rating", "teacher": "gpt", "kinds": ["answer"]}
    with Store.open(sqlite_url) as store:
        db = rated(
            store,
            tmp_path,
            students={"base": tables["students"]["base"]},
            measures={"quality": quality, "like": likeness},
        )
        assert db.sync(only="measure").complete
        both = db.write_judge_data(tmp_path / "both", rating="quality/gpt", cosine="like/base")
        assert (both.items, both.without_vector) == (5, 0)
        db.write_judge_data(tmp_path / "data", rating="quality/gpt")
        digits = train(tmp_path / "base", tmp_path / "data" / "without_reference.json", tmp_path / "judge")
        db = rated(store, tmp_path, **tables, measures={"quality": quality, "selfj": selfj})
        assert db.sync(only="measure").complete
        found = store.rows("""
            SELECT m.variant_id, m.value FROM measures m WHERE m.measure = 'selfj' AND m.model = 'judge' AND m.is_current = 1
        """)
        values = {row[0]: row[1] for row in found}
        assert len(values) == 6 and all(abs(values[key] - digit) < 1 for key, digit in digits.items())


def train(base: Path, data: Path, out: Path) -> dict[str, int]:
    """Fine-tune the model in `base` on a file of `judge data` until it gives the digits, and save it to `out`; return the digits by id."""
    template = json.loads((data.parent / "training.json").read_text())["template"]
    model, tokenizer = (
        transformers.AutoModelForCausalLM.from_pretrained(base),
        transformers.AutoTokenizer.from_pretrained(base),
    )
    rows = json.loads(data.read_text())
    prompts = [tokenizer(template.replace("{instruction}", row["instruction"]))["input_ids"] for row in rows]
    wanted = torch.tensor([tokenizer.encode("\n" + row["output"])[-1] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    longest = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])  # behind, where nothing looks
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    for _ in range(60):
        logits = model(padded).logits[torch.arange(len(prompts)), last]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {row["id"]: int(row["output"]) for row in rows}

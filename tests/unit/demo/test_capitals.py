"""The rows of the real model: what each side sees, and that no country is on both sides."""

from verl_ext.data.rows import check_rows
from verl_ext.demo.capitals import SHOWN, write_rows


def test_the_teacher_sees_examples_and_the_student_the_question(tmp_path):
    counts = write_rows(tmp_path)
    rows = {name: check_rows("data", f"{tmp_path}/{name}.parquet") for name in ("train", "heldout")}
    assert counts == {name: len(part) for name, part in rows.items()}
    countries = {name: {row["prompt"][0]["content"] for row in part} for name, part in rows.items()}
    assert not countries["train"] & countries["heldout"]
    first = rows["heldout"][0]
    assert first["prompt"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert first["teacher_messages"][-1] == first["prompt"][0]
    assert [m["content"] for m in first["teacher_messages"][1:8:2]] == [capital for _, capital in SHOWN]
    assert first["reward_model"]["ground_truth"] == "Paris"
    shown = {f"What is the capital of {country}?" for country, _ in SHOWN}
    assert not shown & (countries["train"] | countries["heldout"])
    assert len({row["label"] for part in rows.values() for row in part}) == sum(counts.values()) < 100

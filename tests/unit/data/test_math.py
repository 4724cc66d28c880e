"""Problems from the hub's kind of files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from recipe import PROMPTS
from verl_ext.data.create import RowsConfig, create_rows
from verl_ext.data.hub import HubConfig, load_problems
from verl_ext.data.rows import check_rows

SAMPLE = Path(__file__).parents[3] / "data" / "math_sample.jsonl"
OWN = {"path": str(SAMPLE), "text": "text", "answer": "label"}
MATH = {"source": "hub", "prompt": "math", "student_prompt": "math", "data_source": "math"}


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def hub_of(tmp_path, *rows: dict, **settings) -> HubConfig:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return HubConfig(path=str(path), **settings)


def problem(text, answer) -> dict:
    return {"problem": text, "answer": answer}


def test_file_folder_and_parquet_give_the_same_rows(tmp_path):
    found = load_problems(HubConfig(**OWN), seed=0)
    assert len(found.sentences) == found.counts["read"] == found.counts["kept"] == 20
    assert (found.sentences[8].text, found.sentences[8].label) == ("Simplify the fraction 18/24.", "\\frac{3}{4}")
    folder, file = tmp_path / "folder", tmp_path / "one.parquet"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(SAMPLE.read_bytes())
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in SAMPLE.read_text().splitlines()]), file)
    for path in (folder, file):
        assert load_problems(HubConfig(**OWN | {"path": str(path)}), seed=0).sentences == found.sentences


def test_every_problem_once_and_only_with_one_answer(tmp_path):
    config = hub_of(
        tmp_path,
        problem("One plus one?", "2"),
        problem("Half of three?", "1.5"),
        problem("One  plus\none? ", "2"),
        problem("Which?", "3"),
        problem("Which?", "4"),
        problem("Which?", "3"),
        problem("No answer", None),
        problem("Empty answer", " "),
        problem("", "7"),
        problem("Two plus two?", "4"),
        problem("What is " + "1 + " * 20 + "1?", "21"),
        max_chars=80,
    )
    found = load_problems(config, seed=0)
    assert [(p.index, p.text, p.label) for p in found.sentences] == [
        (0, "One plus one?", "2"),
        (1, "Half of three?", "1.5"),
        (9, "Two plus two?", "4"),
    ]
    assert found.counts == {
        "read": 11,
        "without_problem": 1,
        "without_answer": 2,
        "over_max_chars": 1,
        "repeated": 1,
        "contradictory": 3,
        "over_max_rows": 0,
        "kept": 3,
    }


def test_max_rows_draws_by_seed_and_keeps_the_order(tmp_path):
    config = hub_of(tmp_path, *(problem(f"{i} plus 1?", i + 1) for i in range(40)), max_rows=5)
    first, again, other = (load_problems(config, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert (first.counts["over_max_rows"], first.counts["kept"]) == (35, 5)
    kept = [p.index for p in first.sentences]
    assert kept == sorted(kept) != list(range(5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "question"}, r"hub\.text=question: no such column; name one of text, label"),
        ({"answer": "solution"}, r"hub\.answer=solution: no such column"),
        ({"split": "test"}, r"hub\.split=test.*Unknown split"),
        ({"name": "algebra"}, r"hub\.name=algebra, hub\.revision=: a file has neither"),
        ({"path": "missing.jsonl"}, r"hub\.path=missing\.jsonl: no such file"),
        ({"path": "./missing"}, r"no such folder"),
        ({"path": "nobody/nothing"}, r"Unset HF_HUB_OFFLINE.*hub\.path=DIR"),
    ],
)
def test_an_error_is_one_line_and_names_the_key(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_problems(HubConfig(**OWN | settings), seed=0)
    assert "\n" not in str(caught.value)


def test_without_a_network_a_data_set_that_was_not_read_here_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # nobody listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(ValueError, match=r"not read here before, and the hub cannot be asked \(.*refused\); copy the"):
        load_problems(HubConfig(**OWN | {"path": "nobody/nothing"}), seed=0)


def test_answers_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hub\.answer=answer: row 1 is \['3'\], expected text or a number"):
        load_problems(hub_of(tmp_path, problem("a", ["2"]) | {"answer": None}, problem("b", ["3"])), seed=0)
    with pytest.raises(ValueError, match="1 problems with an answer"):
        load_problems(hub_of(tmp_path, problem("a", "2")), seed=0)
    with pytest.raises(ValueError, match=r"hub\.max_rows=1"):
        HubConfig(max_rows=1)


def test_rows_ask_student_and_teacher_for_a_box_and_no_problem_is_on_both_sides(tmp_path):
    out = tmp_path / "out"
    config = RowsConfig(out_dir=str(out), hub=HubConfig(**OWN), heldout_fraction=0.3, **MATH)
    assert create_rows(config, PROMPTS) == f"{out}: 14 train, 6 heldout, 0 edge rows"
    train, heldout = (check_rows("data", str(out / f"{name}.parquet")) for name in ("train", "heldout"))
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in heldout}
    for row in train + heldout:
        assert row["prompt"] == row["teacher_messages"]
        assert "\\boxed{}" in row["prompt"][0]["content"]
        assert row["data_source"] == MATH["data_source"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["hub"]["rows"]["kept"] == 20
    assert manifest["settings"]["student_prompt_sha256"] == manifest["settings"]["prompt_sha256"]
    assert create_rows(config, PROMPTS).endswith("up to date")
    with pytest.raises(ValueError, match=r"other settings \(student_prompt_sha256\)"):
        create_rows(
            RowsConfig(out_dir=str(out), hub=config.hub, heldout_fraction=0.3, **MATH | {"student_prompt": ""}), PROMPTS
        )


def test_the_students_prompt_is_its_own(tmp_path):
    short = str(PROMPTS / "short.txt")
    create_rows(RowsConfig(out_dir=str(tmp_path), hub=HubConfig(**OWN), **MATH | {"student_prompt": short}), PROMPTS)
    row = check_rows("data", str(tmp_path / "heldout.parquet"))[0]
    assert row["prompt"][0]["content"].startswith("Which language")
    assert row["teacher_messages"][0]["content"].endswith("\\boxed{}.")


@pytest.mark.parametrize("how", ["readme", "link"])
def test_a_folder_that_has_other_files_read_is_refused(tmp_path, how):
    private = tmp_path / "private.jsonl"
    private.write_text('{"problem": "my diary", "answer": "1"}\n')
    folder = tmp_path / "set"
    folder.mkdir()
    if how == "link":
        (folder / "train.jsonl").symlink_to(private)
    else:
        (folder / "train.jsonl").write_text(private.read_text())
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ../private.jsonl\n---\n"
        )
    with pytest.raises(ValueError, match=r"^hub\.path=\S+/set: \S+ would be read, which is not in the folder; copy it"):
        load_problems(HubConfig(path=str(folder)), seed=0)


def test_a_snapshot_of_the_hubs_cache_is_links_and_read(tmp_path):
    blobs, snapshot = tmp_path / "datasets--a--b/blobs", tmp_path / "datasets--a--b/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": "3"}\n')
    (snapshot / "train.jsonl").symlink_to("../../blobs/abc")
    assert len(load_problems(HubConfig(path=str(snapshot)), seed=0).sentences) == 2

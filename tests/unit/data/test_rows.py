import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipe import PROMPTS
from verl_ext.data import sentences as data
from verl_ext.data.create import RowsConfig, create_rows
from verl_ext.data.hub import HubConfig
from verl_ext.data.rows import LABELS, SPLITS, make_row, read_prompt

SAMPLE = Path(__file__).parents[3] / "data" / "sample.jsonl"


def sentence(text: str, group: int, part: str = data.TRANSLATION) -> data.Sentence:
    return data.Sentence(index=0, text=text, label="", group=group, slice=part, language="")


def test_tinker_source_is_the_known_file_with_labels_by_row():
    raw = data.tinker_file("example_data", "multilingual.txt").read_bytes()
    assert hashlib.md5(raw).hexdigest() == "b30d549f8fb3facaf010bf84438f88d5"
    sentences = data.tinker_sentences()
    assert len(sentences) == 2100
    assert " ".join(s.label for s in sentences[:15]) == "ar ru de el en es fr hi ru ot ot tr ur vi zh"
    assert sentences[1].language == "bg"
    assert {s.label for s in sentences[:2000]} == set(LABELS)
    assert {(s.slice, s.label, s.language) for s in sentences[2000:]} == {("edge", "", "")}


def test_tinker_source_refuses_another_file(monkeypatch, tmp_path):
    other = tmp_path / "multilingual.txt"
    other.write_text("changed\n")
    monkeypatch.setattr(data, "tinker_file", lambda *_: other)
    with pytest.raises(ValueError, match="md5"):
        data.tinker_sentences()


def test_tinker_prompt_is_what_str_format_makes_of_it():
    template = read_prompt("prompt", "tinker", PROMPTS)
    assert "{ar, de, el, en, es, fr, hi, ru, tr, ur, vi, zh, ot}" in template
    assert "{{" not in template
    assert template.count("{text}") == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_translation_and_no_text_on_both_sides(seed):
    splits = data.split(data.tinker_sentences(), 0.15, seed)
    train, heldout = splits["train"], splits["heldout"]
    assert len(train) + len(heldout) == 2000
    assert not {s.index // 15 for s in train} & {s.index // 15 for s in heldout}
    assert not {s.text for s in train} & {s.text for s in heldout}
    assert len({s.group for s in heldout}) == 20  # 15 % of 134
    assert [s.index for s in splits["edge"]] == list(range(2000, 2100))


def test_seed_decides_the_split():
    sentences = data.tinker_sentences()
    assert data.split(sentences, 0.15, 1) == data.split(sentences, 0.15, 1)
    assert data.split(sentences, 0.15, 1) != data.split(sentences, 0.15, 2)


def test_equal_texts_join_groups_even_through_a_third():
    merged = data.merge_equal_texts([sentence("a", 0), sentence("b", 1), sentence("b", 2), sentence("a", 2)])
    assert {s.group for s in merged} == {0}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_heldout_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="heldout_fraction"):
        data.split([sentence("a", 0), sentence("b", 1)], fraction, 0)


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2"):
        data.split([sentence("a", 0), sentence("b", 0)], 0.5, 0)


def test_both_splits_hold_a_group_at_any_fraction():
    two = [sentence("a", 0), sentence("b", 1)]
    for fraction in (0.01, 0.99):
        splits = data.split(two, fraction, 0)
        assert len(splits["train"]) == len(splits["heldout"]) == 1


def test_prompt_errors(tmp_path):
    for name, content, message in (("empty", " \n", "empty"), ("plain", "Name the language.", "no {text}")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_prompt("prompt", str(path), PROMPTS)
    with pytest.raises(FileNotFoundError, match="student_prompt=shrot: expected math, short, tinker"):
        read_prompt("student_prompt", "shrot", PROMPTS)


def test_prompt_takes_the_sentence_literally():
    row = make_row(sentence("{text} {x} \\1", 0), 'Answer {"lang": ...}: {text}', "train", "task")
    assert row["teacher_messages"] == [{"role": "user", "content": 'Answer {"lang": ...}: {text} {x} \\1'}]
    assert row["prompt"] == [{"role": "user", "content": "{text} {x} \\1"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", "not JSON"),
        ("[]", "expected an object, found a list"),
        ('{"label": "en"}', 'key "text"'),
        ('{"text": "  "}', "empty"),
        ('{"text": 3}', "expected str"),
        ('{"text": "a", "label": true}', "label is True, expected text or a number"),
        ('{"text": "a", "label": ["x"]}', "expected text or a number"),
        ('{"text": "a", "group": true}', "expected int"),
        ('{"text": "a", "lable": "en"}', "unknown key 'lable'"),
        ('{"text": "a", "slice": "test"}', "slice"),
        ("", "not JSON"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "fine"}\n' + line + '\n{"text": "fine too"}\n')
    with pytest.raises(ValueError, match=r"s\.jsonl:2: .*" + message):
        data.file_sentences(path)


def test_txt_has_a_group_a_line_and_refuses_an_empty_one(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("one\ntwo\n")
    assert [(s.text, s.label, s.group) for s in data.file_sentences(path)] == [("one", "", 0), ("two", "", 1)]
    path.write_text("one\n\ntwo\n")
    with pytest.raises(ValueError, match=r"s\.txt:2: the sentence is empty"):
        data.file_sentences(path)


def test_free_groups_do_not_meet_given_ones(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "group": 0}\n{"text": "c"}\n')
    assert [s.group for s in data.file_sentences(path)] == [1, 0, 3]


def test_cut_chars_prefers_whole_words():
    assert data.cut_chars("one two three", 9) == "one two"
    assert data.cut_chars("one two three", 7) == "one two"
    assert data.cut_chars("图书馆在这里", 3) == "图书馆"
    assert data.cut_chars("short", 9) == "short"


def test_cut_tokens_counts_again_after_the_cut():
    def two_characters_a_token(text: str) -> list[tuple[int, int]]:
        return [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]

    assert data.cut_tokens("abcdefg", 2, two_characters_a_token) == "abcd"
    assert data.cut_tokens("abc", 2, two_characters_a_token) == "abc"
    with pytest.raises(ValueError, match="nothing is left"):
        data.cut([sentence("é", 0)], lambda text: data.cut_tokens(text, 1, lambda t: [(0, 1)] * 2 * len(t)))


def config(tmp_path, **settings) -> RowsConfig:
    return RowsConfig(out_dir=str(tmp_path / "out"), source="file", sentences=str(SAMPLE), **settings)


def test_create_writes_rows_and_manifest(tmp_path):
    create_rows(config(tmp_path, max_chars=20), PROMPTS)
    out = tmp_path / "out"
    rows = {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in SPLITS}
    manifest = json.loads((out / "manifest.json").read_text())
    for name, part in rows.items():
        assert manifest["counts"][name]["rows"] == len(part)
        assert manifest["counts"][name]["labels"] == Counter(r["label"] for r in part)
        for row in part:
            assert row["extra_info"]["split"] == name
            assert len(row["prompt"][0]["content"]) <= 20
            assert row["teacher_messages"][0]["content"].endswith("\n" + row["prompt"][0]["content"])
            assert row["reward_model"] == {"style": "rule", "ground_truth": row["label"]}
    assert len(rows["edge"]) == 3
    assert {p.name for p in out.iterdir()} == {"manifest.json", *(f"{n}.parquet" for n in SPLITS)}


def test_create_is_repeatable_and_never_overwrites_silently(tmp_path):
    first = config(tmp_path)
    create_rows(first, PROMPTS)
    assert create_rows(first, PROMPTS).endswith("up to date")
    with pytest.raises(ValueError, match=r"other settings \(seed\).*overwrite=true"):
        create_rows(config(tmp_path, seed=1), PROMPTS)
    train = tmp_path / "out" / "train.parquet"
    train.unlink()  # as an interrupted run leaves it
    create_rows(first, PROMPTS)
    assert train.exists()
    train.write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"train\.parquet changed"):
        create_rows(first, PROMPTS)
    assert not create_rows(config(tmp_path, overwrite=True), PROMPTS).endswith("up to date")
    assert create_rows(first, PROMPTS).endswith("up to date")


def test_what_was_made_of_the_rows_before_is_removed_with_them(tmp_path):
    create_rows(config(tmp_path), PROMPTS)
    out = tmp_path / "out"
    stale = ("conversations.jsonl", "conversations.parquet", "labels_manifest.json", "chats.jsonl")
    for name in (*stale, "answers.jsonl", "mine.txt"):
        (out / name).write_text("x")
    assert create_rows(config(tmp_path, overwrite=True), PROMPTS).endswith("up to date")
    assert (out / "conversations.jsonl").exists()
    said = create_rows(config(tmp_path, seed=1, overwrite=True), PROMPTS)
    assert f"removed what was made of the rows before: {', '.join(stale)}" in said
    assert {path.name for path in out.iterdir()} - {f"{n}.parquet" for n in SPLITS} == {
        "manifest.json",
        "answers.jsonl",
        "mine.txt",
    }


def test_texts_that_are_equal_but_for_white_space_are_on_one_side_and_counted(tmp_path):
    texts = [f"text {i // 2}" if i % 2 else f" text\t {i // 2} " for i in range(40)] + ["cafe\u0301", "caf\u00e9"]
    path = tmp_path / "s.jsonl"
    edge = {"text": "text  3", "slice": "edge"}
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + json.dumps(edge))
    said = create_rows(RowsConfig(out_dir=str(tmp_path / "out"), source="file", sentences=str(path)), PROMPTS)
    assert "texts that are there once more, white space aside: 21; equal ones are on one side" in said
    assert "warning: 1 edge texts are among the other rows too" in said
    train, heldout = (
        {
            data.same_text(row["prompt"][0]["content"])
            for row in pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        }
        for name in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout


def test_a_label_that_is_never_trained_on_is_said(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("text,label\n" + "".join(f"text {i},label {i}\n" for i in range(10)))
    said = create_rows(RowsConfig(out_dir=str(tmp_path / "out"), source="file", sentences=str(path)), PROMPTS)
    assert "warning: no training row has the label label " in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "web"}, "expected tinker, file, hub, openai"),
        ({"source": "file"}, "sentences=PATH"),
        ({"sentences": "x.txt"}, "sentences=PATH"),
        ({"max_sentence_tokens": 8}, "go together"),
        ({"max_chars": -1}, "max_chars=-1 must be >= 0; 0 for no cut"),
        ({"hub": HubConfig(split="test")}, "hub.* is read with source=hub only"),
        ({"source": "hub"}, "prompt=math student_prompt=math data_source=math"),
        ({"source": "hub", "prompt": "math", "data_source": "math", "max_chars": 9}, "half a problem"),
    ],
)
def test_create_refuses_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        create_rows(RowsConfig(out_dir=str(tmp_path), **settings), PROMPTS)

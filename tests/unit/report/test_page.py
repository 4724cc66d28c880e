"""The page as it is rendered: closed upon itself, in words too, and nothing of a model's in it but text."""

import base64
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from parsed_page import Element, Page
from reported import LABELS, result, sample, write_lines, write_run

from verl_ext.report.comparison import comparison_report
from verl_ext.report.files import RunFiles
from verl_ext.report.render import html, markdown
from verl_ext.report.single import report_of

SECTIONS = ["answer", "curves", "cost", "time", "classes", "answers", "tokens", "settings", "environment", "commands"]
REQUESTS = {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "source", "image", "use"}
EVIL = (
    "</script><script>alert(1)</script>",
    '<img src="https://evil.example/x" onerror="alert(1)">',
    '\'" onmouseover=alert(1) x="',
    "]]>--><style>*{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "![x](https://evil.example/y) [a](javascript:alert(1)) `code` | cell | # h",
    "\u202eesrever \u2066 \u200b hidden \x1b[31m \x00 \x7f \x85 \u2028",
    "שלום עולם ثم نص",
    "half a pair \ud83d and \udc00",
)


def page_of(folder: Path) -> tuple[str, Page]:
    text = html(report_of(RunFiles(folder), ["trainer.total_training_steps=16"]))
    return text, Page(text)


@pytest.fixture(scope="module")
def page(run) -> tuple[str, Page]:
    return page_of(run)


@pytest.fixture(scope="module")
def compared(comparison) -> tuple[str, Page]:
    text = html(comparison_report(comparison))
    return text, Page(text)


@pytest.fixture(params=["page", "compared"])
def either(request) -> tuple[str, Page]:
    return request.getfixturevalue(request.param)


def test_the_sections_of_a_run_and_links_to_each(page):
    root = page[1].root
    assert [section.attributes["id"] for section in root.all("section")] == SECTIONS
    assert [link.attributes["href"] for link in root.all("nav")[0].all("a")] == [f"#{name}" for name in SECTIONS]


def test_nothing_is_asked_of_another_place(either):
    text, parsed = either
    assert {element.tag for element in parsed.root.all()} & REQUESTS == set()
    for element in parsed.root.all():
        assert not any(name.startswith("on") or name == "style" for name in element.attributes), element.attributes
        for name in ("href", "src", "action", "data", "xlink:href"):
            assert element.attributes.get(name, "#").startswith("#")
    (css,) = (style.text for style in parsed.root.all("style"))
    assert not re.search(r"url\(|@import|https?:", css)
    assert "http://" not in text
    assert "https://" not in text


def test_the_policy_lets_in_this_style_and_this_script_alone(either):
    root = either[1].root
    (policy,) = (m.attributes["content"] for m in root.all("meta") if "http-equiv" in m.attributes)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (element,) = root.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert rules == dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")


def test_every_figure_has_its_words(either):
    figures = [figure for figure in either[1].root.all("figure") if figure.attributes["class"] != "code"]
    assert len(figures) > 8
    for figure in figures:
        words = [element.text.strip() for tag in ("figcaption", "p") for element in figure.all(tag)]
        assert len(" ".join(words)) > 20, figure.text
        for picture in figure.all("svg"):
            if "lines" in picture.attributes.get("class", "") or "gantt" in picture.attributes.get("class", ""):
                assert picture.attributes["role"] == "img"
                assert len(picture.attributes["aria-label"]) > 40


def test_what_can_be_pointed_at_can_be_reached_by_keys(page):
    root = page[1].root
    for picture in root.all("svg", "lines"):
        assert picture.attributes["tabindex"] == "0"
    groups = root.all("div", "said")
    assert groups
    for group in groups:  # one stop of the tab key an answer; arrows go on from there
        stops = [token.attributes["tabindex"] for token in group.all("span", "k")]
        assert stops == ["0"] + ["-1"] * (len(stops) - 1)
        assert "tokens" in group.attributes["aria-label"]
    for region in root.all("div", "scroll"):
        assert (region.attributes["role"], region.attributes["tabindex"]) == ("region", "0")
        assert region.attributes["aria-label"]
    assert root.all("html")[0].attributes["lang"] == "en"
    for row in (row for table in root.all("table") for row in table.all("tr")):
        assert {cell.attributes.get("scope") for cell in row.all("th")} <= {"row", "col"}


def test_a_token_says_its_numbers_and_the_teachers_choice(page, run):
    first = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    row = next(each for each in first if (each["step"], each["row"]) == (0, 4))
    (answer,) = (g for g in page[1].root.all("div", "said") if g.attributes["aria-label"].startswith("row 4, before"))
    tokens = answer.all("span", "k")
    assert [token.text for token in tokens] == row["tokens"]
    at = max(range(len(tokens)), key=lambda i: row["student_logprobs"][i] - row["teacher_logprobs"][i])
    kl = row["student_logprobs"][at] - row["teacher_logprobs"][at]
    assert float(tokens[at].attributes["data-d"]) == pytest.approx(kl, rel=1e-2)
    assert tokens[at].attributes["class"] == "k " + ("p4" if kl > 4 else "p3" if kl > 1.5 else "p2")
    found = json.loads(tokens[at].attributes["data-a"])
    assert [name for name, _ in found] == [name for name, _ in row["alternatives"][at]]


@pytest.mark.parametrize(("rows_a_class", "shown"), [(1, False), (2, True)])
def test_answers_of_their_own_are_no_classes(tmp_path, rows_a_class, shown):
    write_run(tmp_path / "run")
    file = tmp_path / "run/eval.json"
    one = result(0.5, sees_prompt=False, noise=random.Random(0), rows=rows_a_class * len(LABELS))
    file.write_text(json.dumps(dict.fromkeys(("base", "teacher", "student"), one)))
    text, _ = page_of(tmp_path / "run")
    assert ("By class" in text) == ("most often" in text) == shown
    assert ("Every row has an answer of its own." in text) != shown


def evil_run(folder: Path) -> Path:
    """A run whose model, prompts, labels and settings say all of `EVIL`."""
    write_run(folder)
    samples = []
    for row, text in enumerate(EVIL):
        given = sample(0, row, 1.0, random.Random(0))
        tokens = [text] * len(given["tokens"])
        others = [[[text, -0.1]] for _ in tokens]
        samples.append(
            given | {"prompt": text, "answer": text, "truth": text, "tokens": tokens, "alternatives": others}
        )
    write_lines(folder / "samples.jsonl", samples)
    evaluation = json.loads((folder / "eval.json").read_text())
    for arm in ("base", "teacher", "student"):
        confusion, classes = evaluation[arm]["confusion"], evaluation[arm]["classes"]
        for at in range(4):
            confusion["gold"][at] = confusion["answered"][at] = classes[at]["label"] = EVIL[at]
    (folder / "eval.json").write_text(json.dumps(evaluation))
    (folder / "origin.json").write_text(json.dumps({EVIL[0]: EVIL[1]}))
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    write_lines(folder / "metrics.jsonl", [json.loads(row) | {EVIL[0]: number} for number, row in enumerate(rows)])
    timeline = (folder / "timeline.jsonl").read_text().replace("weight sync", EVIL[1].replace('"', "'"))
    (folder / "timeline.jsonl").write_text(timeline)
    return folder


def test_what_a_model_says_is_text_and_nothing_else(tmp_path):
    folder = evil_run(tmp_path / "evil")
    text, parsed = page_of(folder)
    root = parsed.root
    assert len(root.all("script")) == len(root.all("style")) == 1
    assert root.all("img") == []
    for element in root.all():
        assert not any(name.startswith("on") for name in element.attributes)
    answers = [cell.text for cell in root.all("td", "model")]
    for evil in EVIL[:6]:
        assert any(evil in answer for answer in answers), evil
    assert not set(text) & {chr(code) for code in (*range(9), 0x1B, 0x7F, 0x85, 0x2028, 0x202E, 0x2066, 0x200B)}
    assert "␛[31m ␀ ␡ ‹U+0085› ‹U+2028›" in answers[6]
    assert "‹U+202E›esrever ‹U+2066› ‹U+200B› hidden" in answers[6]
    assert "half a pair ‹U+D83D› and ‹U+DC00›" in answers[8]
    assert [cell.attributes["dir"] for cell in root.all("td", "model")][:9] == ["ltr"] * 7 + ["rtl", "ltr"]
    text.encode()


def test_markdown_has_the_same_words_and_no_markup_of_a_models(tmp_path, run):
    text = markdown(report_of(RunFiles(evil_run(tmp_path / "evil")), []))
    assert "<" not in text.replace("&lt;", "")
    assert "](" not in text.replace("\\](", "").replace("\\]\\(", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if "answer" in line and "score" in line}
    assert widths == {5}
    plain = markdown(report_of(RunFiles(run), []))
    page = Page(html(report_of(RunFiles(run), [])))
    tables = [table for table in page.root.all("table") if table.above.above.attributes.get("class") != "numbers"]
    assert len(re.findall(r"^\|(?: \| )?.*\n\|(?:---:?\|)+$", plain, re.MULTILINE)) >= len(tables)
    assert "\\|" not in plain
    for heading in page.root.all("h2"):
        assert f"\n## {heading.text}\n" in plain
    for cell in page.root.all("dd"):
        assert cell.all("b")[0].text in plain


def test_a_line_of_a_megabyte_is_clipped_and_the_rest_counted(tmp_path):
    folder = write_run(tmp_path / "long")
    words = ["x" * 1_000_000] + ["y"] * 9999
    long = sample(0, 0, 1.0, random.Random(0), answer="z" * 1_000_000, prompt="p" * 1_000_000, tokens=words)
    for key in ("student_logprobs", "teacher_logprobs"):
        long[key] = [-0.5] * len(words)
    write_lines(folder / "samples.jsonl", [long | {"alternatives": None}])
    text, parsed = page_of(folder)
    assert len(text) < 400_000
    (said,) = (cell.text for cell in parsed.root.all("td", "model"))
    assert said == "z" * 1200 + "… (998,800 characters left out)"
    assert "(999,600 characters left out)" in parsed.root.all("span", "prompt")[0].text
    assert "9,680 further tokens are left out." in parsed.root.text
    assert "(+999,960 characters)" in parsed.root.all("div", "said")[0].text


def sections_of(parsed: Page) -> dict[str, Element]:
    return {section.attributes["id"]: section for section in parsed.root.all("section")}


def test_a_missing_file_is_named_with_what_keeps_it(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", [{"step": 1, "teacher_kl": 1.0}])
    found = sections_of(page_of(folder)[1])
    named = {name: " ".join(each.text for each in section.all("p", "missing")) for name, section in found.items()}
    for name, file, keeper in (
        ("answer", "eval.json", "verl-opd evaluate"),
        ("cost", "ledger.jsonl", "Runs of this version"),
        ("time", "timeline.jsonl", "training writes it"),
        ("answers", "samples.jsonl", "report.keep_samples"),
        ("tokens", "log-probs", "report.alternatives"),
        ("settings", "config.yaml", "Every run writes it"),
        ("environment", "origin.json", "Every run writes it"),
        ("environment", "environment.json", "Every run writes it"),
    ):
        assert file in named[name], name
        assert keeper in named[name], name


def test_a_cut_last_line_is_left_out_and_counted(tmp_path):
    folder = write_run(tmp_path / "cut")
    for name in ("metrics.jsonl", "samples.jsonl", "ledger.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 1')
    parsed = page_of(folder)[1]
    made = parsed.root.all("p", "made")[0].text
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert f"{name}: an unfinished last line (10 bytes) is left out" in made
    assert "ledger.jsonl: 1 unfinished lines are left out" in made


def test_a_broken_line_names_file_and_line(tmp_path):
    folder = write_run(tmp_path / "broken")
    text = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(text[0] + "not json\n" + "".join(text[1:]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is no JSON"):
        page_of(folder)


def test_secrets_and_paths_of_this_machine_are_not_shown(tmp_path):
    folder = write_run(tmp_path / "secret")
    with (folder / "config.yaml").open("a") as file:
        file.write(f"api_key: sk-very-secret\nplace: {Path.home()}/models\nurl: http://me:word@host/x\n")
    text, _ = page_of(folder)
    assert "very-secret" not in text
    assert "me:word" not in text
    assert str(Path.home()) + "/models" not in text
    assert "~/models" in text

"""`verl-opd report RUN` and `verl-opd compare report OUT`, as they are typed."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hydra import compose
from omegaconf import OmegaConf
from reported import write_comparison, write_run

from recipe.__main__ import completions, main
from recipe.on_policy_distillation import VERB
from verl_ext.run.files import save_resolved_config
from verl_ext.trainer.config import check_method

ROOT = Path(__file__).parents[2]
WORDS = ("platform=cpu", "task=demo", "student.path=BASE", "data.train_files=a.parquet", "data.val_files=b.parquet")
GROUPS = "defaults:\n- platform: cpu\n- task: demo\n"


def typed(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["verl-opd", *words])
    main()


def test_a_run_is_written_as_a_page_with_its_departures_and_its_command(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    with VERB.composing():
        config = compose(VERB.name, [*WORDS, "data.train_batch_size=7", f"run_dir={folder}"])
    check_method(config)
    save_resolved_config(OmegaConf.to_yaml(config, resolve=True), str(folder), GROUPS)
    typed(monkeypatch, "report", str(folder))
    assert capsys.readouterr().out == f"{folder}/report.html and {folder}/report.md written\n"
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert re.search(r"departures from the defaults of platform=cpu, task=demo", page)
    assert '<th scope="row">data.train_batch_size</th><td class="t">7</td>' in page
    (command,) = re.findall(r"verl-opd train (?:[^\n]*\\\n)*[^\n]*", text)
    assert "data.train_batch_size=7" in command
    assert "actor_rollout_ref.rollout.n" not in command


def test_a_comparison_has_two_ways_to_its_page(tmp_path, monkeypatch, capsys):
    out = write_comparison(tmp_path / "out")
    for words in (("report", str(out)), ("compare", "report", str(out))):
        typed(monkeypatch, *words)
        assert capsys.readouterr().out == f"{out}/report.html and {out}/report.md written\n"
        page = (out / "report.html").read_text()
        assert "<h1>SFT or on-policy: arithmetic</h1>" in page
        assert "the teacher did not start" in page
        (out / "report.html").unlink()
    assert "![Held-out accuracy by samples](report.svg)" in (out / "report.md").read_text()
    drawn = ElementTree.parse(out / "report.svg")
    names = {"".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Held-out accuracy by samples", "samples trained on"} <= names
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|<script", (out / "report.svg").read_text())
    assert completions("verl-opd compare re") == ["report"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere",), "nowhere: no such folder; give the folder of a run"),
        ((), "run is not set: give run="),
        ((".", "port=70000"), "port=70000 must be in"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(says)}"):
        typed(monkeypatch, "report", *words)


def test_the_live_view_ends_cleanly_on_ctrl_c(tmp_path):
    folder = write_run(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "recipe", "report", str(folder), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline().endswith("written\n")
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert b"data-live" in answer.read()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "as they were shown last" in out

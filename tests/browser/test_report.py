"""The report in a real browser: nothing asked of elsewhere, nothing on the console, by pointer and by keys.

`make browser-test` sets the browser up (tests/browser/set-up.sh) and runs this; `make test` and CI do not.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from reported import ARMS, write_comparison, write_run

from verl_ext.report.comparison import comparison_report
from verl_ext.report.files import RunFiles
from verl_ext.report.single import report_of
from verl_ext.report.written import write

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-browser/bin/python"
SCREENSHOTS = ROOT / "outputs/browser"
DARK, LIGHT = "rgb(22, 21, 19)", "rgb(252, 251, 248)"

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file() or shutil.which("chromium-headless-shell") is None,
    reason="no headless browser: tests/browser/set-up.sh installs one where there is apt",
)


def look(page: Path, width: int, scheme: str, name: str = "") -> dict[str, Any]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    shot = [str(SCREENSHOTS / f"{name}-{width}-{scheme}.png")] if name else []
    words = [str(PYTHON), str(ROOT / "tests/browser/look.py"), str(page), str(width), scheme, *shot]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    run = write_run(tmp_path_factory.mktemp("run") / "run")
    write(report_of(RunFiles(run), []), run)
    comparison = write_comparison(tmp_path_factory.mktemp("comparison"))
    write(comparison_report(comparison), comparison)
    return {"run": run / "report.html", "comparison": comparison / "report.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_is_whole_at_every_width_and_in_both_schemes(pages, name, width, scheme):
    found = look(pages[name], width, scheme, name)
    assert found["problems"] == []
    assert found["asked"] == [f"file://{pages[name]}"]
    assert found["scroll_width"] == width
    assert found["wide"] == []
    assert found["paper"] == (DARK if scheme == "dark" else LIGHT)
    assert found["seconds"] < 2


def test_pointer_and_keys_read_charts_and_tokens(pages):
    found = look(pages["run"], 1440, "light")
    assert found["keys"]["chart_home"].startswith("step 1: ")
    assert found["keys"]["chart_end"].startswith("step 16: ")
    assert "reverse KL" in found["keys"]["token"]
    assert "teacher: “" in found["keys"]["token"]
    assert found["keys"]["next_token"].startswith(f"“{found['keys']['focused']}”")
    assert found["keys"]["next_token"] != found["keys"]["token"]
    assert found["pointer"]["chart"].startswith("step ")
    assert found["pointer"]["token"] == found["keys"]["next_token"]


def test_a_name_stands_out_in_every_chart(pages):
    assert look(pages["comparison"], 1440, "light")["pointer"]["faded"] > 5


def test_a_hundred_arms_of_ten_thousand_steps_open_quickly(tmp_path):
    _, kind, speed, accuracy, _ = ARMS[1]
    arms = [(f"arm {number}", kind, speed * (1 + number / 200), accuracy, 1) for number in range(100)]
    out = write_comparison(tmp_path, arms, steps=10_000)
    write(comparison_report(out), out)
    size = (out / "report.html").stat().st_size
    assert size < 10_000_000
    found = look(out / "report.html", 1440, "light", "hundred-arms")
    print(f"{size / 1e6:.1f} MB, {found['seconds']:.2f} s")
    assert found["problems"] == []
    assert found["seconds"] < 2
    assert "the smallest and the largest value of" in (out / "report.html").read_text()

"""An exported folder arrives on the hub as it is; what the hub refuses is one line with the fix.

The hub is a local one in huggingface_hub's protocol (`fake_hub.py`), without Xet, whose server is not public.
"""

import os
import re
from pathlib import Path

import pytest
from fake_hub import TOKEN, content, held, serve_hub
from huggingface_hub import constants
from lora_checkpoint import write_lora_checkpoint
from omegaconf import OmegaConf

from verl_ext.student import export, push


@pytest.fixture
def hub(monkeypatch):
    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(os.urandom(100_000))
    (tmp_path / "student" / "config.json").write_text("{}")
    (tmp_path / "student" / "README.md").write_text("---\nbase_model: org/base\n---\n# student\n")
    return tmp_path / "student"


def pushed(folder: Path, name: str = "alice/student", **how: bool) -> str:
    repository = push.Repository(name, **how)
    repository.open()
    return repository.upload(folder)


def test_it_is_public_where_that_is_asked_for(hub, folder):
    assert pushed(folder, public=True).endswith("(public)")
    assert not hub.private["alice/student"]


def test_a_repository_that_holds_files_is_replaced_only_where_that_is_asked_for(hub, folder):
    pushed(folder)
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(
        ValueError, match="--push alice/student exists and holds files: give another name, or --replace"
    ):
        pushed(folder)
    pushed(folder, replace=True)
    assert held(hub, "alice/student") == content(folder)


def test_an_upload_that_ended_early_is_started_again_by_the_same_command(hub, folder):
    push.Repository("alice/student").open()
    pushed(folder)
    assert held(hub, "alice/student") == content(folder)


@pytest.mark.parametrize(
    ("public", "says"), [(True, "is private: leave --public out"), (False, "is public: add --public")]
)
def test_nobody_reads_what_was_meant_to_be_private(hub, folder, public, says):
    """A repository keeps its visibility, whatever the command that fills it says."""
    hub.files["alice/student"], hub.private["alice/student"] = {}, public
    with pytest.raises(ValueError, match=says):
        pushed(folder, public=public, replace=True)
    assert hub.files["alice/student"] == {}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("alice/student", {"HF_TOKEN": ""}, "needs a token of the hub: set HF_TOKEN to one that may write"),
        ("alice/student", {"HF_TOKEN": "hf_old"}, "the hub does not know the token; set HF_TOKEN to a valid one"),
        ("bob/student", {}, "the token may not write there .*under bob/student.*; give an OWNER that is yours"),
        ("alice/student", {"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE=1 keeps it from the hub; set HF_HUB_OFFLINE=0"),
        ("alice/student", {"ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer .*ConnectError"),
    ],
)
def test_what_the_hub_refuses_is_one_line_before_anything_is_exported(
    hub, base, tmp_path, composed_config, monkeypatch, capsys, name, change, says
):
    for key, value in change.items():
        if hasattr(constants, key):
            monkeypatch.setattr(constants, key, value)
        else:
            monkeypatch.setenv(key, value)
    write_lora_checkpoint(tmp_path / "actor", base)
    OmegaConf.save(composed_config, tmp_path / "config.yaml")
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "actor"), str(tmp_path / "out"), "--push", name])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        export.main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert TOKEN not in said
    assert said.startswith(f"error: --push {name}")
    assert re.search(says, said), said
    assert not (tmp_path / "out").exists()
    assert not hub.files


@pytest.mark.parametrize("name", ["student", "alice/a/b", "alice/..", "alice/stu dent", "../x", "https://hub/alice/x"])
def test_a_name_that_is_none_is_refused(hub, name):
    with pytest.raises(ValueError, match="is no name that the hub takes: give OWNER/NAME"):
        push.repositories(name, ["student", "adapter"], public=False, replace=False)
    assert hub.asked == []


def test_what_arrives_changed_is_said(hub, folder):
    hub.loses = "config.json"
    with pytest.raises(ValueError, match=r"config\.json on the hub is not what was exported; add --replace"):
        pushed(folder)


@pytest.mark.usefixtures("hub")
def test_a_card_that_the_hub_refuses_is_said_with_its_reason(folder):
    (folder / "README.md").write_text("---\nbase_model: outputs/models/base\n---\n")
    with pytest.raises(ValueError, match=r'"base_model" with value "outputs/models/base" is not valid'):
        pushed(folder)


@pytest.mark.parametrize("flag", ["--public", "--replace"])
def test_a_flag_of_pushing_needs_a_place(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path), str(tmp_path / "out"), flag])
    with pytest.raises(SystemExit, match="1"):
        export.main()
    assert capsys.readouterr().err == "error: --public and --replace say how to push: add --push OWNER/NAME\n"

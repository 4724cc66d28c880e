"""Where a key comes from, and what is no key."""

import os

import pytest

from verl_ext.run.api_key import api_key, bearer_header, check_key_name, strong_key

KEY = "0123456789abcdef"


@pytest.fixture
def key_file(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    monkeypatch.delenv("MY_KEY", raising=False)
    monkeypatch.setenv("MY_KEY_FILE", str(file))
    return file


@pytest.mark.usefixtures("key_file")
def test_a_key_is_the_variables_or_that_of_the_file_that_another_names(monkeypatch):
    assert bearer_header("MY_KEY") == {"Authorization": f"Bearer {KEY}"}
    monkeypatch.setenv("MY_KEY", "fedcba9876543210")
    assert strong_key("MY_KEY") == "fedcba9876543210"
    assert bearer_header("NO_KEY") == {}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_that_others_may_open_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(ValueError, match=rf"MY_KEY_FILE: others may read .*key \(mode {mode:o}\); chmod 600 .*key$"):
        api_key("MY_KEY")


def test_a_file_that_is_none_is_refused_in_a_line(key_file):
    key_file.write_text("\n")
    with pytest.raises(ValueError, match=r"MY_KEY_FILE=.*: the file is empty; write"):
        api_key("MY_KEY")
    key_file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"MY_KEY_FILE: .* cannot be read"):
        api_key("MY_KEY")
    key_file.unlink()
    with pytest.raises(ValueError, match=r"MY_KEY_FILE: .* cannot be read \(No such file.*; correct the path"):
        api_key("MY_KEY")
    key_file.mkdir(mode=0o700)
    with pytest.raises(ValueError, match=r"MY_KEY_FILE: .* is no file of yours"):
        api_key("MY_KEY")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_refused(key_file):
    os.chown(key_file, 12345, 12345)
    with pytest.raises(ValueError, match=r"MY_KEY_FILE: .* is no file of yours"):
        api_key("MY_KEY")


@pytest.mark.parametrize("bad", [f"{KEY}\nX: y", f"a {KEY}", f"{KEY}é", f"\t{KEY}"])
def test_what_a_header_cannot_hold_is_no_key(monkeypatch, bad):
    monkeypatch.setenv("MY_KEY", bad)
    with pytest.raises(ValueError, match=r"^MY_KEY: the key holds a space, a line break") as refused:
        bearer_header("MY_KEY")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "LD_PRELOAD", "my_key", "KEYS", "sk-0123456789", "", "A B_KEY", "KEY\n"]
)
def test_a_variable_of_another_thing_is_refused(name):
    with pytest.raises(
        ValueError, match=r"^teacher\.api_key_env.*; give one that ends in KEY, TOKEN or SECRET"
    ) as refused:
        check_key_name("teacher.api_key_env", name)
    assert (name in str(refused.value)) == (name in os.environ or name == "")  # it may be the key itself


@pytest.mark.parametrize("name", ["TEACHER_API_KEY", "HF_TOKEN", "KEY", "MY_SECRET", "OPENAI_APIKEY"])
def test_variables_of_keys_are_taken(name):
    check_key_name("labels.api_key_env", name)


def test_the_name_is_looked_at_by_each_setting_that_takes_one():
    from verl_ext.sampling.teacher_labels import LabelConfig
    from verl_ext.teacher.config import TeacherConfig

    with pytest.raises(ValueError, match=r"^labels\.api_key_env=PATH"):
        LabelConfig(api_key_env="PATH")
    for mode in ({"model_path": "m"}, {"mode": "external", "urls": ["http://a:1"]}):
        with pytest.raises(ValueError, match=r"^teacher\.api_key_env=PATH"):
            TeacherConfig(**mode, api_key_env="PATH")

"""A path that holds no model is refused by its key."""

import json

import pytest

from verl_ext.run.models import check_model


def test_model_paths(tmp_path):
    check_model("student.path", "Qwen/Qwen3-4B-Instruct-2507")
    for path, message in ((str(tmp_path / "none"), "no such folder"), (str(tmp_path), r"no config\.json")):
        with pytest.raises(ValueError, match=message):
            check_model("student.path", path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no weights"):
        check_model("student.path", str(tmp_path))

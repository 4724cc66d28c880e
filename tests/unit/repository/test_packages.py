"""What a wheel holds, against the tree; tests/integration/test_wheel.py installs one."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_packages_are_those_of_the_tree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = settings["package-dir"]
    assert {name: (ROOT / path).is_dir() for name, path in mapped.items()} == dict.fromkeys(mapped, True)
    on_disk = {str(file.parent.relative_to(ROOT)) for file in (ROOT / "verl_ext").rglob("__init__.py")}
    separate = "verl_ext/platform/sglang_cpu"  # a package of its own, for the teacher's environment
    expected = {path.replace("/", ".") for path in on_disk if not path.startswith(separate)} | {*mapped}
    assert sorted(settings["packages"]) == sorted(expected)


def test_no_other_package_shares_the_name_recipe():
    import recipe

    assert list(recipe.__path__) == [str(ROOT / "recipe")]

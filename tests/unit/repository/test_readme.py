"""The README tells the truth about the tree and the commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
MADE = {"outputs", "build"}  # by commands, not part of the repository


def tree() -> dict[str, str]:
    """What the README says of each folder at the top, in one line."""
    block = re.search(r"## Files\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    joined = re.sub(r"\n +", " ", block[1])
    return dict(re.findall(r"^(\w+)/ +(.+)$", joined, re.MULTILINE))


def folders(path: Path) -> set[str]:
    named = {entry.name for entry in path.iterdir() if any(file.suffix != ".pyc" for file in entry.rglob("*.*"))}
    return {folder for folder in named - MADE if not folder.startswith(".") and not folder.endswith(".egg-info")}


def test_the_tree_names_every_folder_at_the_top():
    assert set(tree()) == folders(ROOT)


def test_where_the_tree_goes_into_a_folder_it_names_all_within():
    said = {top: set(re.findall(r"(\w+)/", text)) for top, text in tree().items()}
    assert {"verl_ext", "configs", "tests"} <= {top for top, named in said.items() if named}
    for top, named in said.items():
        assert not named or named == folders(ROOT / top), top


def test_the_tree_names_every_verb():
    (verbs,) = re.findall(r"the verbs: ([\w, ]+)", tree()["recipe"])
    on_disk = {path.stem for path in (ROOT / "recipe").glob("*.py") if not path.stem.startswith("__")}
    assert set(verbs.split(", ")) == on_disk


def test_every_verb_that_the_docs_name_exists():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*")]:
        for module in re.findall(r"-m (recipe\.\w+|benchmarks\.\w+)", document.read_text()):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{document.name}: {module}"

"""The README tells the truth about the tree and the commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_one_on_disk():
    tree = re.search(r"## Files\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    named = {line.split("/")[0] for line in tree[1].splitlines()}
    made = {"outputs", "build"}  # by commands, not part of the repository
    on_disk = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert named == {name for name in on_disk - made if not name.endswith(".egg-info")}


def test_every_verb_that_the_docs_name_exists():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*")]:
        for module in re.findall(r"-m (recipe\.\w+|benchmarks\.\w+)", document.read_text()):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{document.name}: {module}"


def test_every_link_to_a_file_leads_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

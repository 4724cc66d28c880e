"""What the documents name exists: links and their anchors, files of ours, modules of ours, the README's tree."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE_DIR = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
TOPS = "verl_ext|recipe|benchmarks|configs|docs|tests|examples|docker|requirements"
FOLDERS = [*TOPS.split("|"), "data", ".github"]
KINDS = {".md", ".py", ".yaml", ".yml", ".sh", ".txt", ".in", ".toml", ".Dockerfile"}
TEXTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in KINDS]
TEXTS += [path for path in sorted(ROOT.iterdir()) if path.suffix in KINDS or path.name == "Makefile"]
DOCUMENTS = [path for path in TEXTS if path.suffix == ".md"]

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
# What stands behind a slash, a dot or a brace is part of a path elsewhere (`{folder}/docs`).
PATH = re.compile(rf"(?<![\w/.}}-])(?:{TOPS})/[\w./*{{}},-]*[\w/*}}]")
MODULE = re.compile(r"(?<![\w/.-])(?:verl_ext|recipe|benchmarks)(?:\.\w+)+")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def exists(path: str) -> bool:
    """Whether a path that a text names is there; `{a,b}` stands for both, `*` for at least one."""
    if braces := re.search(r"\{([^{}]*)\}", path):
        before, after = path[: braces.start()], path[braces.end() :]
        return all(exists(before + part + after) for part in braces[1].split(","))
    return any(True for _ in ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def is_ours(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or a name within a module; `package-dir` maps those of a wheel."""
    for package, folder in PACKAGE_DIR.items():
        if dotted == package or dotted.startswith(f"{package}."):
            dotted = folder.replace("/", ".") + dotted.removeprefix(package)
    if dotted.endswith(("__path__", "__package__")) or (ROOT / dotted.replace(".", "/")).is_dir():
        return True
    *parents, last = dotted.split(".")
    folder, parent = ROOT.joinpath(*parents), ROOT.joinpath(*parents).with_suffix(".py")
    if (folder / last).is_dir() or (folder / f"{last}.py").is_file():
        return True
    source = parent if parent.is_file() else folder / "__init__.py"
    if not source.is_file():
        return len(parents) > 2 and is_ours(".".join(parents))  # `module.Class.attribute`
    return re.search(rf"\b{last}\b", source.read_text()) is not None


def test_every_link_leads_somewhere():
    lost = []
    for document in DOCUMENTS:
        for target, anchor in LINK.findall(prose(document)):
            file = document.parent / target if target else document
            if not file.exists() or (anchor and anchor not in anchors(file)):
                lost.append(f"{name(document)}: {target}#{anchor}")
    assert lost == []


def test_every_file_that_is_named_exists():
    named = {(name(text), path) for text in TEXTS for path in PATH.findall(text.read_text())}
    made_up = {each for each in named if re.search(r"\{[^,}]*\}", each[1])}  # a program fills them in
    assert [each for each in sorted(named - made_up) if not exists(each[1])] == []


def test_every_module_that_is_named_exists():
    named = {(name(text), dotted) for text in TEXTS for dotted in MODULE.findall(text.read_text())}
    assert [each for each in sorted(named) if not is_ours(each[1])] == []

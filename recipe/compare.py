"""Is this Tinker's recipe? Its installed code and ours, value by value.

    # on a CPU: the preset `tinker`; any override of `python -m recipe.sft`
    python -m recipe.compare parity
    python -m recipe.compare parity preset=seed
    # on a GPU
    python -m recipe.compare parity platform=cuda student=Qwen/Qwen3-4B-Instruct-2507

Tinker's values come from its installed packages, which run their own training loop against a
service that only takes notes: no network, no key. Ours come from the trainer as it is really
built. Writes parity.json and parity.md; the exit status is 1 if a difference has no explanation.
`compare run` trains several arms on one task, `compare headroom` says what it can give: --help.
"""

import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

from verl_ext.comparison import command
from verl_ext.data.conversations import from_jsonl
from verl_ext.run.files import check_writable, write_json
from verl_ext.run.hydra import register_verb
from verl_ext.run.models import check_model
from verl_ext.run.verb import Verb, after_noun, check_words, one_line_errors, run_verb, show_help
from verl_ext.run.visible import print
from verl_ext.tinker import parity
from verl_ext.tinker.parity_table import print_table
from verl_ext.tinker.sides import ParityConfig, check_tinker, gather

from . import CONFIGS, report, sft

register_verb("compare", ParityConfig)
RUN, HEADROOM = command.verbs(CONFIGS / "comparison")
VERB = Verb(
    "compare",
    doc=str(__doc__),
    settings={"": ParityConfig},
    noun="parity",
    beside={verb.noun: verb for verb in (RUN, HEADROOM, report.COMPARISON)},
    more="More: docs/sft.md.",
    errors=(ValueError, RuntimeError, FileNotFoundError),
)


def parse(arguments: list[str]) -> tuple[ParityConfig, list[str]]:
    """Our settings, and the overrides that are not ours. ValueError on what is neither."""
    ours: dict[str, str] = {}
    overrides: list[str] = []
    names = {field.name for field in fields(ParityConfig)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in names:
            ours[key] = value
        else:
            overrides.append(argument)
    check_words(sft.VERB, overrides)
    return ParityConfig(**ours), overrides


def compare_parity(config: ParityConfig, overrides: list[str]) -> bool:
    """Compare, report; returns whether every difference has an explanation."""
    check_writable("out", config.out)
    check_model("student", config.student)
    check_tinker(config.tinker_python or sys.executable)
    if config.conversations:
        from_jsonl(Path(config.conversations))
    with tempfile.TemporaryDirectory() as folder:
        tinker, ours = gather(config, overrides, CONFIGS, Path(folder))
    comparisons, versions = parity.compare(tinker, ours), tinker["versions"]
    print_table(comparisons)
    out = Path(config.out)
    result = parity.report(comparisons, versions) | {"config": asdict(config), "overrides": overrides}
    write_json(out, result)
    out.with_suffix(".md").write_text(parity.markdown(comparisons, versions))
    print(parity.markdown(comparisons, versions).splitlines()[0])
    print(f"{out} and {out.with_suffix('.md')} written")
    return result["ok"]


def main() -> None:
    if sys.argv[1:2] == [report.COMPARISON.noun]:
        report.main_of_comparison()
        return
    if (noun := sys.argv[1:2]) and noun[0] in VERB.beside:
        run_verb(VERB.beside[noun[0]], command.job(noun[0], str(__package__)))
        return
    words = after_noun(VERB, sys.argv[1:] or ["--help"])
    if {"--help", "-h"} & {*words}:
        show_help(VERB)
        return
    debug = "--debug" in words
    with one_line_errors(VERB, debug):
        ok = compare_parity(*parse([word for word in words if word != "--debug"]))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

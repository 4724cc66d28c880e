"""A run on one page: RUN/report.html, which opens from disk, and RUN/report.md.

    # on a CPU; of a run on GPUs the same
    python -m recipe.report outputs/demo/run
    python -m recipe.report outputs/demo/run --watch     # while it trains: a page that refreshes itself

Shown is what the run's folder holds; what is not there is named with the setting that keeps it.
"""

import sys
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from verl_ext.comparison.prices import read_prices
from verl_ext.report.arms import FILE
from verl_ext.report.blocks import Report
from verl_ext.report.comparison import comparison_report
from verl_ext.report.config import ReportConfig, words_of
from verl_ext.report.files import RunFiles
from verl_ext.report.single import report_of
from verl_ext.report.watch import serve
from verl_ext.report.written import write
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb, run_verb, words_of_files
from verl_ext.run.visible import print

from . import on_policy_distillation, sft

register_verb("report_page", ReportConfig)
VERB = Verb("report_page", doc=str(__doc__), settings={"": ReportConfig}, more="More: docs/report.md.")
COMPARISON = Verb(
    "report_page",
    doc="A comparison on one page: OUT/report.html and OUT/report.md.\n\n"
    "    # on a CPU; of runs on GPUs the same\n"
    "    python -m recipe.compare report outputs/comparison\n"
    "    python -m recipe.compare report outputs/comparison --watch\n",
    settings={"": ReportConfig},
    noun="report",
    more="More: docs/report.md.",
)


def departures_of(run: RunFiles) -> list[str] | str:
    """The overrides that a run's configuration stands for; why they are not known, where its keys are not today's."""
    if run.config is None:
        return "there is no config.yaml"
    verb = on_policy_distillation.VERB if run.on_policy else sft.VERB
    composing = GlobalHydra.instance()
    composing.hydra, ours = None, composing.hydra  # this verb's own, which is done
    try:
        return words_of_files(verb, [str(run.folder / "config.yaml")], [])
    except ValueError as error:
        return f"this version does not read its settings ({error})"
    finally:
        composing.hydra = ours


def pages_of(folder: Path, prices: str = "") -> Report:
    """The report of a run, or of a comparison. Raises ValueError where the folder holds neither."""
    if (folder / FILE).is_file():
        return comparison_report(folder, read_prices(Path(prices)) if prices else None)
    run = RunFiles(folder)
    return report_of(run, departures_of(run))


def write_report(folder: Path, prices: str = "") -> Path:
    """Write both files of a report; the page."""
    check_writable("run", str(folder), folder=True)
    write(pages_of(folder, prices), folder)
    return folder / "report.html"


def report(config: DictConfig) -> None:
    settings = settings_of(config, ReportConfig)
    folder = Path(settings.run).expanduser()
    print(f"{write_report(folder, settings.prices)} and {folder / 'report.md'} written", flush=True)
    if settings.watch:
        serve(folder, lambda: write(pages_of(folder, settings.prices), folder, live=True), settings.port)


def main() -> None:
    run_verb(VERB, report, words_of(sys.argv[1:]))


def main_of_comparison() -> None:
    """`compare report OUT`."""
    run_verb(COMPARISON, report, [COMPARISON.noun, *words_of(sys.argv[2:])])


if __name__ == "__main__":
    main()

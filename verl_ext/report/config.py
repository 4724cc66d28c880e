"""Settings of a report."""

from dataclasses import dataclass

from omegaconf import MISSING

from verl_ext.run.settings import within


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `recipe.report`."""

    run: str = MISSING
    """Folder of a run (run_dir) or of a comparison, finished or not; may be given without `run=`."""
    watch: bool = False
    """Serve the page to this machine alone, new whenever the folder's files change; `--watch` is the same."""
    port: int = 0
    """Of the server, in [0, 65535]; 0: a free one."""

    prices: str = ""
    """YAML of prices that you pay (docs/ledger.md), for the money of a comparison; empty: none."""

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65535)


def words_of(typed: list[str]) -> list[str]:
    """`--watch`, and the folder without its key, as overrides."""
    words = ["watch=true" if word == "--watch" else word for word in typed]
    return [f"run={word}" if word[:1] != "-" and "=" not in word else word for word in words]

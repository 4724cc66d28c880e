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

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65535)

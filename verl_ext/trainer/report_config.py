"""What a run keeps to be looked at later: the settings under `report`."""

from dataclasses import dataclass

from verl_ext.run.settings import within

MOST_ALTERNATIVES = 100


@dataclass(frozen=True)
class ReportConfig:
    """What a run keeps to be looked at (docs/metrics.md). No setting changes what is trained.

    keep_samples: held-out rows whose answers are kept at every validation, in `samples.jsonl` and in the loggers, >= 0;
        spread evenly over `data.val_files`. 0 keeps none.
    alternatives: the teacher's most likely tokens that are kept beside each token of them, in [0, 100].
    longest: characters that are kept of a prompt, of an answer and of a right answer each, >= 1.
    all_metrics: write verl's metrics that say nothing too (docs/metrics.md lists them).
    """

    keep_samples: int = 16
    alternatives: int = 5
    longest: int = 8000
    all_metrics: bool = False

    def __post_init__(self) -> None:
        within("report.keep_samples", self.keep_samples, 0, float("inf"))
        within("report.alternatives", self.alternatives, 0, MOST_ALTERNATIVES)
        within("report.longest", self.longest, 1, float("inf"))

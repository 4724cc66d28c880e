"""Every setting of the doctor, with its default, unit and range."""

from dataclasses import dataclass, field
from typing import NamedTuple

from verl_ext.run.settings import above
from verl_ext.teacher.config import TeacherConfig

SAMPLERS = ("vllm", "transformers")
REFERENCE_DTYPES = ("auto", "none", "float32", "bfloat16", "float16")


class Tolerance(NamedTuple):
    """How far two scorings of the same tokens may be apart, nats."""

    mean: float
    max: float


FP32 = Tolerance(mean=1e-5, max=1e-4)  # measured: 1e-6; one norm scaled by 1.001 gives 5e-3
BELOW_FP32 = Tolerance(mean=0.05, max=1.0)  # rounding of bfloat16 and FP8; a shift by one gives a mean above 1


@dataclass(frozen=True)
class DoctorConfig:
    """What the doctor looks at, and what it lets pass. The rest is the training configuration."""

    rows: int = 16
    """Rows of `data.train_files` that are sampled and scored, >= 1; tokens and lengths are checked in all rows."""
    repeats: int = 3
    """Times the same requests are scored for the noise floor, >= 2."""
    response_tokens: int = 128
    """Longest answer sampled, tokens, >= 1; never more than `data.max_response_length`."""
    sampler: str = "vllm"
    """Who samples the student: `vllm` as in training, or `transformers` (no start-up, slow on large models)."""
    seed: int = 0
    """Of the sampler and of the order of repeated requests, >= 0."""
    record: str = ""
    """Record of the teacher: written where the file is missing, compared with where it exists; empty: neither."""
    out: str = "doctor.json"
    """File for all numbers and the full prompts."""
    report: bool = False
    """Print what a bug report needs in place of the table (`--report`); no engine is started."""
    transformers_max_bytes: int = field(default=4 * 2**30, metadata={"largest": 2**60})
    """Largest weights of a teacher that transformers loads for comparison, bytes, >= 0; 0 never loads any."""
    mean_nats: float | None = None
    """Mean difference allowed between two scorings of the same tokens, nats, > 0. None: 1e-5 for float32, 0.05 below
    that precision."""
    max_nats: float | None = None
    """The same for the greatest difference, > 0. None: 1e-4 for float32, 1.0 below that precision."""
    reference_dtype: str = "auto"
    """dtype of a second, not quantised server that the teacher's precision is compared with: `float32`, `bfloat16`,
    `float16`, or `none`. `auto`: bfloat16 for an FP8 teacher, else none."""
    reference_url: str = ""
    """Base URL of such a server that already runs; empty: one is started after the teacher has stopped."""
    max_sign_changes: float = 0.05
    """Share of tokens whose advantage may change its sign with the precision before the doctor warns, in [0, 1]."""

    def __post_init__(self) -> None:
        for key, least in (
            ("rows", 1),
            ("repeats", 2),
            ("response_tokens", 1),
            ("seed", 0),
            ("transformers_max_bytes", 0),
        ):
            if vars(self)[key] < least:
                raise ValueError(f"doctor.{key}={vars(self)[key]} must be >= {least}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"doctor.sampler={self.sampler} must be one of {', '.join(SAMPLERS)}")
        if self.reference_dtype not in REFERENCE_DTYPES:
            raise ValueError(
                f"doctor.reference_dtype={self.reference_dtype} must be one of {', '.join(REFERENCE_DTYPES)}"
            )
        for key in ("mean_nats", "max_nats"):
            if (value := vars(self)[key]) is not None:
                above(f"doctor.{key}", value, 0)
        if not 0 <= self.max_sign_changes <= 1:
            raise ValueError(f"doctor.max_sign_changes={self.max_sign_changes} must be in [0, 1]")

    def tolerance(self, teacher: TeacherConfig, sampler_dtype: str = "float32") -> Tolerance:
        """What is allowed at the precision of the teacher, and of the sampler it is compared with, where not set."""
        exact = teacher.dtype == sampler_dtype == "float32" and teacher.quantization is None
        usual = FP32 if exact else BELOW_FP32
        return Tolerance(
            usual.mean if self.mean_nats is None else self.mean_nats,
            usual.max if self.max_nats is None else self.max_nats,
        )

    def reference(self, teacher: TeacherConfig) -> str | None:
        """dtype of the server to compare the teacher's precision with; None for no comparison."""
        if self.reference_dtype == "auto":
            return "bfloat16" if teacher.quantization is not None or self.reference_url else None
        return None if self.reference_dtype == "none" else self.reference_dtype

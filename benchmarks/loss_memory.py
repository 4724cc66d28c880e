"""Peak memory and time of the direct losses, forward and backward, beside the naive form, verl's and TRL's.

python -m benchmarks.loss_memory --json loss_memory.json

Peak: at the real shape, 8,192 tokens x 151,936 entries, D = 2,560, top-64, bf16, chunks of 1,024 tokens. With CUDA, its
allocator's. Without, counted on meta tensors along the CUDA path: every storage that an operator returns, until it is
freed. Temporaries inside an operator are not seen, so a count is a lower bound; for the chunked form, at a reduced
shape on the CPU, a bar holds what the allocator really handed out to within 1.05 of the count.

Time: with CUDA at the real shape, else on one CPU thread at 128 tokens, D = 256, fp32; the bar allows for the logits
that the chunked form computes twice (4 products for 3).

The bound, which peaks may exceed by 1.2x, counts what a chunked loss cannot do without:
    from hidden states: hidden states + their gradient + weight + its gradient + ONE fp32 chunk (chunk x V x 4 bytes)
    from logits:        the same + the logits + their gradient, both in the logits' dtype

`TRL_PYTHON`, the interpreter of an environment with TRL 1.16.0, adds TRL's GKD loss and the chunked loss of its
DistillationTrainer. Both are over the whole vocabulary, so the teacher's head and hidden states (or logits) count too;
the second cannot run on meta tensors, so its peak is measured on CUDA only.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.arms.live_bytes import LiveBytes
from benchmarks.arms.runs import RUN_TIMEOUT_S, report
from verl_ext.method.chunked import chunked_from_logits, chunked_topk_divergence
from verl_ext.method.divergence import topk_divergence

TRL_PYTHON = os.environ.get("TRL_PYTHON", "")
BOUND_BAR = 1.2
VERL_BAR = 1.0
COUNT_BAR = 1.05
TIME_BAR = 1.5
ROUNDS = 3
KIND: dict[str, Any] = {"kind": "forward_kl", "mix": 0.0, "tail": True}


@dataclass(frozen=True)
class Shape:
    tokens: int
    hidden: int
    chunk_tokens: int
    dtype: torch.dtype
    vocabulary: int = 151_936
    topk: int = 64

    def bound(self, logits: bool) -> int:
        """Bytes of the bound in the module's docstring."""
        elements = 2 * (self.tokens + self.vocabulary) * self.hidden + 2 * logits * self.tokens * self.vocabulary
        return elements * self.dtype.itemsize + self.chunk_tokens * self.vocabulary * 4


REAL = Shape(tokens=8192, hidden=2560, chunk_tokens=1024, dtype=torch.bfloat16)
REDUCED = Shape(tokens=128, hidden=256, chunk_tokens=16, dtype=torch.float32)


@dataclass(frozen=True)
class Inputs:
    shape: Shape
    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    support_ids_NK: torch.Tensor
    teacher_logprobs_NK: torch.Tensor

    def logits(self) -> torch.Tensor:
        return F.linear(self.hidden_ND, self.weight_VD)


def make_inputs(shape: Shape, device: str) -> Inputs:
    """Random hidden states and head with gradients; a teacher with 0.9 of its mass in the support."""
    make = {"device": device, "dtype": shape.dtype}
    teacher_NK = torch.randn(shape.tokens, shape.topk, device=device).log_softmax(-1) + torch.log(torch.tensor(0.9))
    ids_K = torch.arange(shape.topk, device=device) * (shape.vocabulary // shape.topk)
    return Inputs(
        shape,
        torch.randn(shape.tokens, shape.hidden, **make).requires_grad_(),
        (torch.randn(shape.vocabulary, shape.hidden, **make) / shape.hidden**0.5).requires_grad_(),
        ids_K.repeat(shape.tokens, 1),
        teacher_NK,
    )


def chunked(x: Inputs) -> torch.Tensor:
    chunk = x.shape.chunk_tokens
    return chunked_topk_divergence(
        x.hidden_ND, x.weight_VD, x.support_ids_NK, x.teacher_logprobs_NK, chunk_tokens=chunk, **KIND
    ).divergence_N.sum()


def from_logits(x: Inputs) -> torch.Tensor:
    chunk = x.shape.chunk_tokens
    return chunked_from_logits(
        x.logits(), x.support_ids_NK, x.teacher_logprobs_NK, chunk_tokens=chunk, **KIND
    ).divergence_N.sum()


def naive(x: Inputs) -> torch.Tensor:
    return topk_divergence(x.logits(), x.support_ids_NK, x.teacher_logprobs_NK, **KIND).divergence_N.sum()


def verl(x: Inputs, in_chunks: bool) -> torch.Tensor:
    """verl's `forward_kl_topk`, with its own settings; `use_chunked_topk` is off by default there."""
    loss = import_module("verl.trainer.distillation.fsdp.losses").compute_forward_kl_topk
    settings = import_module("verl.workers.config").DistillationLossConfig(
        loss_mode="forward_kl_topk",
        topk=x.shape.topk,
        use_policy_gradient=False,
        use_chunked_topk=in_chunks,
        chunked_topk_chunk_size=x.shape.chunk_tokens,
    )
    offsets = torch.tensor([0, x.shape.tokens], device=x.hidden_ND.device)
    logprobs, ids = (
        torch.nested.nested_tensor_from_jagged(values, offsets) for values in (x.teacher_logprobs_NK, x.support_ids_NK)
    )
    found = loss(x.logits()[None], logprobs, ids, SimpleNamespace(distillation_loss=settings), "thd")
    return found["distillation_losses"].sum()


def teacher_of(x: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and head of a teacher of the student's size."""
    return torch.randn_like(x.hidden_ND), torch.randn_like(x.weight_VD)


def trl_gkd(x: Inputs) -> torch.Tensor:
    loss = import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    with torch.no_grad():
        teacher_logits_NV = F.linear(*teacher_of(x))
    return loss(x.logits()[None], teacher_logits_NV[None], beta=0.0, reduction="sum")


def trl_chunked(x: Inputs) -> torch.Tensor:
    function = import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    arguments = (x.hidden_ND, x.weight_VD, None, *teacher_of(x), None, 0.0, 1.0, 1.0, None, 1.0, None)
    return function.apply(*arguments)[0].sum()


FORMS: dict[str, Callable[[Inputs], torch.Tensor]] = {
    "chunked": chunked,
    "chunked_from_logits": from_logits,
    "naive": naive,
    "verl": lambda x: verl(x, in_chunks=False),
    "verl_chunked": lambda x: verl(x, in_chunks=True),
    "trl_gkd": trl_gkd,
    "trl_chunked": trl_chunked,
}
TRL_FORMS = tuple(name for name in FORMS if name.startswith("trl"))


def counted_peak(form: str, shape: Shape, device: str) -> int:
    """Peak bytes by count, inputs and gradients included."""
    with LiveBytes() as counter:
        FORMS[form](make_inputs(shape, device)).backward()
    return counter.peak


def cpu_allocator_peak(form: str, shape: Shape) -> int:
    """Peak bytes that PyTorch's CPU allocator handed out, inputs and gradients included."""
    profile: Any = torch.autograd.profiler.profile(profile_memory=True)
    with profile:
        FORMS[form](make_inputs(shape, "cpu")).backward()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def cuda_peak(form: str, shape: Shape) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    FORMS[form](make_inputs(shape, "cuda")).backward()
    return torch.cuda.max_memory_allocated()


def seconds(forms: list[str], shape: Shape, device: str) -> dict[str, float]:
    """Best of `ROUNDS` forward and backward passes, the forms in turn, so that a busy machine slows each."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(ROUNDS):
        for form in forms:
            x = make_inputs(shape, device)
            started = time.perf_counter()
            FORMS[form](x).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            best[form] = min(best[form], time.perf_counter() - started)
    return best


def peak(form: str) -> int | None:
    if torch.cuda.is_available():
        return cuda_peak(form, REAL)
    return None if form == "trl_chunked" else counted_peak(form, REAL, "meta")


def measure(forms: list[str]) -> list[dict[str, Any]]:
    timed = seconds(forms, REAL, "cuda") if torch.cuda.is_available() else seconds(forms, REDUCED, "cpu")
    return [{"form": form, "peak": peak(form), "seconds": timed[form]} for form in forms]


def measure_trl() -> list[dict[str, Any]]:
    """TRL's forms, measured in TRL's environment."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [TRL_PYTHON, "-m", "benchmarks.loss_memory", "--forms", *TRL_FORMS, "--json", file.name]
        subprocess.run(command, check=True, timeout=RUN_TIMEOUT_S, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())["rows"]


def show(rows: list[dict[str, Any]]) -> None:
    on_cuda = torch.cuda.is_available()
    how = "allocated" if on_cuda else "counted"
    table = Table(title=f"{REAL.tokens:,} tokens x {REAL.vocabulary:,}, D = {REAL.hidden}, top-{REAL.topk}, bf16")
    at = "same shape" if on_cuda else f"{REDUCED.tokens} tokens, D = {REDUCED.hidden}, fp32, CPU"
    for column in ("form", f"peak, GiB ({how})", "over its bound", f"seconds ({at})"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for row in rows:
        bound = REAL.bound(logits=row["form"] not in ("chunked", "trl_chunked"))
        shown = ("-", "-") if row["peak"] is None else (f"{row['peak'] / 2**30:.2f}", f"{row['peak'] / bound:.2f}")
        table.add_row(row["form"], *shown, f"{row['seconds']:.2f}")
    if not TRL_PYTHON:
        table.add_row("TRL", "not installed", "", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory and time of the direct losses")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    ours = [name for name in FORMS if name not in TRL_FORMS]
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=ours, help="what to measure in this environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.forms)
    if options.forms != ours:
        report(rows, [], options.json)
    rows += measure_trl() if TRL_PYTHON else []
    show(rows)
    peaks = {row["form"]: row["peak"] for row in rows}
    timed = {row["form"]: row["seconds"] for row in rows}
    verls = min(peaks["verl"], peaks["verl_chunked"])
    allocated, counted = cpu_allocator_peak("chunked", REDUCED), counted_peak("chunked", REDUCED, "cpu")
    print(f"chunked at the reduced shape: {allocated / 2**20:.1f} MiB allocated, {counted / 2**20:.1f} MiB counted")
    bars = [
        ("chunked_peak_over_bound", peaks["chunked"] / REAL.bound(logits=False), BOUND_BAR),
        ("chunked_from_logits_peak_over_bound", peaks["chunked_from_logits"] / REAL.bound(logits=True), BOUND_BAR),
        ("chunked_peak_over_verl", peaks["chunked"] / verls, VERL_BAR),
        ("chunked_from_logits_peak_over_verl", peaks["chunked_from_logits"] / verls, VERL_BAR),
        ("allocated_over_counted", allocated / counted, COUNT_BAR),
        ("chunked_seconds_over_naive", timed["chunked"] / timed["naive"], TIME_BAR),
    ]
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()

"""A checkpoint as folders that transformers, vLLM and SGLang load: a PEFT adapter, and the merged model.

    python -m verl_ext.student.export CHECKPOINT OUT    # any checkpoint of a run: OUT/student, and OUT/adapter
    python -m verl_ext.student.export CHECKPOINT OUT --push OWNER/NAME    # and to the hub, with their model cards

CHECKPOINT is `checkpoints/global_step_N` of an SFT run, `checkpoints/global_step_N/actor` of an on-policy one. The
model that it was trained from is in the run's config.yaml; `--base MODEL` says where it is now, if it was moved.

verl's own `verl.model_merger` rounds every weight to bf16; here a weight leaves as it was trained, and the merged
model in the dtype of the base.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard

from verl_ext.run.checkpoints import latest_step, step_of
from verl_ext.run.file_hashes import same_weights
from verl_ext.run.files import RESOLVED, replacing
from verl_ext.run.models import cached
from verl_ext.run.visible import print, visible
from verl_ext.student.gguf import TYPES, check_converter, write_gguf
from verl_ext.student.model_card import is_folder, write_cards
from verl_ext.student.push import repositories
from verl_ext.student.weights import note_largest_weight

LORA = "lora_train_meta.json"
"""verl's file of rank and alpha, in every checkpoint with adapters."""
HEAD = "lm_head"
PEFT_NAME = ".default."  # PEFT's name of the only adapter, which its files leave out


def check_checkpoint(checkpoint: Path) -> list[Path]:
    """The shards of a checkpoint of verl's, one file a rank.

    Raises:
        ValueError: if the folder holds no such checkpoint, or not all of it.
    """
    described = checkpoint / "fsdp_config.json"
    if not described.is_file():
        raise ValueError(
            f"{checkpoint}: no checkpoint of verl's (no fsdp_config.json); give global_step_N, or its folder actor"
        )
    ranks = json.loads(described.read_text())["world_size"]
    files = [checkpoint / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing: run_dir must be a folder that all nodes share")
    return files


def read_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of a checkpoint. Raises as `check_checkpoint` does."""
    files = check_checkpoint(checkpoint)
    shards = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    return {name: _whole([shard[name] for shard in shards]) for name in shards[0]}


def _whole(parts: list[Any]) -> torch.Tensor:
    """One tensor from its parts on every rank, in order; replicas after the first are left out."""
    first = parts[0]
    if not isinstance(first, DTensor):
        return first
    placement = first.placements[-1]
    shards = [part.to_local() for part in parts[: first.device_mesh.shape[-1]]]
    return torch.cat(shards, dim=placement.dim) if isinstance(placement, Shard) else shards[0]


def is_lora(checkpoint: Path) -> bool:
    """The checkpoint holds adapters beside, or instead of, a base."""
    return (checkpoint / LORA).is_file()


def export_adapter(checkpoint: Path, base: str, out: Path) -> None:
    """Write the LoRA weights of a checkpoint as the PEFT adapter folder `out`, which must not exist."""
    from peft import LoraConfig, TaskType

    state, meta = read_checkpoint(checkpoint), json.loads((checkpoint / LORA).read_text())
    adapter = {name.replace(PEFT_NAME, "."): tensor.contiguous() for name, tensor in state.items() if "lora_" in name}
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter})
    out.mkdir(parents=True)
    save_file(adapter, out / "adapter_model.safetensors", metadata={"format": "pt"})
    note_largest_weight(out)
    LoraConfig(
        r=meta["r"],
        lora_alpha=meta["lora_alpha"],
        target_modules=modules,
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(out))


def merged_model(base: str, adapter: Path) -> Any:
    """The base with the adapter merged into it, in fp32; the output head is untied where the adapter changes it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if HEAD in json.loads((adapter / "adapter_config.json").read_text())["target_modules"]:
        untie_head(model)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def whole_model(checkpoint: Path, base: str) -> Any:
    """The model of a checkpoint without adapters, in fp32."""
    from transformers import AutoModelForCausalLM

    state = read_checkpoint(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(state)
    return model


def save_model(model: Any, base: str, out: Path) -> None:
    """Write a model with the base's tokenizer into the folder `out`, in the base's dtype."""
    from transformers import AutoConfig, AutoTokenizer

    dtype = AutoConfig.from_pretrained(base).dtype
    model.to(dtype if isinstance(dtype, torch.dtype) else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    note_largest_weight(out)


def export_checkpoint(checkpoint: Path, base: str, out: Path) -> None:
    """Write `out/student`, the whole model, and for LoRA `out/adapter`; earlier ones are replaced.

    Raises:
        ValueError: if `checkpoint` is not a checkpoint.
    """
    with contextlib.ExitStack() as both_or_none:
        student = both_or_none.enter_context(replacing(out / "student"))
        if is_lora(checkpoint):
            adapter = both_or_none.enter_context(replacing(out / "adapter"))
            export_adapter(checkpoint, base, adapter)
            model = merged_model(base, adapter)
        else:
            model = whole_model(checkpoint, base)
        save_model(model, base, student)


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint; None where it was taken out of it."""
    return next((parent for parent in [*checkpoint.absolute().parents][:3] if (parent / RESOLVED).is_file()), None)


def base_of(checkpoint: Path, moved: str) -> str:
    """The model that a checkpoint was trained from, by the config.yaml of its run.

    `moved`: where it is now, or empty. An adapter merged over another model, such as the run's own student, is wrong.

    Raises:
        ValueError: if no config.yaml names it, or if `moved` is another model than the one named.
    """
    if (run_dir := run_of(checkpoint)) is None:
        if not moved:
            raise ValueError(f"{checkpoint}: no config.yaml above it names the model that was trained; give --base")
        return moved
    found = run_dir / RESOLVED
    trained = str(OmegaConf.load(found).student.path)
    if moved and Path(trained).is_dir() and not same_weights(cached(moved), trained):
        raise ValueError(f"--base {moved} is not the model that was trained, {trained} ({found}); leave --base out")
    return moved or trained


def export_and_push(options: argparse.Namespace) -> None:
    """What the command line asks for. Whether the hub would take it is asked first: an export may take minutes.

    Raises:
        ValueError: in one line, where the checkpoint, the base or the hub is not as it must be.
    """
    checkpoint, out = options.checkpoint, options.out
    if not options.push and (options.public or options.replace):
        raise ValueError("--public and --replace say how to push: add --push OWNER/NAME")
    base, run_dir = base_of(checkpoint, options.base), run_of(checkpoint)
    check_checkpoint(checkpoint)
    script = check_converter(options.converter) if options.gguf else None
    folders = ["student", *(["adapter"] if is_lora(checkpoint) else []), *(["gguf"] if script else [])]
    targets = {}
    if options.push:
        how = {"public": options.public, "replace": options.replace}
        targets = repositories(options.push, folders, **how)
        if run_dir is None:
            raise ValueError(
                f"--push {options.push}: {checkpoint} has no config.yaml above it for a model card; keep both"
            )
        if is_lora(checkpoint) and is_folder(base):
            print(f"note: the adapter names its base by a folder, {base}; --base OWNER/NAME names it for others")
    for target in targets.values():
        target.open()
    export_checkpoint(checkpoint, base, out)
    if script is not None:
        write_gguf(script, out / "student", options.gguf, out / "gguf")
    if run_dir is not None:
        write_cards(run_dir, out, step_of(checkpoint) or step_of(checkpoint.parent), base)
    for folder, target in targets.items():
        print(f"{out / folder} is at {target.upload(out / folder)}")


def link(name: Path, target: Path) -> None:
    """Point `name` at `target`, both below one run's folder, at once: a reader finds the old one or the new one."""
    with replacing(name) as new:
        new.symlink_to(target.resolve().relative_to(name.parent.resolve()))


def link_adapter(checkpoint: Path, base: str, run_dir: Path) -> Path:
    """Export a LoRA checkpoint of an on-policy run as its `adapter` and make it `run_dir/adapter`; the folder."""
    adapter = checkpoint / "adapter"
    with replacing(adapter) as part:
        export_adapter(checkpoint, base, part)
    link(run_dir / "adapter", adapter)
    return adapter


def link_merged(checkpoint: Path, base: str, run_dir: Path) -> None:
    """The same, and the merged model as `run_dir/student`. Takes the base's memory, in fp32."""
    merged = checkpoint / "merged"
    model = merged_model(base, link_adapter(checkpoint, base, run_dir))
    with replacing(merged) as part:
        save_model(model, base, part)
    link(run_dir / "student", merged)


def export_what_is_missing(config: DictConfig) -> None:
    """The merged student of a finished LoRA run that was stopped while it was exported."""

    checkpoints, run_dir = Path(config.trainer.default_local_dir), Path(config.run_dir)
    if (step := latest_step(checkpoints)) is not None:
        actor = checkpoints / f"global_step_{step}" / "actor"
        if (run_dir / "student").resolve().parent != actor.resolve():
            link_merged(actor, config.student.path, run_dir)


TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
"""`all-linear`, verl's default, is the first seven: PEFT leaves the output head out."""


def count_parameters(model_config: Any, rank: int, target_modules: Sequence[str] = TARGET_MODULES) -> int:
    """Parameters that a LoRA of `rank` trains on a model of this configuration; no memory is taken for it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(model_config)
        adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=list(target_modules)))
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def untie_head(model: Any) -> None:
    """Give the output head weights of its own, where it shares those of the input embedding.

    The adapter changes the head alone. Merged into a shared matrix, it would change the embedding too, and the
    merged model would be another one than the one trained.
    """
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, help="folder global_step_N of a run; of an on-policy run its folder actor"
    )
    parser.add_argument("out", type=Path, help="folder for student/ and adapter/")
    parser.add_argument(
        "--base", default="", help="the model that was trained, where it was moved since: folder or name"
    )
    parser.add_argument("--gguf", nargs="+", choices=TYPES, help="also gguf/student-TYPE.gguf, for llama.cpp")
    parser.add_argument("--converter", type=Path, help="with --gguf: llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload student/ to the hub, adapter/ and gguf/ as OWNER/NAME-...; private"
    )
    parser.add_argument("--public", action="store_true", help="with --push: for anybody to read")
    parser.add_argument("--replace", action="store_true", help="with --push: over what the repository holds")
    options = parser.parse_args()
    try:
        export_and_push(options)
    except ValueError as error:
        parser.exit(1, visible(f"error: {error}\n"))


if __name__ == "__main__":
    main()

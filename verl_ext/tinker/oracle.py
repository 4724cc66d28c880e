"""Run Tinker's prompt distillation, as installed, against a service that only takes notes; print the notes as JSON.

    python oracle.py < request.json > notes.json

For tinker-cookbook 0.6.1. A process of its own, in another environment where `tinker_python` names one: imports nothing
of ours. No network, no key: the service's classes are replaced, everything else is the packages' own code. Keys of the
request: `conversations` (JSONL), `tokenizer` (folder), `renderer`, `lora_model` (a model whose adapter Tinker knows the
size of), `answers` (texts to read labels from).
"""

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self


class Done:
    """A future that has its result: what the cookbook awaits."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self.result


class NotingTrainingClient:
    """Takes what Tinker's training loop sends."""

    def __init__(self, tensor_data: Any) -> None:
        self.tensor_data = tensor_data
        self.batches: list[list[Any]] = []
        self.loss_functions: list[str] = []
        self.adam: list[dict[str, Any]] = []
        self.saves: list[dict[str, Any]] = []

    def forward_backward(self, data: list[Any], loss_fn: str) -> Done:
        self.batches.append(data)
        self.loss_functions.append(loss_fn)
        lengths = [datum.model_input.length for datum in data]
        zeros = [self.tensor_data(data=[0.0] * n, dtype="float32", shape=[n]) for n in lengths]
        return Done(SimpleNamespace(loss_fn_outputs=[{"logprobs": logprobs} for logprobs in zeros]))

    def optim_step(self, adam_params: Any) -> Done:
        self.adam.append(adam_params.model_dump())
        return Done(SimpleNamespace(metrics=None))

    def save_state(self, name: str, ttl_seconds: int | None = None) -> Done:
        del ttl_seconds
        self.saves.append({"name": name, "updates": len(self.adam)})
        return Done(SimpleNamespace(path=f"tinker://notes/{name}"))

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> Done:
        del ttl_seconds
        return Done(SimpleNamespace(path=f"tinker://notes/sampler/{name}"))


def train(request: dict[str, Any]) -> dict[str, Any]:
    """What the recipe's command line sends to the service, from the first request to the last."""
    tinker: Any = importlib.import_module("tinker")
    chz = importlib.import_module("chz")
    cookbook = importlib.import_module("tinker_cookbook.recipes.prompt_distillation.train")
    signature = inspect.signature(tinker.ServiceClient.create_lora_training_client)
    client = NotingTrainingClient(tinker.TensorData)
    adapter: dict[str, Any] = {}

    class NotingServiceClient:
        def __init__(self, **_: Any) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def create_lora_training_client(self, *args: Any, **kwargs: Any) -> Done:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            adapter.update({key: bound.arguments[key] for key in signature.parameters if key != "self"})
            return Done(client)

    tinker.ServiceClient = NotingServiceClient
    loop: Any = importlib.import_module("tinker_cookbook.supervised.train")
    loop.fetch_model_pricing = lambda _: None  # it would ask a web page what the run costs
    defaults = chz.asdict(cookbook.CLIConfig())
    with tempfile.TemporaryDirectory() as folder:
        cookbook.cli_main(
            cookbook.CLIConfig(
                file_path=request["conversations"],
                log_path=str(Path(folder) / "log"),
                model_name=request["tokenizer"],
                renderer_name=request["renderer"],
            )
        )
    rows = len(Path(request["conversations"]).read_text(encoding="utf-8").splitlines())
    return {
        "cli": {key: value for key, value in defaults.items() if isinstance(value, str | int | float | None)},
        "rows": rows,
        "batch_sizes": sorted({len(batch) for batch in client.batches}),
        "adapter": {key: value for key, value in adapter.items() if key not in ("base_model", "user_metadata")},
        "loss_functions": sorted(set(client.loss_functions)),
        "adam": client.adam,
        "saves": client.saves,
        "first_batch": [example(datum) for datum in client.batches[0]],
        "batches": [digest([example(datum) for datum in batch]) for batch in client.batches],
    }


def example(datum: Any) -> dict[str, Any]:
    """A training example before the shift by one: all its tokens, and the weight with which each is predicted."""
    targets = list(datum.loss_fn_inputs["target_tokens"].data)
    first = datum.model_input.to_ints()[0]
    return {"ids": [first, *targets], "weights": [0.0, *datum.loss_fn_inputs["weights"].data]}


def digest(batch: list[dict[str, Any]]) -> str:
    """Fingerprint of a batch's tokens, which of them are trained, and the order of its examples."""
    content = [[e["ids"], [i for i, weight in enumerate(e["weights"]) if weight > 0]] for e in batch]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pick(prompt: list[int], choices: int) -> int:
    """Which of the request's answers a prompt gets."""
    return zlib.crc32(json.dumps(prompt).encode()) % choices


def create_data(request: dict[str, Any]) -> dict[str, Any]:
    """What the recipe's label generation sends for its sentences, and the file that it writes."""
    cookbook = importlib.import_module("tinker_cookbook.recipes.prompt_distillation.create_data")
    renderers = importlib.import_module("tinker_cookbook.renderers")
    tokenizers = importlib.import_module("tinker_cookbook.tokenizer_utils")
    package = Path(importlib.import_module("tinker_cookbook").__file__ or "").parent
    tokenizer = tokenizers.get_tokenizer(request["tokenizer"])
    renderer = renderers.get_renderer(request["renderer"], tokenizer)
    asked: list[tuple[list[int], dict[str, Any], int]] = []
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in request["answers"]]

    class NotingSamplingClient:
        async def sample(self, prompt: Any, sampling_params: Any, num_samples: int) -> Any:
            ids = prompt.to_ints()
            asked.append((ids, sampling_params.model_dump(), num_samples))
            return SimpleNamespace(sequences=[SimpleNamespace(tokens=answers[pick(ids, len(answers))])])

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(package.parent):  # it reads a relative path
        out = Path(folder) / "conversations.jsonl"
        config = cookbook.Config(output_file=str(out))
        asyncio.run(cookbook.create_data_async(config, NotingSamplingClient(), tokenizer, renderer))
        lines = out.read_text(encoding="utf-8").splitlines()
    prompts = sorted(prompt for prompt, _, _ in asked)
    kinds = {json.dumps([params, n], sort_keys=True) for _, params, n in asked}
    assert len(kinds) == 1, "all sentences are sampled alike"
    params, samples = json.loads(kinds.pop())
    return {
        "sampling": params | {"num_samples": samples},
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        # It writes in the order of completion: sorted, so that the rows can be compared.
        "lines": len(lines),
        "lines_sha256": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest(),
    }


def constants(request: dict[str, Any]) -> dict[str, Any]:
    """What needs no run."""
    adapters = importlib.import_module("tinker_cookbook.hyperparam_utils")
    models = importlib.import_module("tinker_cookbook.model_info")
    defaults = inspect.signature(adapters.get_lora_lr_over_full_finetune_lr).parameters
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("tinker-cookbook", "tinker")},
        "lora_parameters": adapters.get_lora_param_count(request["lora_model"], request["lora_rank"]),
        "lora_alpha_elsewhere": defaults["lora_alpha"].default,
        "loss_as_the_client_says": loss_as_the_client_says(),
        "lora_model": request["lora_model"],
        "renderer_of_model": models.get_recommended_renderer_name(request["lora_model"]),
    }


def loss_as_the_client_says() -> str | None:
    """What the client's source says of the loss that the service computes, which no code of the packages shows."""
    client = importlib.import_module("tinker.lib.public_interfaces.training_client")
    found = re.search(r"Backend CE is (L = [^,\n]*)", inspect.getsource(client))
    return found.group(1) if found else None


def main() -> None:
    request = json.load(sys.stdin)
    # The recipe prints; standard output is ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.redirect_stdout(sys.stderr):
        training = train(request)
        request["lora_rank"] = training["adapter"]["rank"]
        notes = constants(request) | {"train": training, "create_data": create_data(request)}
    json.dump(notes, sys.stdout)


if __name__ == "__main__":
    main()

"""Log-probs of one engine, in a process of its own: `python score_with.py ENGINE REQUEST.json ANSWER.json`.

`vllm` samples the responses and says their log-probs, as in training; `actor` is verl's FSDP2 worker, `exact` is
transformers in fp32 and `rounded` the same in the engines' dtype, all on the responses that REQUEST holds. Nats.
"""

import json
import sys
from pathlib import Path
from typing import Any

Request = dict[str, Any]
"""model, device, dtype, words (of the training command), prompts and responses (ids), and for sampling: length (tokens,
at most), ignore_eos."""


def vllm(request: Request) -> dict[str, Any]:
    from verl_ext.sampling.vllm import prepare_engine_environment

    prepare_engine_environment()
    from vllm import LLM, SamplingParams, TokensPrompt

    from verl_ext.sampling.vllm import close

    engine = LLM(
        model=request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        generation_config="vllm",
        seed=0,
    )
    limits = {"max_tokens": request["length"], "ignore_eos": request["ignore_eos"]}
    params = SamplingParams(temperature=1.0, logprobs=0, **limits)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    outputs = [output.outputs[0] for output in engine.generate(prompts, params, use_tqdm=False)]
    close(engine)
    return {
        "responses": [list(output.token_ids) for output in outputs],
        "logprobs": [
            [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
            for output in outputs
        ],
    }


def actor(request: Request) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from verl_ext.checks.schemas import prepare_training_configs
    from verl_ext.run.settings import mapping_of
    from verl_ext.sft.environment import prepare_environment

    prepare_training_configs()
    with initialize_config_dir(str(Path("configs").resolve()), version_base=None):
        words = ["data.train_files=-", "data.val_files=-", f"student.path={request['model']}", *request["words"]]
        config = compose("on_policy_distillation", words)
    OmegaConf.resolve(config)
    prepare_environment(mapping_of(config.ray_kwargs.ray_init.runtime_env.env_vars))

    import torch
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.utils.padding import no_padding_2_padding

    config.actor_rollout_ref.actor.optim.total_training_steps = 1
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    prompts, responses = ([torch.tensor(ids) for ids in request[key]] for key in ("prompts", "responses"))
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    mask = [torch.ones_like(ids) for ids in responses]
    fields = {"prompts": prompts, "responses": responses, "input_ids": whole, "response_mask": mask, "loss_mask": mask}
    fields["position_ids"] = [torch.arange(len(ids)) for ids in whole]
    nested = {key: torch.nested.as_nested_tensor(value, layout=torch.jagged) for key, value in fields.items()}
    asked = {"calculate_entropy": False, "compute_loss": False, "temperature": 1.0}
    batch = tu.get_tensordict(nested, non_tensor_dict=asked)
    logprobs_BT = no_padding_2_padding(worker.compute_log_prob(batch)["log_probs"], batch)
    return {"logprobs": [row.tolist()[: len(ids)] for row, ids in zip(logprobs_BT.float(), responses, strict=True)]}


def exact(request: Request) -> dict[str, Any]:
    return rounded(request | {"dtype": "float32"})


def rounded(request: Request) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, request["dtype"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype).to(request["device"])
    found = []
    with torch.no_grad():
        for prompt, response in zip(request["prompts"], request["responses"], strict=True):
            ids_T = torch.tensor([prompt + response], device=request["device"])
            rows_TV = model(ids_T).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            found.append(rows_TV.gather(1, ids_T[0, len(prompt) :, None])[:, 0].tolist())
    return {"logprobs": found}


if __name__ == "__main__":
    engine, source, target = sys.argv[1:]
    score = {"vllm": vllm, "actor": actor, "exact": exact, "rounded": rounded}[engine]
    answer = score(json.loads(Path(source).read_text()))
    Path(target).write_text(json.dumps(answer))

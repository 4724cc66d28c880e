"""The rules of the comparison on small notes; `tests/integration/test_parity.py` has the real ones."""

import copy

import pytest

from recipe.compare import parse
from verl_ext.tinker import parity
from verl_ext.tinker.oracle import digest, pick
from verl_ext.tinker.sides import ParityConfig, default_conversations

ROW = {"ids": [1, 2, 3], "weights": [0.0, 0.5, 0.5]}
BATCHES = [digest([ROW, ROW]), digest([ROW]), digest([])]


def adam(rate: float) -> dict:
    return {
        "learning_rate": rate,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "grad_clip_norm": 0.0,
    }


TINKER = {
    "versions": {"tinker-cookbook": "0.0.1"},
    "lora_model": "owner/model",
    "lora_parameters": 100,
    "lora_alpha_elsewhere": 32,
    "loss_as_the_client_says": "L = sum",
    "renderer_of_model": "plain",
    "create_data": {
        "sampling": {"temperature": 0.1, "max_tokens": 9, "top_p": 1, "top_k": -1, "stop": [2], "seed": None},
        "prompts": 3,
        "prompts_sha256": "aaaa",
        "lines": 2,
        "lines_sha256": "bbbb",
    },
    "train": {
        "cli": {"num_epochs": 1, "max_length": 8, "save_every": 2, "model_name": "owner/model"},
        "rows": 6,
        "batch_sizes": [2],
        "adapter": {"rank": 4, "train_attn": True, "train_mlp": True, "train_unembed": True},
        "loss_functions": ["cross_entropy"],
        "adam": [adam(3e-4), adam(2e-4), adam(1e-4)],
        "saves": [{"name": "000001", "updates": 3}, {"name": "final", "updates": 3}],
        "first_batch": [ROW, ROW],
        "batches": BATCHES,
    },
}
OURS = {
    "create_data": TINKER["create_data"] | {"sampling": TINKER["create_data"]["sampling"] | {"seed": 0}},
    "train": {
        "renderer": "plain",
        "rows": 6,
        "batch_size": 2,
        "epochs": 1,
        "max_length": 8,
        "first_batch": [ROW, ROW],
        "batches": BATCHES,
        "learning_rates": [3e-4, 2e-4, 1e-4],
        "betas": [0.9, 0.95],
        "eps": 5e-9,
        "weight_decay": 0.0,
        "clip_grad": float("inf"),
        "loss_at_one_nat": 1.0,
        "lora_rank": 4,
        "lora_alpha": 32,
        "lora_seed": 0,
        "adapted": {"train_attn": True, "train_mlp": True, "train_unembed": True},
        "lora_parameters": 100,
        "dtypes": {"base": "torch.float32", "adapters": "torch.float32"},
        "save_every": 2,
        "saves": [2, 3],
    },
}


def test_the_same_recipe_has_no_unexplained_difference():
    found = parity.compare(TINKER, OURS)
    assert all(c.ok for c in found)
    assert {c.name for c in found if c.status == parity.DIFFERS} == {
        "seed",
        "eps",
        "gradient clipping",
        "updates in each checkpoint",
        "default model",
    }
    assert {c.name for c in found if c.status == parity.UNKNOWABLE} == {
        "loss of a batch at log-probs of -1",
        "alpha",
        "first weights",
        "dtypes",
    }
    assert all(c.reason for c in found if c.status != parity.MATCH)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("betas", [0.9, 0.999], "betas"),
        ("eps", 1e-8, "eps"),  # the same number is another step, as our loss is the sum divided by 2
        ("loss_at_one_nat", 2.0, "eps"),  # a sum would need Tinker's own eps
        ("weight_decay", 0.01, "weight decay"),
        ("clip_grad", 1.0, "gradient clipping"),
        ("learning_rates", [3e-4, 2e-4, 1.01e-4], "learning rate, 3 steps (0, 1, last)"),
        ("learning_rates", [3e-4, 2e-4], "learning rate, 3 steps (0, 1, last)"),
        ("lora_rank", 8, "rank"),
        ("lora_parameters", 99, "parameters on owner/model"),
        ("adapted", {"train_attn": True, "train_mlp": True, "train_unembed": False}, "train_unembed"),
        ("batches", [BATCHES[1], BATCHES[0], BATCHES[2]], "batches with these rows in this order"),
        ("first_batch", [ROW, ROW | {"weights": [0.0, 1.0, 1.0]}], "first batch, rows with these loss weights"),
        ("first_batch", [ROW | {"ids": [1, 2, 4]}, ROW], "first batch, rows with these token ids"),
        ("save_every", 3, "save every, steps"),
        ("saves", [2], "updates in each checkpoint"),
    ],
)
def test_a_changed_value_of_ours_is_found(key, value, name):
    changed = copy.deepcopy(OURS)
    changed["train"][key] = value
    assert [c.name for c in parity.compare(TINKER, changed) if not c.ok] == [name]


def test_a_value_that_changes_over_the_steps_is_found():
    changed = copy.deepcopy(TINKER)
    changed["train"]["adam"][2]["weight_decay"] = 0.1
    (found,) = [c for c in parity.compare(changed, OURS) if not c.ok]
    assert (found.name, found.tinker, found.ours) == ("weight decay", "0, 0.1", "0")


def test_alpha_never_matches():
    for alpha in (16, 32):
        ours = OURS | {"train": OURS["train"] | {"lora_alpha": alpha}}
        (found,) = [c for c in parity.compare(TINKER, ours) if c.name == "alpha"]
        assert found.status == parity.UNKNOWABLE


def test_reports():
    found = parity.compare(TINKER, OURS)
    table = parity.markdown(found, TINKER["versions"])
    assert table.startswith(f"Against tinker-cookbook 0.0.1, as installed: {len(found) - 9} match, 5 differs, 4 unkn")
    assert len(table.splitlines()) == 4 + len(found)
    report = parity.report(found, TINKER["versions"])
    assert report["ok"] is True
    assert len(report["comparisons"]) == len(found)
    bad = parity.same("a", "b", 1, 2)
    assert parity.report([*found, bad], {})["ok"] is False
    assert "| a | b | 1 | 2 | differs | ? |" in parity.markdown([bad], {})


def test_digest_sees_tokens_masks_and_order():
    other = {"ids": [1, 2, 3], "weights": [0.0, 0.0, 1.0]}
    assert digest([ROW]) == digest([ROW | {"weights": [0.0, 0.25, 0.75]}])  # weights are compared in the first batch
    assert len({digest([ROW]), digest([other]), digest([ROW, other]), digest([other, ROW])}) == 4
    assert {pick([i], 3) for i in range(20)} == {0, 1, 2}


def test_arguments():
    config, overrides = parse(["out=a/b.json", "preset=seed", "optim.lr=1e-3"])
    assert config == ParityConfig(out="a/b.json")
    assert overrides == ["preset=seed", "optim.lr=1e-3"]
    with pytest.raises(ValueError, match="expected key=value"):
        parse(["seed"])


def test_default_rows_are_tinkers_2100():
    lines = default_conversations().decode().splitlines()
    assert len(lines) == 2100
    assert lines[2099].endswith('"content": "ot"}]}')

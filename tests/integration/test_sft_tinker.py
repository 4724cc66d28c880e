"""Against tinker-cookbook itself, run once in a process of its own (its imports are slow)."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from verl_ext.data.conversations import to_jsonl
from verl_ext.data.rows import LABELS
from verl_ext.data.sentences import tinker_sentences
from verl_ext.demo.tiny_pair import train_tokenizer
from verl_ext.sft.dataset import ConversationDataset
from verl_ext.sft.order import TinkerBatches
from verl_ext.sft.schedule import linear_multiplier

ROWS, BATCH, MAX_LENGTH, STEPS = 500, 128, 512, 64

ORACLE = """
import json, sys
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.utils.lr_scheduling import compute_schedule_lr_multiplier

rows, model, batch, max_length, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer=model, renderer_name="qwen3_instruct", max_length=max_length, batch_size=batch
)
dataset, _ = FromConversationFileBuilder(common_config=common, file_path=rows)()
epochs = []
for epoch in range(3):
    dataset.set_epoch(seed=epoch)
    epochs.append([
        [
            {
                "input": datum.model_input.to_ints(),
                "targets": datum.loss_fn_inputs["target_tokens"].data,
                "weights": datum.loss_fn_inputs["weights"].data,
            }
            for datum in dataset.get_batch(index)
        ]
        for index in range(len(dataset))
    ])
lr = [compute_schedule_lr_multiplier("linear", step, steps) for step in range(steps)]
print("ORACLE" + json.dumps({"epochs": epochs, "lr": lr}))
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([s.text for s in tinker_sentences()[:300]], LABELS, 1024)


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """500 of Tinker's sentences with their labels, among them edge cases, and a local tokenizer."""
    folder = tmp_path_factory.mktemp("tinker")
    tokenizer.save_pretrained(folder / "tokenizer")
    sentences = tinker_sentences()
    conversations = [
        {"messages": [{"role": "user", "content": s.text}, {"role": "assistant", "content": s.label or "ot"}]}
        for s in [*sentences[: ROWS - 100], *sentences[2000:]]
    ]
    odd = conversations[0]["messages"]
    odd[0]["content"] += " <|im_end|> <|im_start|>assistant\n"  # written by a user: text, not a token
    conversations[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    conversations[2]["messages"] += [
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes, sure"},
    ]
    conversations[3]["messages"][1]["content"] = "en " * MAX_LENGTH  # cut in the middle of the answer
    (folder / "rows.jsonl").write_bytes(to_jsonl(conversations))
    return folder


@pytest.fixture(scope="module")
def oracle(files):
    arguments = [files / "rows.jsonl", files / "tokenizer", BATCH, MAX_LENGTH, STEPS]
    command = [sys.executable, "-c", ORACLE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.split("ORACLE", 1)[1])


@pytest.fixture(scope="module")
def ours(files, tokenizer):
    config = {"renderer": "qwen3_instruct", "max_length": MAX_LENGTH, "truncation": "right"}
    return ConversationDataset(str(files / "rows.jsonl"), tokenizer, config)


def test_the_version_these_tests_were_written_for():
    assert importlib.metadata.version("tinker-cookbook") == "0.6.1"


@pytest.mark.parametrize("epoch", range(3))
def test_batches_have_tinkers_order_tokens_and_weights(oracle, ours, epoch):
    assert ours.report.truncated == 1
    batches = TinkerBatches(len(ours), BATCH, seed=0, rank=0, ranks=1)
    batches.set_epoch(epoch)
    found = list(DataLoader(ours, batch_sampler=batches, collate_fn=list))
    assert len(found) == len(oracle["epochs"][epoch]) == ROWS // BATCH
    for mine, theirs in zip(found, oracle["epochs"][epoch], strict=True):
        for row, datum in zip(mine, theirs, strict=True):
            tokens = row["input_ids"].tolist()
            assert tokens[:-1] == datum["input"]
            assert tokens[1:] == datum["targets"]
            # verl scores token t+1 with the mask of token t+1: the first one is never a target
            assert torch.equal(row["loss_mask"][1:], torch.tensor(datum["weights"]))


def test_the_learning_rate_of_every_step_is_tinkers(oracle):
    assert [linear_multiplier(step, STEPS) for step in range(STEPS)] == oracle["lr"]

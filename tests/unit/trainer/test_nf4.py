"""A base in 4 bits: rounded to the nearest level of its block, and else the layer that it was."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from verl_ext.trainer.nf4 import BLOCK, LEVELS, NF4Linear, freeze_in_4_bits, pack, unpack

IDS = torch.tensor([[1, 7, 20, 33, 5, 6]])
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(**shape, num_key_value_heads=1, head_dim=16, vocab_size=50))


def adapted(model, targets=TARGETS):
    found = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=list(targets)))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    return found


def rounded(model):
    """The same model with every adapted weight at its nearest level, in ordinary layers."""
    for module in model.modules():
        if hasattr(module, "base_layer"):
            weight = module.base_layer.weight
            weight.data = unpack(*pack(weight), tuple(weight.shape), weight.dtype)
    return model


def trained(model):
    """Log-probs, and the gradient of each parameter that has one."""
    model.zero_grad()
    logprobs = model(input_ids=IDS).logits.log_softmax(-1)
    logprobs[:, :-1].gather(-1, IDS[:, 1:, None]).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_levels_of_a_block_come_back_as_they_are_two_to_a_byte():
    block = torch.tensor(LEVELS).repeat(4) * 3
    weight = torch.stack([block, -2 * block.flip(0)])
    codes, scales = pack(weight)
    assert codes[:3].tolist() == [0x01, 0x23, 0x45]
    assert (codes.dtype, codes.numel(), scales.tolist()) == (torch.uint8, BLOCK, [3.0, 6.0])
    assert torch.equal(unpack(codes[:32], scales[:1], (1, BLOCK), torch.float32)[0], block)


def test_each_weight_goes_to_the_nearest_level_of_its_own_block():
    weight = torch.randn(8, 2 * BLOCK, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [5.0]] * 4)
    found = unpack(*pack(weight), (8, 2 * BLOCK), torch.float32)
    blocks = weight.reshape(-1, BLOCK)
    choices = blocks.abs().amax(1)[:, None, None] * torch.tensor(LEVELS)
    nearest = (choices - blocks[..., None]).abs().argmin(-1, keepdim=True)
    assert torch.equal(found.reshape(-1, BLOCK), choices.expand(*blocks.shape, -1).gather(-1, nearest)[..., 0])
    assert torch.equal(unpack(*pack(found), (8, 2 * BLOCK), torch.float32), found)


def test_a_block_of_zeros_stays_one():
    assert torch.equal(
        unpack(*pack(torch.zeros(2, BLOCK)), (2, BLOCK), torch.bfloat16), torch.zeros(2, BLOCK).bfloat16()
    )


def test_a_weight_that_no_block_divides_is_refused():
    with pytest.raises(ValueError, match=r"a weight of \(3, 21\) has no multiple of 64 elements; use update=lora"):
        pack(torch.ones(3, 21))


def test_a_rank_that_waits_for_the_weights_has_room_for_them():
    """verl makes the model on `meta` there, and sends every buffer from rank 0."""
    with torch.device("meta"):
        layer = NF4Linear(nn.Linear(128, 32))
    there = dict(NF4Linear(nn.Linear(128, 32)).named_buffers())
    assert {name: (b.shape, b.dtype) for name, b in layer.named_buffers()} == {
        n: (b.shape, b.dtype) for n, b in there.items()
    }


def test_log_probs_and_gradients_are_those_of_the_rounded_base(model):
    found, gradients = trained(quantized := adapted(model))
    assert freeze_in_4_bits(quantized) == 14
    found, gradients = trained(quantized)
    wanted, expected = trained(rounded(adapted(model)))
    torch.testing.assert_close(found, wanted)
    assert len(gradients) == 2 * 14
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
    whole, _ = trained(adapted(model))
    assert 1e-4 < (whole - found).abs().max() < 0.5  # it is another base, and not by much


def test_a_bias_stays_as_it_was():
    linear = nn.Linear(BLOCK, 3)
    layer = NF4Linear(linear)
    zero = torch.zeros(2, BLOCK)
    assert torch.equal(layer(zero), linear.bias.expand(2, -1))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_no_whole_weight_is_kept_for_the_backward_pass():
    layer, kept = NF4Linear(nn.Linear(128, 256, bias=False)), []
    inputs = torch.randn(2, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(inputs).sum().backward()
    assert sum(tensor.nbytes for tensor in kept) == 128 * 256 * 4.5 / 8
    assert inputs.grad is not None


def test_a_checkpoint_holds_none_of_it(model):
    quantized = adapted(model)
    freeze_in_4_bits(quantized)
    names = quantized.state_dict()
    assert not [name for name in names if "codes" in name or "scales" in name or "proj.base_layer" in name]
    assert len([name for name in names if "lora_" in name]) == 28


def test_what_cannot_be_put_into_4_bits_is_refused(model):
    with pytest.raises(ValueError, match="an adapter is on a Embedding: use update=lora"):
        freeze_in_4_bits(adapted(model, ["embed_tokens"]))
    with pytest.raises(ValueError, match="found no layer with an adapter"):
        freeze_in_4_bits(copy.deepcopy(model))

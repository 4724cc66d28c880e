"""Each check of the doctor passes what is right and names what is wrong."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from verl_ext.checks import agreement
from verl_ext.checks.agreement import (
    PrecisionGap,
    judge_noise,
    judge_precision,
    judge_probe,
    judge_self_kl,
    precision_gap,
    reverse_kl,
    shifted_difference,
)
from verl_ext.checks.config import BELOW_FP32, FP32, DoctorConfig
from verl_ext.checks.diagnose import record_of
from verl_ext.checks.finding import FAIL, OK, WARN, Finding, print_table, report
from verl_ext.checks.machine import memory_finding
from verl_ext.checks.record import judge_record
from verl_ext.checks.reference import Rollout
from verl_ext.checks.tokens import (
    check_rendered,
    check_same_tokenizer,
    check_templates,
    check_think_tokens,
    check_vocabulary,
    first_difference,
)
from verl_ext.checks.trials import Speed, repeated, speed_finding
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.store.fingerprint import TeacherFingerprint
from verl_ext.teacher.store.probe_record import ProbeRecord
from verl_ext.teacher.types import Score

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n{% endfor %}answer:"
ROWS = [{"prompt": [{"role": "user", "content": "a"}], "teacher_messages": [{"role": "user", "content": "b a"}]}]
WORDS = ["?", "a", "b"]


def tokenizer(vocabulary: list[str], template: str = TEMPLATE, **special) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="?"))
    built = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    built.chat_template = template
    return built


def test_two_ids_swapped_are_named():
    check_same_tokenizer(tokenizer(WORDS), tokenizer(WORDS))
    message = r"2 tokens differ, first 'a' \(student id 1, teacher id 2\); the teacher must share"
    with pytest.raises(ValueError, match=message):
        check_same_tokenizer(tokenizer(WORDS), tokenizer(["?", "b", "a"]))


def test_special_tokens_that_differ():
    with pytest.raises(ValueError, match=r"student\.path and teacher\.model_path have different special tokens"):
        check_same_tokenizer(tokenizer(WORDS, eos_token="a"), tokenizer(WORDS, eos_token="b"))


def test_another_template_is_shown_at_its_first_differing_line():
    other = tokenizer(WORDS, TEMPLATE.replace("answer:", "reply:"))
    finding = check_templates(tokenizer(WORDS), other, ROWS, {})
    assert finding.verdict == FAIL
    assert finding.seen == "row 0 prompt, line 3: student 'answer:', teacher 'reply:'"


def test_templates_that_render_alike_are_a_warning_and_none_is_an_error():
    alike = tokenizer(WORDS, TEMPLATE + "{# a comment #}")
    assert check_templates(tokenizer(WORDS), tokenizer(WORDS), ROWS, {}).verdict == OK
    assert check_templates(tokenizer(WORDS), alike, ROWS, {}).verdict == WARN
    none = check_templates(tokenizer(WORDS), tokenizer(WORDS, ""), ROWS, {})
    assert (none.verdict, none.seen) == (FAIL, "the teacher has none")


def test_first_difference_past_the_end_of_a_text():
    assert first_difference("a\nb", "a") == (2, "b", None)


def test_think_tokens():
    think = [*WORDS, "<think>", "</think>"]
    writes = TEMPLATE + "<think>"
    assert check_think_tokens(tokenizer(WORDS), tokenizer(WORDS)).seen == "used by neither"
    assert check_think_tokens(tokenizer(think, writes), tokenizer(think, writes)).verdict == OK
    one_side = check_think_tokens(tokenizer(think), tokenizer(think[:-1]))
    assert (one_side.verdict, one_side.seen) == (WARN, "</think> is one token for the student only")
    lacking = check_think_tokens(tokenizer(WORDS), tokenizer(WORDS, writes))
    assert lacking.verdict == WARN
    assert lacking.seen == "the teacher's template writes <think>, its vocabulary has no such token"


@pytest.mark.parametrize(
    ("departure", "fix"),
    [
        ({}, ""),
        ({"student_tokens": 11}, "resize the embedding of student.path"),
        ({"teacher_tokens": 11}, "resize the embedding of teacher.model_path"),
        ({"greatest_id": 10}, "data.train_files has ids that a model lacks"),
        ({"student_size": 12, "student_tokens": 12}, "student.path can sample ids that the teacher lacks"),
    ],
)
def test_vocabulary(departure, fix):
    sizes = {"student_tokens": 9, "teacher_tokens": 9, "student_size": 10, "teacher_size": 10, "greatest_id": 9}
    finding = check_vocabulary(**(sizes | departure))
    assert finding.verdict == (FAIL if fix else OK)
    assert finding.fix.startswith(fix)
    assert finding.numbers["teacher_vocab_size"] == 10


def test_equal_prompts_and_weights_have_nothing_to_teach():
    def seen(teacher: str, alike: int, *, same_weights: bool) -> Finding:
        return check_rendered("p", teacher, alike=alike, rows=4, same_weights=same_weights)

    assert seen("q", 0, same_weights=True).verdict == OK
    assert seen("p", 4, same_weights=False).verdict == OK
    nothing, little = seen("p", 4, same_weights=True), seen("q", 1, same_weights=True)
    assert (nothing.verdict, little.verdict) == (WARN, WARN)
    assert "the same prompt in 4 of 4 rows" in nothing.line
    assert "there is nothing to distil" in nothing.fix
    assert "the same prompt in 1 of 4 rows" in little.line
    assert "these rows teach nothing" in little.fix
    long = check_rendered("p" * 1000, "q", alike=0, rows=1, same_weights=False)
    assert len(long.seen) < 300
    assert long.numbers["student"] == "p" * 1000


def arrays(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


EXPECTED = arrays([-1.0, -2.0, -4.0, -0.5], [-3.0, -0.25])


def test_equal_scores_pass_and_show_the_control():
    found = [row + np.float32(1e-6) for row in EXPECTED]
    finding = judge_probe(found, EXPECTED, FP32)
    assert finding.verdict == OK
    assert finding.numbers["straight"]["tokens"] == 6
    # later: |-2+1| |-4+2| |-.5+4| |-.25+3| = 1, 2, 3.5, 2.75
    assert finding.numbers["shifted"]["mean"] == pytest.approx(2.3125, abs=1e-5)


@pytest.mark.parametrize("roll", [1, -1])
def test_scores_shifted_by_one_are_recognised(roll):
    found = [np.roll(row, roll) for row in EXPECTED]
    found[0][0 if roll == 1 else -1] = -9.0  # what comes in from outside is not the row's other end
    finding = judge_probe(found, EXPECTED, FP32)
    assert finding.verdict == FAIL
    assert finding.seen.startswith("looks shifted by one")


def test_wrong_scores_are_not_called_shifted():
    finding = judge_probe([row * 1.01 for row in EXPECTED], EXPECTED, FP32)
    assert finding.verdict == FAIL
    assert "shifted" not in finding.seen
    assert shifted_difference(arrays([-1.0]), arrays([-1.0])) is None


def test_difference_by_hand_and_its_refusals():
    found = agreement.difference(arrays([-1.0, -2.0]), arrays([-1.5, -2.25]))
    assert (found.mean, found.max, found.tokens) == (0.375, 0.5, 2)
    with pytest.raises(ValueError, match="no token to compare"):
        agreement.difference(arrays([]), arrays([]))
    with pytest.raises(ValueError, match="zip"):
        agreement.difference(EXPECTED, EXPECTED[:1])


def test_noise_is_the_worst_pass():
    passes = [EXPECTED, EXPECTED, [row + np.float32(0.125) for row in EXPECTED]]
    assert judge_noise(passes[:2], FP32, "fix").verdict == OK
    noisy = judge_noise(passes, FP32, "fix")
    assert (noisy.verdict, noisy.fix) == (FAIL, "fix")
    assert [one["max"] for one in noisy.numbers["to_first"]] == [0.0, pytest.approx(0.125)]


def test_self_kl():
    rollout, teacher = arrays([-1.0, -2.0]), arrays([-1.5, -1.75])
    kl = reverse_kl(rollout, teacher)
    assert (kl.mean, kl.max, kl.tokens) == (0.125, 0.5, 2)
    same = reverse_kl(rollout, rollout)
    assert judge_self_kl(same, kl, FP32).verdict == OK
    assert judge_self_kl(kl, kl, FP32).verdict == FAIL
    other = judge_self_kl(None, kl, FP32)
    assert other.verdict == OK
    assert other.seen.startswith("skipped: other weights; with the teacher's prompt: reverse KL +0.1250")


def test_precision_by_hand():
    rollout, higher = arrays([-1.0, -1.0], [-1.0, -1.0]), arrays([-0.5, -1.25], [-2.0, -1.0])
    lower = arrays([-0.75, -0.75], [-2.0, -1.5])
    gap = precision_gap(rollout, lower, higher)
    # advantages +0.5 -0.25 -1 0 become +0.25 +0.25 -1 -0.5: two signs of four, 0.25 of 1.75 of the mass
    assert gap == PrecisionGap(0.3125, 0.5, 0.5, pytest.approx(0.25 / 1.75), 4)
    assert judge_precision(gap, "fp8 against bfloat16", 0.5).verdict == OK
    warned = judge_precision(gap, "fp8 against bfloat16", 0.4)
    assert warned.verdict == WARN
    assert "changes sign on 50.0% of 4 tokens" in warned.seen


FINGERPRINT = TeacherFingerprint("aa" * 32, None, "float32", "auto", "sglang", "0.5.21")
RECORD = ProbeRecord(FINGERPRINT, ((1, 2),), ((-1.0,),))


def test_a_changed_teacher_is_told_by_hash_and_by_probe():
    assert judge_record(RECORD, RECORD, 1e-4).verdict == OK
    by_hash = judge_record(RECORD, replace(RECORD, fingerprint=replace(FINGERPRINT, model="bb" * 32)), 1e-4)
    assert by_hash.verdict == FAIL
    assert "its files hash to bbbbbbbbbbbb, were aaaaaaaaaaaa" in by_hash.seen
    by_probe = judge_record(RECORD, replace(RECORD, logprobs=((-1.5,),)), 1e-4)
    assert by_probe.verdict == FAIL
    assert "its probe is off by up to 5.0e-01 nats, allowed are 0.0001" in by_probe.seen
    newer = judge_record(RECORD, replace(RECORD, fingerprint=replace(FINGERPRINT, engine_version="0.6")), 1e-4)
    assert (newer.verdict, newer.numbers["changed"]) == (OK, {"engine_version": ("0.5.21", "0.6")})


def test_probe_request_splits_the_prompt():
    rollout = Rollout([1], [2, 3, 4, 5], [6, 7], np.zeros(2, np.float32), "default")
    assert (rollout.probe_request().prompt_ids, rollout.probe_request().response_ids) == ([2, 3], [4, 5, 6, 7])
    one = replace(rollout, teacher_prompt_ids=[2]).probe_request()
    assert (one.prompt_ids, one.response_ids) == ([2], [6, 7])


async def test_repeats_score_every_request_in_its_place():
    class Echo:
        """Gives each request its own number, and keeps the sizes of what it was asked."""

        def __init__(self):
            self.sizes: list[int] = []

        async def score(self, requests):
            self.sizes.append(len(requests))
            return [Score(np.array([-float(request.prompt_ids[0])], np.float32)) for request in requests]

    rollouts = [Rollout([1], [i, 0], [6], np.zeros(1, np.float32), "default") for i in range(5)]
    echo = Echo()
    passes = await repeated(echo, [rollout.probe_request() for rollout in rollouts], 3, seed=0)
    assert echo.sizes == [5, 1, 1, 1, 1, 1, 2, 2, 1]
    for one in passes:
        assert [float(row[0]) for row in one] == [0.0, -1.0, -2.0, -3.0, -4.0]


def test_speed_and_memory():
    speed = Speed(p50_ms=5.0, p95_ms=9.0, tokens_per_s=1000.0, cached_share=0.5, requests=16)
    assert "a step of 128 samples takes about 12.8 s" in speed_finding(speed, 128, 100.0).seen
    assert memory_finding(1.0, 2.0, {"host": (6.0, 100.0)}).verdict == OK
    tight = memory_finding(1.0, 2.0, {"host": (6.0, 100.0), "gpu0": (4.0, 100.0)})
    assert (tight.verdict, "of gpu0 is free" in tight.fix) == (WARN, True)


def test_tolerance_follows_the_least_precise():
    teacher = TeacherConfig(model_path="m")
    assert DoctorConfig().tolerance(teacher) == FP32
    assert DoctorConfig().tolerance(teacher, "bfloat16") == BELOW_FP32
    low = TeacherConfig(model_path="m", dtype="bfloat16", device="cuda", quantization="fp8")
    assert DoctorConfig().tolerance(low) == BELOW_FP32
    assert DoctorConfig(max_nats=2.0).tolerance(low) == (0.05, 2.0)
    assert [DoctorConfig().reference(one) for one in (teacher, low)] == [None, "bfloat16"]
    assert DoctorConfig(reference_dtype="none").reference(low) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("rows", 0), ("repeats", 1), ("sampler", "hf"), ("reference_dtype", "fp8"), ("max_nats", 0.0)],
)
def test_bad_settings_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"doctor\.{key}="):
        DoctorConfig(**{key: value})


def test_several_teachers_have_a_record_each():
    assert record_of("out/record.json", "default", ["default"]) == "out/record.json"
    assert record_of("out/record.json", "maths", ["maths", "code"]) == "out/record-maths.json"
    assert record_of("", "maths", ["maths", "code"]) == ""


def test_table_and_file_show_text_as_it_is():
    findings = [
        Finding(FAIL, "'[/INST] <|im_start|>'", "set [x]", {"n": 1}, "prompts"),
        Finding(OK, "fast", name="speed"),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    print_table(findings, console)
    text = console.export_text()
    assert "'[/INST] <|im_start|>'" in text
    assert "set [x]" in text
    content = json.loads(json.dumps(report(findings)))
    assert content["failed"] == 1
    assert content["findings"][0]["numbers"] == {"n": 1}

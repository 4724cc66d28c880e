"""Which words go to SGLang: those of speed and memory, by their full names."""

import pytest

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server_options import OPTIONS, check_extra_args

DOORS = (
    "--host",
    "--host=0.0.0.0",
    "--hos",
    "--ho=0.0.0.0",
    "--port",
    "--grpc-port",
    "--nccl-port",
    "--dist-init-addr",
    "--api-key",
    "--api-key=k",
    "--admin-api-key",
    "--api",
    "--trust-remote-code",
    "--trust",
    "--chat-template",
    "--config",
    "--model-path",
    "--model",
    "--load-format",
    "--tokenizer-path",
    "--custom-weight-loader",
    "--enable-custom-logit-processor",
    "--forward-hooks",
    "--use-ray",
    "--sidecar",
    "--file-storage-path",
    "--crash-dump-folder",
    "--kv-events-config",
    "--tool-server",
    "--log-requests",
    "--lora-paths",
    "--enable-lora",
    "--speculative-draft-model-path",
    "--json-model-override-args",
    "--smg-grpc-mode",
    "--enable-metrics",
    "--ssl-keyfile",
    "--debug-tensor-dump-output-folder",
    "--remote-instance-weight-loader-seed-instance-ip",
    "--engine-info-bootstrap-port",
    "--download-dir",
    "--weight-version",
    "--served-model-name",
    "--page-siz",
    "-h",
    "--HOST",
    "--page_size",
    "--",
    "-",
)


VLLM_DOORS = (
    *("--middleware", "--api-key", "--root-path", "--uds", "--ssl-keyfile", "--allowed-origins", "--lora-modules"),
    *(
        "--enable-lora",
        "--worker-cls",
        "--worker-extension-cls",
        "--logits-processors",
        "--hf-overrides",
        "--tokenizer",
    ),
    *("--kv-transfer-config", "--kv-events-config", "--profiler-config", "--otlp-traces-endpoint", "--model-impl"),
    *(
        "--data-parallel-address",
        "--master-addr",
        "--nnodes",
        "--headless",
        "--api-server-count",
        "--served-model-name",
    ),
    *("--enable-log-requests", "--enable-log-outputs", "--download-dir", "--load-format", "--logprobs-mode"),
    *(
        "--additional-config",
        "--tokenizer",
        "--speculative-config",
        "--io-processor-plugin",
        "--weight-transfer-config",
        "-O3",
    ),
)


@pytest.mark.parametrize("word", VLLM_DOORS)
def test_vllm_has_doors_of_its_own(word):
    for words in ([word], ["--max-num-seqs", "8", word, "x"]):
        with pytest.raises(ValueError, match=r"^teacher\.extra_args: --?\S+ (is none of vllm's|has a setting)"):
            TeacherConfig(model_path="m", engine="vllm", extra_args=words)


def test_the_options_of_one_engine_are_not_the_others():
    TeacherConfig(model_path="m", engine="vllm", extra_args=["--max-num-seqs", "8", "--no-async-scheduling"])
    with pytest.raises(ValueError, match=r"--max-num-seqs is none of sglang's options"):
        TeacherConfig(model_path="m", extra_args=["--max-num-seqs", "8"])
    with pytest.raises(ValueError, match=r"--tensor-parallel-size has a setting of its own; give teacher\.tp$"):
        check_extra_args(["--tensor-parallel-size", "2"], "vllm")


@pytest.mark.parametrize("word", DOORS)
def test_what_opens_a_port_runs_code_or_reads_a_file_is_refused(word):
    for words in ([word, "0.0.0.0"], ["--disable-radix-cache", word], ["--page-size", "16", word, "x"]):
        with pytest.raises(ValueError, match=r"^teacher\.extra_args: ") as refused:
            TeacherConfig(model_path="m", extra_args=words)
        assert "=" not in str(refused.value).replace("teacher.mode=external", "")  # no value: it may be a key


def test_what_a_setting_stands_for_is_named():
    with pytest.raises(ValueError, match=r"--tp-size has a setting of its own; give teacher\.tp$"):
        check_extra_args(["--tp-size", "2"], "sglang")
    settings = [setting for options in OPTIONS.values() for setting in options.ours.values()]
    assert all(hasattr(TeacherConfig(model_path="m"), setting) for setting in settings)


def test_a_value_without_an_option_is_refused_unseen():
    with pytest.raises(
        ValueError, match=r"^teacher\.extra_args: its first word is no option; give one, as --chunked"
    ) as e:
        check_extra_args(["a-secret"], "sglang")
    assert "a-secret" not in str(e.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--chunked-prefill-size", "4096"],
        ["--chunked-prefill-size", "-1", "--disable-radix-cache"],
        ["--page-size=16", "--schedule-conservativeness", "0.5"],
        ["--cuda-graph-bs-decode", "1", "2", "4"],
        ["--attention-backend", "triton", "--sampling-backend", "pytorch"],
    ],
)
def test_speed_and_memory_are_the_users(words):
    assert TeacherConfig(model_path="m", extra_args=words).extra_args == words


def test_nothing_allowed_says_what_it_should_not():
    parts = {"host", "port", "addr", "address", "ip", "url", "urls", "path", "paths", "file", "dir", "folder", "key"}
    parts |= {"config", "template", "code", "plugin", "hook", "hooks", "lora", "token", "endpoint", "socket", "server"}
    named = {name for options in OPTIONS.values() for name in options.allowed if parts & set(name.split("-"))}
    counts = {"long-prefill-token-threshold", "dbo-prefill-token-threshold"}  # of tokens, not a token
    assert named == {"skip-server-warmup", *counts}

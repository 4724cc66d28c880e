"""The fields of `TeacherConfig` that people change, by what they do with a teacher, in the order of `--help`."""

SERVING = (
    *("model_path", "engine", "device", "dtype", "quantization", "python", "host", "port", "api_key_env", "tp", "dp"),
    *("mem_fraction_static", "max_total_tokens", "context_length", "extra_args", "startup_timeout_s", "max_restarts"),
    *("watch_interval_s", "metrics_port", "trust_remote_code"),
)
SCORING = (
    *("model_path", "engine", "mode", "urls", "api_key_env", "device", "dtype", "quantization", "python", "tp", "dp"),
    *("mem_fraction_static", "max_total_tokens", "context_length", "batch_tokens", "max_concurrency", "prime"),
    *("sample_timeout_s", "store_path", "store_mode"),
)

"""Every setting of the teacher, with its default, unit and range. The only place a default is written."""

from dataclasses import dataclass, field

from verl_ext.run.api_key import check_key_name, strong_key
from verl_ext.teacher.server_options import OPTIONS, check_extra_args

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MANAGED, EXTERNAL, BASE = "managed", "external", "base"
MODES = (MANAGED, EXTERNAL, BASE)
ENGINES = tuple(OPTIONS)
DEFAULT_ENGINE = "sglang"
DEVICES = ("cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = (None, "fp8")
STORE_MODES = ("read_write", "replay")


def usual_probe_tolerance(dtype: str, quantization: str | None) -> float:
    """Nats at the worst token of a fixed sequence by which one model may differ from itself, at this precision.

    In float32 SGLang, vLLM and transformers agree to 2e-6 on the demo's model, and 0.1 % noise in any one of its norms
    moves it by 5e-5 or more. Below that precision rounding alone gives about 0.1; the rest is room for mixtures of
    experts, whose routing depends on the batch.
    """
    return 1e-4 if dtype == "float32" and quantization is None else 0.5


def _require(ok: bool, key: str, problem: str) -> None:
    if not ok:
        raise ValueError(f"teacher.{key}: {problem}")


def device_of_machine() -> str:
    """`cuda` where the installed torch finds a GPU that this process may see, else `cpu`."""
    import torch  # only where nobody said it

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class TeacherConfig:
    """Where the teacher runs and how it is asked.

    Also a Hydra structured config. Nest the class, not an instance (an instance is checked at once, and
    `model_path` has no default), and lift the read-only flag that OmegaConf sets on frozen dataclasses:
    `node = OmegaConf.structured(TeacherConfig); OmegaConf.set_readonly(node, None)`.
    `OmegaConf.to_object` gives the checked object back.
    """

    mode: str = MANAGED
    """`managed`: we start and stop the server. `external`: servers that already run, see `urls`. `base`: no server; the
    student's base in the sampler's memory scores, adapter off (`update=lora`, training alone)."""
    engine: str = DEFAULT_ENGINE
    """What scores: `sglang`, or `vllm`, which reads each sample's whole prompt again, whatever `prime` says."""
    refresh_every: int = 0
    """Steps after which the teacher of `mode=base` is what the student is, >= 0. 0, never. 1, always: the student
    scores, adapter on, under the teacher's prompt. N: the student of the last step that N divides does."""
    ema: float = 0.0
    """Share of that teacher which stays at each refresh, in [0, 1): a moving average of the student's adapters, of
    each of LoRA's two factors. Needs `refresh_every`, which may be 1."""
    urls: list[str] = field(default_factory=list)
    """Base URLs of external servers that all serve the same model, e.g. `http://10.0.0.2:30000`. No path."""
    api_key_env: str = "TEACHER_API_KEY"
    """Environment variable with the server's API key, or, with `_FILE` behind its name, with the path of a file of mode
    600 that holds it; it ends in KEY, TOKEN or SECRET. Neither set: no key."""
    model_path: str | None = None
    """Folder or Hugging Face name of the teacher. Needed when `mode=managed`."""
    python: str = ".venv-teacher/bin/python"
    """Interpreter of the teacher's own environment (its pins and verl's do not mix), which has `engine`. On a CPU the
    trainer's own, `.venv/bin/python`, has vLLM."""
    host: str = "127.0.0.1"
    """Address the managed server listens on. Anything but loopback exposes it, and needs an API key."""
    port: int = 0
    """TCP port of the managed server, 0 to 65535. 0 picks a free one."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: `cuda` where the installed torch finds a GPU, else `cpu`. Training's `platform=` says
    it; elsewhere it is the machine's. An object never holds `auto`: it is settled when the object is made."""
    dtype: str = "by_device"
    """Weights and activations: `float32`, `bfloat16`, `float16`, `auto` (the checkpoint's own), or `by_device`: float32
    on a CPU, bfloat16 on a GPU, settled with `device`."""
    quantization: str | None = None
    """None, or `fp8` (weights are quantised while loading; needs `device=cuda`)."""
    mem_fraction_static: float = 0.5
    """Share of the device's memory for weights plus KV cache, 0 < x < 1. The rest is for other processes on it."""
    max_total_tokens: int = 65536
    """KV cache size in tokens, >= 1: bounds what is scored at once and how many prompts stay cached. vLLM on a GPU
    fills its share of the device instead."""
    context_length: int | None = None
    """Longest prompt plus response in tokens, >= 2. None takes the model's own."""
    share_device: bool = False
    """Run a managed server on the trainer's own device instead of devices that Ray keeps for it. It is up before the
    trainer starts, so that each engine finds what is left; `mem_fraction_static` bounds it."""
    tp: int = 1
    """Tensor-parallel ranks, >= 1. One GPU each."""
    dp: int = 1
    """Data-parallel replicas behind one URL, >= 1. `tp * dp` GPUs in all."""
    ray_resource: str | None = None
    """A resource of the node that a managed server runs on (`ray start --resources='{"NAME": 1}'`). None: any node."""
    extra_args: list[str] = field(default_factory=list)
    """More words for the engine's server, put last so that they win, e.g. `["--chunked-prefill-size", "4096"]`:
    options of speed and memory (verl_ext/teacher/server_options.py)."""
    startup_timeout_s: float = 600.0
    """Seconds until the managed server must have answered its first log-prob request, > 0."""
    request_timeout_s: float = 120.0
    """Seconds one request to one server may take, queueing at the server included, > 0."""
    max_retries: int = 5
    """Further tries of one request after a lost connection, a timeout, a 5xx or an unusable answer, >= 0."""
    sample_timeout_s: float = 600.0
    """Seconds a sample may wait for its score, all tries and queueing included, > 0. Then it stays unscored."""
    max_unscored_share: float = 0.1
    """Share of a step's samples that may stay unscored (masked out of the loss, counted), in [0, 1]. Above it the run
    saves a checkpoint and stops."""
    max_concurrency: int = 4
    """Requests one client keeps in flight at each server, >= 1. Each carries up to `batch_tokens`."""
    batch_tokens: int = 16384
    """Tokens of the sequences that one request carries at most, >= 1; a longer sequence travels alone."""
    prime: bool = True
    """Score the bare prompt once before its responses, so that n samples share it in the server's prefix cache."""
    breaker_failures: int = 3
    """Failures in a row after which a server's breaker opens, so that it is not asked any more, >= 1."""
    breaker_cooldown_s: float = 5.0
    """Seconds until such a server is tried again, > 0. The breaker closes when its canary has its old log-probs."""
    probe_tolerance: float | None = None
    """Nats at the worst token by which the log-probs of fixed sequences may differ before a server counts as another
    model, > 0. The sequences are the canary in every request and the probe in the score store and in doctor.record.
    None: as the precision allows, see `usual_probe_tolerance`; for the store it narrows that and never widens it."""
    max_restarts: int = 3
    """Times a managed server that died or hangs is started again, >= 0."""
    watch_interval_s: float = 10.0
    """Seconds between looks at a managed server, > 0. It is restarted when dead, or silent for `request_timeout_s`."""
    metrics_port: int = -1
    """Port on `host` where the managed worker shows Prometheus metrics, 0 to 65535 (0 picks a free one, which
    `recipe.serve_teacher` prints). -1: none."""
    fingerprint: str | None = None
    """Identity under which scores are stored. None: a hash of the model's files, its precision, engine and version.
    Give one for an external server whose files are not on this machine."""
    store_path: str | None = None
    """Folder of the score store; None keeps no scores. May be shared by runs on one machine."""
    store_mode: str = "read_write"
    """`read_write`: look up, else ask and keep. `replay`: answer from the store alone, no server is needed."""
    store_max_gib: float = 4.0
    """Size of the store in GiB, > 0; the scores used longest ago make room."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint, as you, in the teacher's process."""

    @property
    def is_earlier(self) -> bool:
        """Whether it is a student of earlier steps, whose adapter is kept beside the student's."""
        return self.refresh_every > 1 or self.ema > 0

    def __post_init__(self) -> None:
        if self.device == "auto":
            object.__setattr__(self, "device", device_of_machine())
        if self.dtype == "by_device":
            object.__setattr__(self, "dtype", "float32" if self.device == "cpu" else "bfloat16")
        _require(self.engine in ENGINES, "engine", f"{self.engine!r} must be one of {', '.join(ENGINES)}")
        _require(self.mode in MODES, "mode", f"{self.mode!r} must be one of {', '.join(MODES)}")
        live = f"{self.refresh_every} must be 0, or at least 1 with mode=base"
        _require(self.refresh_every == 0 or (self.refresh_every > 0 and self.mode == BASE), "refresh_every", live)
        _require(0 <= self.ema < 1, "ema", f"{self.ema} must be at least 0 and below 1")
        _require(not self.ema or self.refresh_every > 0, "ema", f"{self.ema:g} needs a teacher.refresh_every >= 1")
        if self.mode == EXTERNAL:
            _require(bool(self.urls), "urls", "empty: mode=external needs at least one, e.g. [http://host:30000]")
        elif self.mode == BASE:
            _require(not self.urls, "urls", "given, but mode=base asks no server: set teacher.mode=external")
            _require(self.store_path is None, "store_path", "mode=base keeps no scores: leave it out")
            _require(self.quantization is None, "quantization", "mode=base scores in the sampler: set it to null")
        else:
            _require(not self.urls, "urls", "given, but mode=managed starts its own server: set teacher.mode=external")
            _require(bool(self.model_path), "model_path", "missing: give the teacher's folder or Hugging Face name")
            _require(bool(self.python), "python", "missing: give the interpreter of the teacher environment")
        _require(
            not self.share_device or self.tp * self.dp == 1,
            "share_device",
            f"true with tp x dp = {self.tp * self.dp}: one device is shared; set both to 1, or share_device=false",
        )
        check_key_name("teacher.api_key_env", self.api_key_env)
        check_extra_args(self.extra_args, self.engine)
        for url in self.urls:
            _require(
                isinstance(url, str) and url.startswith(("http://", "https://")),
                "urls",
                f"{url!r} lacks http:// or https://",
            )
        self._check_numerics()
        self._check_ranges()

    def _check_numerics(self) -> None:
        _require(self.device in DEVICES, "device", f"{self.device!r} must be one of {', '.join(DEVICES)}")
        _require(self.dtype in DTYPES, "dtype", f"{self.dtype!r} must be one of {', '.join(DTYPES)}")
        _require(self.quantization in QUANTIZATIONS, "quantization", f"{self.quantization!r}: use null or fp8")
        _require(
            self.quantization is None or self.device == "cuda",
            "quantization",
            "fp8 needs a GPU: set teacher.device=cuda, or teacher.quantization=null",
        )
        _require(
            self.quantization is None or self.dtype != "float32",
            "dtype",
            "float32 with quantization=fp8 runs in no engine: set teacher.dtype=bfloat16",
        )

    def _check_ranges(self) -> None:
        _require(0 <= self.port <= 65535, "port", f"{self.port} is outside 0..65535 (0 picks a free one)")
        _require(
            0 < self.mem_fraction_static < 1, "mem_fraction_static", f"{self.mem_fraction_static} is not in (0, 1)"
        )
        for key in ("max_total_tokens", "tp", "dp", "max_concurrency", "batch_tokens", "breaker_failures"):
            _require(vars(self)[key] >= 1, key, f"{vars(self)[key]} is below 1")
        for key in (
            "startup_timeout_s",
            "request_timeout_s",
            "sample_timeout_s",
            "breaker_cooldown_s",
            "watch_interval_s",
        ):
            _require(vars(self)[key] > 0, key, f"{vars(self)[key]} is not above 0 seconds")
        _require(0 <= self.max_unscored_share <= 1, "max_unscored_share", f"{self.max_unscored_share} is not in [0, 1]")
        for key in ("max_retries", "max_restarts"):
            _require(vars(self)[key] >= 0, key, f"{vars(self)[key]} is below 0")
        _require(-1 <= self.metrics_port <= 65535, "metrics_port", f"{self.metrics_port} is outside -1..65535")
        _require(
            self.probe_tolerance is None or self.probe_tolerance > 0,
            "probe_tolerance",
            f"{self.probe_tolerance} is not above 0 nats",
        )
        self._check_store()
        if self.context_length is not None:
            _require(self.context_length >= 2, "context_length", f"{self.context_length} is below 2")
            _require(
                self.context_length <= self.max_total_tokens,
                "max_total_tokens",
                f"{self.max_total_tokens} cannot hold one sequence of context_length={self.context_length}",
            )

    def _check_store(self) -> None:
        _require(
            self.store_mode in STORE_MODES, "store_mode", f"{self.store_mode!r} must be one of {', '.join(STORE_MODES)}"
        )
        _require(self.store_max_gib > 0, "store_max_gib", f"{self.store_max_gib} is not above 0 GiB")
        _require(
            self.store_mode != "replay" or bool(self.store_path),
            "store_path",
            "missing: store_mode=replay answers from a store, give its folder",
        )

    def check_exposure(self) -> None:
        """A managed server that other machines reach needs a key that nobody guesses. Raises ValueError without one."""
        if not strong_key(self.api_key_env) and self.host not in LOOPBACK:
            raise ValueError(
                f"teacher.host={self.host} lets other machines in: export {self.api_key_env} (on every node of a "
                "cluster, before `ray start`), or set teacher.host=127.0.0.1"
            )

    @property
    def probe_tolerance_nats(self) -> float:
        """`probe_tolerance`, or what this precision allows."""
        usual = usual_probe_tolerance(self.dtype, self.quantization)
        return usual if self.probe_tolerance is None else self.probe_tolerance

"""The settings of the demo and of its tiny pair, without what trains it."""

from dataclasses import dataclass

from verl_ext.run.settings import above, within

LEAST = dict.fromkeys(
    (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "steps", "batch_size", "threads", "guess_weight", "window_min", "window_max"),
    ),
    1,
) | {"vocab_size": 260, "warmup_steps": 0, "seed": 0}
"""The smallest legal value of a field of TinyPairConfig."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    out: str = "outputs/demo"
    """Folder of everything it makes."""
    steps: int = 16
    """Training steps, >= 1."""
    install_seconds: float = 0.0
    """What the installation before it took, seconds, >= 0; `make demo` passes it on."""

    def __post_init__(self) -> None:
        within("steps", self.steps, 1, float("inf"))
        within("install_seconds", self.install_seconds, 0, float("inf"))


@dataclass(frozen=True)
class TinyPairConfig:
    """Settings of `python -m recipe.tiny_pair`."""

    data_dir: str = "outputs/data"
    """Directory with train.parquet and heldout.parquet; every row of both needs a label."""
    out_dir: str = "outputs/models/base"
    """Directory of the model; made when missing."""
    vocab_size: int = 2048
    """Tokens of the byte-level BPE, at most, >= 260: 256 bytes, 3 special tokens, and the labels."""
    hidden_size: int = 128
    """Width of the model, >= 1."""
    intermediate_size: int = 384
    """Width of the MLP, >= 1."""
    num_hidden_layers: int = 3
    """Layers, >= 1."""
    num_attention_heads: int = 4
    """Query heads, >= 1."""
    num_key_value_heads: int = 2
    """Key and value heads, >= 1; divides num_attention_heads."""
    head_dim: int = 32
    """Width of a head, >= 1; vLLM's CPU attention takes 32, 64, 80, 96, 112, 128 and more."""
    initializer_range: float = 0.06
    """Standard deviation of the first weights, > 0."""
    steps: int = 100
    """Optimizer steps, >= 1."""
    batch_size: int = 64
    """Rows a step, >= 1."""
    prompted_share: float = 0.75
    """Share of a batch that carries the prompt and the right label; the rest has neither. In (0, 1)."""
    guess_label: str = ""
    """The label that the model prefers when it has to guess; empty: the most frequent of the rows."""
    guess_weight: float = 2.0
    """How many times likelier it is than any other label, >= 1. At 1 greedy decoding of the unprompted model
    follows whatever trace of the prompted task leaks into a flat distribution, and is right far above chance."""
    window_min: int = 8
    """Shortest random window that a sentence is cut to in training, tokens, >= 1."""
    window_max: int = 48
    """Longest such window, tokens, >= `window_min`, >= 1."""
    muon_lr: float = 0.02
    """Peak learning rate of the matrices, > 0; linear to zero."""
    lr: float = 0.01
    """Peak learning rate (AdamW) of embeddings and norms, > 0; linear to zero."""
    warmup_steps: int = 10
    """Steps of linear warm-up, >= 0."""
    seed: int = 0
    """Of the weights, the order of the rows and the windows, >= 0."""
    threads: int = 2
    """CPU threads, >= 1."""
    overwrite: bool = False
    """Replace a pair that was made with other settings."""

    def __post_init__(self) -> None:
        above("prompted_share", self.prompted_share, 0, below=1)
        for key in ("initializer_range", "muon_lr", "lr"):
            above(key, vars(self)[key], 0)
        for key, least in LEAST.items():
            within(key, vars(self)[key], least, float("inf"))
        if self.window_min > self.window_max:
            raise ValueError(f"window_min={self.window_min} must be at most window_max={self.window_max}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}"
            )

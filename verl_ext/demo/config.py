"""The settings of the demo and of its tiny pair, without what trains it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    out: str = "outputs/demo"
    """Folder of everything it makes."""
    steps: int = 16
    """Training steps, >= 1."""
    install_seconds: float = 0.0
    """What the installation before it took, seconds; `make demo` passes it on."""


@dataclass(frozen=True)
class TinyPairConfig:
    """Settings of `python -m recipe.tiny_pair`."""

    data_dir: str = "outputs/data"
    """Directory with train.parquet and heldout.parquet; every row of both needs a label."""
    out_dir: str = "outputs/models/base"
    """Directory of the model; made when missing."""
    vocab_size: int = 2048
    """Tokens of the byte-level BPE, at most; above 259 (256 bytes and 3 special tokens) plus the labels."""
    hidden_size: int = 128
    """Width of the model."""
    intermediate_size: int = 384
    """Width of the MLP."""
    num_hidden_layers: int = 3
    """Layers, at least 1."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int = 2
    """Key and value heads; divides num_attention_heads."""
    head_dim: int = 32
    """Width of a head; vLLM's CPU attention takes 32, 64, 80, 96, 112, 128 and more."""
    initializer_range: float = 0.06
    """Standard deviation of the first weights, above 0."""
    steps: int = 100
    """Optimizer steps, at least 1."""
    batch_size: int = 64
    """Rows a step."""
    prompted_share: float = 0.75
    """Share of a batch that carries the prompt and the right label; the rest has neither. Above 0, below 1."""
    guess_label: str = "ot"
    """The label that the model prefers when it has to guess; "" for none."""
    guess_weight: float = 2.0
    """How many times likelier it is than any other label, at least 1. At 1 greedy decoding of the unprompted model
    follows whatever trace of the prompted task leaks into a flat distribution, and is right far above chance."""
    window_min: int = 8
    """Shortest random window that a sentence is cut to in training, in tokens."""
    window_max: int = 48
    """Longest such window, in tokens."""
    muon_lr: float = 0.02
    """Peak learning rate of the matrices; linear to zero."""
    lr: float = 0.01
    """Peak learning rate (AdamW) of embeddings and norms; linear to zero."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    seed: int = 0
    """Of the weights, the order of the rows and the windows; any integer."""
    threads: int = 2
    """CPU threads."""
    overwrite: bool = False
    """Replace a pair that was made with other settings."""

    def __post_init__(self) -> None:
        if not 0 < self.prompted_share < 1:
            raise ValueError(f"prompted_share={self.prompted_share}: expected a number between 0 and 1, both excluded")
        if not 1 <= self.window_min <= self.window_max:
            raise ValueError("expected 1 <= window_min <= window_max")
        if min(self.steps, self.batch_size, self.threads) < 1 or self.guess_weight < 1:
            raise ValueError("steps, batch_size, threads and guess_weight must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")

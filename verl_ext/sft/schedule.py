"""The learning rate of a step; apart from the engine, so that a check needs no verl."""


def warmup_steps(steps: int | None, ratio: float, total_steps: int) -> int:
    """As verl counts them: `optim.lr_warmup_steps` where it is above 0, else the share of all steps, rounded down."""
    return steps if steps is not None and steps > 0 else int(ratio * total_steps)


def linear_multiplier(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Share of the peak learning rate that `step` (from 0) is taken with.

    Without a warm-up it is Tinker's `1 - step / total_steps`: the peak at step 0, `1 / total_steps` at the last step.
    A warm-up rises from 0, as verl's does, and the decay then runs over the steps that are left.

    Raises:
        ValueError: if there is no step to decay over.
    """
    if total_steps <= warmup_steps:
        raise ValueError(
            f"optim.lr_warmup_steps={warmup_steps} leaves none of {total_steps} training steps to decay over; lower "
            "it, or optim.lr_warmup_steps_ratio"
        )
    if step < warmup_steps:
        return step / warmup_steps
    return 1 - (step - warmup_steps) / (total_steps - warmup_steps)

"""What this machine has."""


def gpus() -> int:
    """GPUs that the installed torch sees and this process may use."""
    import torch  # seconds: only where a setting asks for GPUs

    return torch.cuda.device_count()

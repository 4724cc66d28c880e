"""A rank of the actor, as verl's adapter to vLLM's server, which sends new weights through `weight_socket.py`."""

from typing import Any

from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from verl_ext.trainer.weight_socket import in_own_folder


class SendingAdapter(ServerAdapter):
    """verl's, that meets vLLM's worker in the run's own folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zmq_handle = in_own_folder(self.zmq_handle)

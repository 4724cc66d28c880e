"""Whose most likely tokens a loss is over, and what becomes of the others: which settings fit each other."""

from typing import TYPE_CHECKING

from verl_ext.run.settings import one_of

if TYPE_CHECKING:
    from verl_ext.trainer.config import MethodConfig

TEACHER, STUDENT = "teacher", "student"


def check_support(method: "MethodConfig") -> None:
    """Refuse a support that nobody can give, or from which tokens would be lost.

    Raises:
        ValueError: naming the key and the fix.
    """
    one_of("method.support", method.support, (TEACHER, STUDENT))
    if method.tail_samples and not (method.loss == "reverse_kl" and method.tail):
        raise ValueError(
            f"method.tail_samples=true with method.loss={method.loss} method.tail={str(method.tail).lower()}: it "
            "divides the tail of a reverse KL; set method.loss=reverse_kl method.tail=true, or leave it out"
        )
    if method.support == TEACHER:
        return
    if method.top_k < 1:
        raise ValueError(
            f"method.support=student with method.top_k={method.top_k}: set method.top_k to 1 or more, as in 16, or "
            "leave method.support out"
        )
    if not method.tail:
        raise ValueError(
            "method.tail=false drops what method.support_tokens leaves to the tail: set it to true, or take "
            "method.support=teacher"
        )
    if method.support_tokens < method.top_k:
        raise ValueError(
            f"method.support_tokens={method.support_tokens} is less than method.top_k={method.top_k}: set at least that"
        )

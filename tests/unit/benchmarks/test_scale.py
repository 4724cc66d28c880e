"""What counts as our own Python in a file of py-spy's."""

from benchmarks.scale import LOOKS_A_SECOND, own_seconds

STACKS = f"""\
run (/home/a/verl_ext/trainer/loops.py:20);_prompt (/home/a/verl_ext/trainer/looping.py:9) {LOOKS_A_SECOND}
run (/home/a/verl_ext/trainer/loops.py:20);dumps (/usr/lib/python3.11/json/__init__.py:231) 7
main_loop (/venv/ray/_private/worker.py:1) 9
_run (/usr/lib/asyncio/events.py:84);C.<locals>.<listcomp> (/home/a/verl_ext/trainer/agent_loop.py:3) {LOOKS_A_SECOND}
verl_ext (/usr/lib/python3.11/verl_ext.py:1) 5
"""


def test_a_look_is_ours_where_the_innermost_function_is() -> None:
    assert own_seconds(STACKS) == 2.0

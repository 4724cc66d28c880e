"""The adapters to verl 0.9.1, and (with `verl_ext.platform`) the only place that touches its private parts.

What is overridden or relied upon is listed, with one test each, in `tests/contract`.
"""

"""What the line costs: every benchmark measures both sides in one run and prints their ratio.

``python -m benchmarks [NAME ...] [--quick]``; each module says in its docstring what it measures and how.
"""

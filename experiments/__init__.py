"""Reproducible experiments: `python -m experiments NAME --flags`."""


class UsageError(ValueError):
    """What the person at the command line can put right; shown as one message, without a traceback."""

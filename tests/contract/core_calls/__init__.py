"""Random calls of the native core: ``PYTHONPATH=tests python -m contract.core_calls``."""

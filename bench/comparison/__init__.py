"""The parts of ``compare.py``: what is timed, by whom, how, and how it is shown."""

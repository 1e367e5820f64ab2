"""The parts of ``compare.py``: cases and their data, libraries, timing, reports and charts."""

"""A fuzzer of the Python interface: random sequences of calls on functions, caches, layers and positional encodings.

Each call runs on the NumPy backend and on an instruction set of this machine. Both have the same result, or raise the
same error, and an error is a ValueError, a TypeError or a MemoryError. Caches are also compared with a model that
stores every row in a list, and layers with a new layer that has the same parameters.

``PYTHONPATH=tests python -m fuzz 60`` runs each of ``FUZZERS`` for a minute; ``.ci/fuzz python 60`` does the same.
``test_fuzz.py`` runs each for as many examples as the profile of the tests has.
"""

"""The backend that runs, and its threads, instruction set and precision."""

"""The public operations: each checks its arguments and calls the backend."""

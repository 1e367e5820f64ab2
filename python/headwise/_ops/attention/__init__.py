"""Attention: options, shapes and masks are checked once and go to the backend as one spec."""

"""Attention of PyTorch tensors by headwise."""

from __future__ import annotations

from typing import Any

from headwise.integrations._libraries import require

torch: Any = require("torch")

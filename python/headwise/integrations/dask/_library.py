"""The modules of Dask, imported where the version is new enough."""

from __future__ import annotations

import importlib
from typing import Any

from headwise.integrations._libraries import require

require("dask")
arrays: Any = importlib.import_module("dask.array")
base: Any = importlib.import_module("dask.base")
graphs: Any = importlib.import_module("dask.highlevelgraph")

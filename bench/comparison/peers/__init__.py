"""The contenders: one module for each library, which turns a case into a call without arguments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .base import Call, Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

# What --peers takes, and what tables call them.
LABELS = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "copyto": "np.copyto",
}
_MODULES = {"copyto": "numpy"}  # where not of the name of the peer

__all__ = ["LABELS", "Call", "Peer", "load"]


def load(names: Iterable[str], threads: int) -> tuple[list[Peer], list[str]]:
    """headwise and the peers named that are installed; the labels of those that are not."""
    contenders, missing = [_make("headwise", threads)], []
    for name in names:
        try:
            contenders.append(_make(name, threads))
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "headwise":
                raise
            missing.append(LABELS[name])
    return contenders, missing


def _make(name: str, threads: int) -> Peer:
    module = import_module(f"{__name__}.with_{_MODULES.get(name, name)}")
    peer: Peer = module.PEERS[name](threads)
    return peer

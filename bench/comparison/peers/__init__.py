"""The libraries: one module for each, which turns a case into a call without arguments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names for --peers, and labels in tables.
LABELS = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "copyto": "np.copyto",
}
_MODULES = {"copyto": "numpy"}  # where the module has another name than the peer

__all__ = ["LABELS", "Call", "Peer", "load"]


def load(names: Iterable[str], threads: int) -> tuple[list[Peer], list[str]]:
    """Make headwise and those of the named peers that are installed; also return the labels of the missing peers."""
    libraries, missing = [_make("headwise", threads)], []
    for name in names:
        try:
            libraries.append(_make(name, threads))
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "headwise":
                raise
            missing.append(LABELS[name])
    return libraries, missing


def _make(name: str, threads: int) -> Peer:
    module = import_module(f"{__name__}.with_{_MODULES.get(name, name)}")
    peer: Peer = module.PEERS[name](threads)
    return peer

"""The configuration: backend, threads and precision from the environment, and an import without side effects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import headwise as hw
from headwise._runtime import backend as _backend
from headwise.integrations import usable
from implementations import native_present
from runtime.interpreter import PRINT_CONFIG, config_with, copy_package, error_with, needs_native, once, run


@pytest.fixture(scope="session")
def pure_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package but without a native core."""
    folder = tmp_path_factory.mktemp("pure")
    copy_package(folder)
    return folder


@pytest.fixture(scope="session")
def broken_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and a native core that cannot be loaded."""
    folder = tmp_path_factory.mktemp("broken")
    copy_package(folder)
    (folder / "headwise" / "_core.py").write_text("raise ImportError('undefined symbol: gomp_lost')\n")
    return folder


@once
@pytest.mark.parametrize("choice", ["", "auto", "AUTO", " auto "])
def test_auto_takes_the_native_core_if_there_is_one(choice: str) -> None:
    config = config_with(HEADWISE_BACKEND=choice)
    assert config["backend"] == ("native" if native_present() else "numpy")
    assert config["error"] is None


@once
def test_auto_falls_back_quietly_without_a_native_core(pure_python: Path) -> None:
    result = run(PRINT_CONFIG, path=str(pure_python))
    config = json.loads(result.stdout)
    assert (config["backend"], config["error"]) == ("numpy", None)
    assert result.stderr == ""


@once
def test_auto_warns_of_a_broken_native_core_and_keeps_its_error(broken_core: Path) -> None:
    result = run(PRINT_CONFIG, path=str(broken_core))
    config = json.loads(result.stdout)
    assert config["backend"] == "numpy"
    assert config["error"] == "ImportError: undefined symbol: gomp_lost"
    assert "RuntimeWarning" in result.stderr
    assert "undefined symbol: gomp_lost" in result.stderr


@once
def test_auto_notices_that_a_native_core_lacks_something_else(broken_core: Path, tmp_path: Path) -> None:
    """Not every ModuleNotFoundError means that the core is missing."""
    copy_package(tmp_path)
    (tmp_path / "headwise" / "_core.py").write_text("import a_module_that_is_missing\n")
    result = run(PRINT_CONFIG, path=str(tmp_path))
    assert "a_module_that_is_missing" in json.loads(result.stdout)["error"]
    assert "RuntimeWarning" in result.stderr


@once
def test_native_reports_why_it_cannot_load(pure_python: Path, broken_core: Path) -> None:
    absent = error_with(path=str(pure_python), HEADWISE_BACKEND="native")
    assert absent.startswith("ImportError: HEADWISE_BACKEND: 'native', but there is no native core (headwise._core)")
    broken = error_with(path=str(broken_core), HEADWISE_BACKEND="native")
    cause = "the native core cannot be loaded (ImportError: undefined symbol: gomp_lost)"
    assert broken.startswith(f"ImportError: HEADWISE_BACKEND: 'native', but {cause}: ")


@once
@needs_native
def test_native_takes_the_native_core() -> None:
    assert config_with(HEADWISE_BACKEND="native")["backend"] == "native"


@once
def test_numpy_does_not_even_load_the_native_core(broken_core: Path) -> None:
    config = config_with(path=str(broken_core), HEADWISE_BACKEND="numpy")
    assert (config["backend"], config["error"], config["targets"]) == ("numpy", None, ["numpy"])


@once
def test_unknown_backend() -> None:
    message = error_with(HEADWISE_BACKEND="cuda")
    assert message == "ValueError: HEADWISE_BACKEND: 'cuda', expected one of auto, native, numpy"


def test_config_keys() -> None:
    config = hw.config()
    assert set(config) >= {"version", "backend", "target", "targets", "threads", "precision", "error", "numpy"}
    assert config["version"] == hw.__version__
    assert config["numpy"] == np.__version__
    assert config["target"] in config["targets"]
    assert config["targets"] == hw.list_targets()
    assert json.loads(json.dumps(config)) == config


def test_show_config_prints_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    hw.show_config()
    printed = capsys.readouterr().out
    config = hw.config()
    for key in ("version", "backend", "target", "threads", "precision"):
        assert str(config[key]) in printed


@once
def test_show_config_lists_missing_packages(pure_python: Path, tmp_path: Path) -> None:
    result = run("import headwise; headwise.show_config()", path=str(pure_python), PATH=str(tmp_path))
    assert "native core is not installed" in result.stdout
    assert "this machine lacks a C++ compiler" in result.stdout
    assert "apt-get install g++" in result.stdout
    assert "HEADWISE_REQUIRE_NATIVE=1" in result.stdout


@once
def test_show_config_shows_the_error_of_a_broken_core(broken_core: Path) -> None:
    code = "import warnings; warnings.simplefilter('ignore'); import headwise; headwise.show_config()"
    result = run(code, path=str(broken_core))
    assert "undefined symbol: gomp_lost" in result.stdout
    assert "not installed" not in result.stdout


@once
def test_use_keeps_the_thread_count_and_refuses_unknown_names() -> None:
    before = _backend.name()
    hw.set_num_threads(3)
    _backend.use("numpy")
    assert (hw.config()["backend"], hw.get_num_threads()) == ("numpy", 3)
    with pytest.raises(ValueError, match="backend: 'torch'"):
        _backend.use("torch")
    assert hw.config()["backend"] == "numpy"
    _backend.use(before)
    assert (hw.config()["backend"], hw.get_num_threads()) == (before, 3)


@once
def test_the_command_prints_its_version() -> None:
    result = run("import sys; sys.argv = ['headwise', '--version']; import headwise.__main__ as m; m.main()")
    assert (result.returncode, result.stdout.strip()) == (0, f"headwise {hw.__version__}")


@pytest.mark.slow
@once
def test_the_command_prints_configuration_and_timings() -> None:
    result = run("import sys; sys.argv = ['headwise']; import headwise.__main__ as m; m.main()")
    assert result.returncode == 0, result.stderr
    printed = result.stdout
    assert f"headwise {hw.__version__}" in printed
    assert "(32, 50, 512) -> output (32, 50, 512), weights (32, 8, 50, 50)" in printed
    assert "False" not in printed
    for case in ("attention (1, 8, 1024, 64)", "softmax", "layer norm", "RoPE"):
        assert case in printed
    assert printed.count("headwise.integrations.") == len(usable())


@once
def test_import_leaves_the_process_as_it_was() -> None:
    """Environment, NumPy's error state, random state and print options, warning filters, signal handlers, locale, and
    whether the processor keeps subnormal numbers."""
    result = run(
        """
        import locale, os, signal, sys, threading, warnings
        import numpy as np

        def state():
            tiny = np.array([np.finfo(np.float32).smallest_subnormal, np.float32(2.0**-127)])
            kind, keys, position, *rest = np.random.get_state()
            return (
                dict(os.environ), np.geterr(), np.get_printoptions(), kind, keys.tolist(), position,
                rest, list(warnings.filters), [signal.getsignal(s) for s in signal.valid_signals()],
                locale.setlocale(locale.LC_ALL), os.getcwd(), threading.active_count(), sys.flags, sys.excepthook,
                (tiny * np.float32(1)).view(np.uint32).tolist(), (tiny * np.float32(0.5)).view(np.uint32).tolist(),
            )

        np.random.seed(1)
        before = state()
        import headwise
        after = state()
        assert before == after, (before, after)
        x = np.full((1, 1, 4, 8), 2.0**-130, np.float32)
        headwise.scaled_dot_product_attention(x, x, x, dropout=0.5, rng=0)
        headwise.MultiHeadAttention(8, 2)(x[0], training=True)
        after = state()
        assert before == after, (before, after)
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


@once
def test_import_loads_numpy_only() -> None:
    result = run(
        """
        import sys, numpy, importlib.machinery  # which NumPy imports, too, but on Python 3.10
        before = set(sys.modules)
        import headwise
        extra = {name.partition('.')[0] for name in set(sys.modules) - before}
        own = {'headwise', '__future__', 'copy', 'threading'}  # threading tells which thread runs signal handlers
        print(extra - own - {'contextvars', '_contextvars'})  # NumPy 2 has these two itself
        """
    )
    assert result.stdout.strip() == "set()"


@once
@pytest.mark.parametrize(
    "call", ["attention([[1.0]])", "grid([[[1.0]]])", "lines([[1.0]])", "encoding([[1.0]])", "bias([[1.0]])"]
)
def test_plots_without_matplotlib_name_the_package(call: str) -> None:
    message = error_with(code=f"import sys; sys.modules['matplotlib'] = None; import headwise; headwise.plot.{call}")
    assert message.startswith("ImportError: ")
    assert message.endswith("pip install 'headwise[plot]'")


@once
def test_every_public_name_exists() -> None:
    assert len(set(hw.__all__)) == len(hw.__all__)
    for name in hw.__all__:
        assert getattr(hw, name) is not None
    for module in ("attention", "cache", "positional_encoding", "normalization", "masks", "plot", "rope", "layers"):
        assert getattr(hw, module).__name__ == f"headwise.{module}"

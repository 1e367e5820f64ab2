"""The configuration: backend, threads and precision from the environment, and an import without side effects."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import headwise as hw
from headwise._runtime import backend as _backend
from headwise._runtime import threads as _threads
from implementations import native_present
from support import Array, normal

VARIABLES = ("HEADWISE_BACKEND", "HEADWISE_TARGET", "HEADWISE_PRECISION", "HEADWISE_NUM_THREADS", "OMP_NUM_THREADS")
PRINT_CONFIG = "import headwise, json; print(json.dumps(headwise.config()))"

needs_native = pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")
once = pytest.mark.single_implementation


def run(code: str, *, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a new interpreter, without headwise's environment variables but those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # The package of this process, which need not be on PYTHONPATH.
    home = path or str(Path(hw.__file__).parent.parent)
    inherited["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [inherited.get("PYTHONPATH")])])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)


def config_with(*, path: str | None = None, **environment: str) -> dict[str, object]:
    result = run(PRINT_CONFIG, path=path, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def error_with(*, code: str = "import headwise", path: str | None = None, **environment: str) -> str:
    """The last line on standard error of an import that fails."""
    result = run(code, path=path, **environment)
    assert result.returncode == 1, result.stdout
    return result.stderr.strip().splitlines()[-1]


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


def copy_package(folder: Path) -> None:
    source = Path(hw.__file__).parent
    for file in source.rglob("*.py"):
        copy = folder / "headwise" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())


# --- HEADWISE_BACKEND ---


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


# --- threads ---


@once
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"HEADWISE_NUM_THREADS": "3"}, 3),
        ({"HEADWISE_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ({"HEADWISE_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": " 4,2 "}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "-1"}, None),
        ({}, None),
    ],
)
def test_thread_count_comes_from_the_environment(environment: dict[str, str], threads: int | None) -> None:
    assert config_with(**environment)["threads"] == (threads or _threads.available())


@once
@pytest.mark.parametrize("count", ["0", "-2", "two", "1.5", "4,2", "99999999999999999999"])
def test_bad_thread_count_in_the_environment(count: str) -> None:
    message = error_with(HEADWISE_NUM_THREADS=count)
    assert message == f"ValueError: HEADWISE_NUM_THREADS: {count!r}, expected a positive integer"


@once
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no sched_setaffinity")
def test_thread_count_follows_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + PRINT_CONFIG
    assert json.loads(run(code).stdout)["threads"] == 1


@once
@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "200000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_thread_count_follows_the_cgroup(
    files: dict[str, str], quota: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert _threads.available(str(tmp_path)) == (quota or 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert _threads.available(str(tmp_path)) == 1


def test_set_num_threads() -> None:
    hw.set_num_threads(2)
    assert hw.get_num_threads() == hw.config()["threads"] == 2
    hw.set_num_threads(np.int64(1))  # type: ignore[arg-type]
    assert hw.get_num_threads() == 1


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (1 << 40, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_bad_thread_counts(count: object, error: type[Exception]) -> None:
    before = hw.get_num_threads()
    with pytest.raises(error, match=r"^n: "):
        hw.set_num_threads(count)  # type: ignore[arg-type]
    assert hw.get_num_threads() == before


# --- HEADWISE_PRECISION, set_precision and precision ---


@pytest.fixture
def default_precision() -> Iterator[None]:
    """For tests that change the process's default."""
    before = hw.get_precision()
    yield
    hw.set_precision(before)


def attend(**keywords: str) -> Array:
    """Attention of a size that uses the bf16 matmul backends of the target."""
    x = normal((1, 2, 256, 64))
    return hw.flash_attention(x, x, x, **keywords)


def layer(**keywords: str) -> Array:
    output, _ = hw.MultiHeadAttention(128, 2, rng=0).forward(normal((1, 256, 128)), **keywords)
    return output


def project(**keywords: str) -> Array:
    return hw.linear(normal((256, 128)), normal((128, 64)), **keywords)


@once
@pytest.mark.parametrize(
    ("value", "level"), [("", "highest"), ("highest", "highest"), (" High ", "high"), ("medium", "medium")]
)
def test_precision_comes_from_the_environment(value: str, level: str) -> None:
    assert config_with(HEADWISE_PRECISION=value)["precision"] == level


@once
def test_unknown_precision_in_the_environment() -> None:
    message = error_with(HEADWISE_PRECISION="low")
    assert message == "ValueError: HEADWISE_PRECISION: 'low', expected one of 'highest', 'high', 'medium'"


@pytest.mark.usefixtures("default_precision")
@pytest.mark.parametrize("operation", [attend, layer, project])
def test_every_way_to_set_a_precision_gives_the_same_bits(operation: Callable[..., Array], implementation: str) -> None:
    highest, medium = operation(precision="highest"), operation(precision="medium")
    with hw.precision("medium"):
        np.testing.assert_array_equal(operation(), medium)
        np.testing.assert_array_equal(operation(precision=None), medium)
        np.testing.assert_array_equal(operation(precision="highest"), highest)
    np.testing.assert_array_equal(operation(), highest)
    hw.set_precision("medium")
    np.testing.assert_array_equal(operation(), medium)
    np.testing.assert_array_equal(operation(precision="highest"), highest)
    with hw.precision("highest"):
        np.testing.assert_array_equal(operation(), highest)
    assert np.array_equal(medium, highest) == (not implementation.endswith(("_amx", "_bf16")))


@pytest.mark.usefixtures("default_precision")
def test_precision_nests_over_the_default() -> None:
    hw.set_precision("high")
    with hw.precision("medium"):
        assert hw.get_precision() == hw.config()["precision"] == "medium"
        with hw.precision("highest"):
            hw.set_precision("medium")
            assert hw.get_precision() == "highest"
        hw.set_precision("high")
        assert hw.get_precision() == "medium"
    assert hw.get_precision() == "high"


def test_precision_ends_with_an_exception() -> None:
    before = hw.get_precision()
    with pytest.raises(ZeroDivisionError), hw.precision("high"), hw.precision("medium"):
        raise ZeroDivisionError
    assert hw.get_precision() == before


def test_precision_as_a_decorator() -> None:
    @hw.precision("medium")
    def level(depth: int = 0) -> list[str]:
        with hw.precision("high") if depth else nullcontext():
            return [hw.get_precision(), *(level(depth - 1) if depth else [])]

    before = hw.get_precision()
    assert level(1) == ["high", "medium"]
    assert level() == ["medium"]
    assert hw.get_precision() == before


@pytest.mark.usefixtures("default_precision")
def test_precision_is_per_thread_and_the_default_per_process() -> None:
    hw.set_precision("high")
    with ThreadPoolExecutor(1) as other:
        assert other.submit(hw.get_precision).result() == "high"  # the thread starts outside of the block
        with hw.precision("medium"):
            assert other.submit(hw.get_precision).result() == "high"
            hw.set_precision("highest")
            assert (other.submit(hw.get_precision).result(), hw.get_precision()) == ("highest", "medium")


def test_precision_is_per_task() -> None:
    async def levels(name: str) -> list[str]:
        with hw.precision(name):
            seen = [hw.get_precision()]
            await asyncio.sleep(0)  # the other task runs inside its block
            return [*seen, hw.get_precision()]

    async def both() -> list[list[str]]:
        return await asyncio.gather(levels("high"), levels("medium"))

    assert asyncio.run(both()) == [["high", "high"], ["medium", "medium"]]


@pytest.mark.parametrize("choose", [hw.set_precision, hw.precision])
@pytest.mark.parametrize(
    ("name", "error"), [("low", ValueError), ("", ValueError), ("High", ValueError), (None, TypeError), (2, TypeError)]
)
def test_bad_precisions(choose: Callable[[object], object], name: object, error: type[Exception]) -> None:
    before = hw.get_precision()
    with pytest.raises(error, match=r"^precision: .*, expected one of 'highest', 'high', 'medium'$"):
        choose(name)
    assert hw.get_precision() == before


# --- config, show_config, switching in one process ---


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


# --- the command ---


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


# --- imports ---


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
        print(extra - {'headwise', '__future__', 'contextvars', '_contextvars'})  # NumPy 2 has the last two itself
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

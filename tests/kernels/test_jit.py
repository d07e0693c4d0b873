"""How numba functions are compiled: once in a process, kept where that can be, waited for where another does it."""

import threading

import numba
import pytest

from meal_gpu.kernels.jit import Kernel


def seven() -> int:
    return 7


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_what_is_missing_is_compiled_and_kept() -> None:
    kernel = Kernel(seven, "int64()")
    assert kernel.missing()
    assert kernel()() == 7
    assert not kernel.missing()
    later = Kernel(seven, "int64()")
    assert not later.missing()
    assert later().stats.cache_hits == {"int64()": 1}
    assert Kernel(seven, "float64()").missing(), "of other arguments or results it is another"


@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
def test_a_machine_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    kernel = Kernel(seven, "int64()")
    with pytest.raises(RuntimeError, match="cache"):
        numba.njit("int64()", cache=True)(seven)
    assert not kernel.missing(), "no other process could keep it for this one"
    assert kernel()() == 7


@pytest.mark.usefixtures("cache")
def test_it_is_compiled_once_whoever_asks() -> None:
    kernel, found = Kernel(seven, "int64()"), []
    threads = [threading.Thread(target=lambda: found.append(kernel())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each is found[0] for each in found)
    assert sum(found[0].stats.cache_misses.values()) == 1


@pytest.mark.usefixtures("cache")
def test_who_needs_what_is_compiled_elsewhere_waits() -> None:
    kernel, found = Kernel(seven, "int64()"), []
    kernel.elsewhere = threading.Event()
    thread = threading.Thread(target=lambda: found.append(kernel()()))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    kernel.elsewhere.set()
    thread.join()
    assert found == [7]

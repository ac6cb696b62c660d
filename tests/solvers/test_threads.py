from __future__ import annotations

from threadpoolctl import ThreadpoolController

from onnxslim.solvers.threads import threads_for


def pools() -> list[int]:
    return [int(library.num_threads) for library in ThreadpoolController().lib_controllers]


def test_small_matrices_keep_the_libraries_of_numpy_and_scipy_to_one_thread() -> None:
    before = pools()
    assert len(before) >= 2
    with threads_for(2048):
        assert set(pools()) == {1}
    assert pools() == before


def test_large_matrices_change_nothing() -> None:
    before = pools()
    with threads_for(2049):
        assert pools() == before

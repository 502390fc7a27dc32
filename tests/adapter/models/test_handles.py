"""Which handle a pool gives on a model."""

from __future__ import annotations

from fake_resident import FakeResident, machine, pool_of_fakes  # noqa: F401


def test_a_model_that_computes_otherwise_after_a_reload_has_another_handle(
    pool_of_fakes,  # noqa: F811
    monkeypatch,
):
    """As where the server that it ran on was lost: DSPy's cache must not take the one for both."""
    pool = pool_of_fakes(max_models=1)
    first = pool.load_model("one")
    pool.load_model("two")
    assert pool.load_model("one") is first  # evicted and loaded again
    pool.load_model("two")
    monkeypatch.setattr(FakeResident, "computation", ("cpu",))
    second = pool.load_model("one")
    assert (first.computation, second.computation) == ((), ("cpu",))
    assert pool.get_loaded_model("one") is second
    assert pool.load_model("one") is second
    with first.lease(), second.lease():
        pass
    pool.close()

"""How long OpenMP's threads spin: set where it helps, and never over the user's choice."""

from __future__ import annotations

import os

import pytest

from regionrt.runtime.openmp import importing_with_short_spins, short_spins


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def test_only_what_is_imported_there_is_told() -> None:
    with importing_with_short_spins():
        assert int(os.environ["GOMP_SPINCOUNT"]) > 0
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")])
def test_the_users_choice_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert short_spins() == {}
    before = dict(os.environ)
    with importing_with_short_spins():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_it_is_undone_where_the_import_fails() -> None:
    with pytest.raises(ImportError), importing_with_short_spins():
        raise ImportError
    assert "GOMP_SPINCOUNT" not in os.environ

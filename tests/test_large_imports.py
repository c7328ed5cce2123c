"""Imports of large libraries leave Python's garbage collection as it was."""

import gc
import importlib
import sys

import pytest

from digitcnn.imports import large_imports


def test_large_imports_freeze_what_was_imported_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    with large_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0, "nothing was imported"
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with large_imports():
        importlib.import_module("colorsys")
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    with pytest.raises(ModuleNotFoundError), large_imports():
        importlib.import_module("colorsys.missing")
    assert gc.isenabled()
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled(), "a program's own choice stays"
    finally:
        gc.enable()

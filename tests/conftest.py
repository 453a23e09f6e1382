from __future__ import annotations

from collections.abc import Generator

import pytest

from tests import sysctls


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep other test runs on this machine apart, fixtures included; the wait is not part of a test's time."""
    with sysctls.machine(exclusive=item.get_closest_marker("changes_sysctls") is not None):
        return (yield)

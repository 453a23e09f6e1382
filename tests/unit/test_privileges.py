from __future__ import annotations

from pathlib import Path

import pytest

from argusd.privileges import (
    AUDIT_WRITE,
    DAC_READ_SEARCH,
    SYS_ADMIN,
    SYS_ADMIN_TO_GUARD,
    SYS_CHROOT,
    SYS_PTRACE,
    Right,
    held,
    missing,
    needed,
    warning,
)

EVERYTHING = (1 << 41) - 1
DOCKER = 0xA80425FB
"""The capabilities of a docker container, as its /proc/self/status has them."""
DAC_OVERRIDE = 1 << 1


def bits(*rights: Right) -> int:
    return sum(1 << right.number for right in rights)


@pytest.mark.parametrize("enter", ["openat2", "setns"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_nothing_is_said_when_nothing_is_missing(enter: str, uid: int) -> None:
    assert warning(enter, EVERYTHING, uid) == ""
    assert warning(enter, bits(*needed(enter)), uid) == ""
    assert warning(enter, DOCKER | bits(SYS_PTRACE, SYS_ADMIN), uid) == ""


@pytest.mark.parametrize(
    ("enter", "there", "lacking"),
    [
        ("openat2", 0, (SYS_PTRACE, DAC_READ_SEARCH)),
        ("openat2", DOCKER, (SYS_PTRACE,)),
        ("openat2", bits(SYS_PTRACE), (DAC_READ_SEARCH,)),
        ("openat2", bits(SYS_PTRACE) | DAC_OVERRIDE, ()),
        ("setns", DOCKER, (SYS_PTRACE, SYS_ADMIN)),
        ("setns", bits(SYS_PTRACE, DAC_READ_SEARCH), (SYS_ADMIN, SYS_CHROOT)),
    ],
)
def test_what_is_missing(enter: str, there: int, lacking: tuple[Right, ...]) -> None:
    assert missing(needed(enter), there) == lacking


def test_the_warning_is_one_line_that_names_each_capability_and_its_cost() -> None:
    text = warning("setns", 0, 0)
    assert text.startswith(
        "Running without CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYS_CHROOT. CAP_SYS_PTRACE: "
    )
    assert "\n" not in text
    assert all(f"{right}: {right.without.format(done='watched')}" in text for right in needed("setns"))


def test_guards_need_more() -> None:
    assert missing(needed("openat2", ["janus"]), bits(SYS_PTRACE, DAC_READ_SEARCH)) == (SYS_ADMIN_TO_GUARD, AUDIT_WRITE)
    assert warning("openat2", bits(SYS_PTRACE, DAC_READ_SEARCH, AUDIT_WRITE), 0, ["janus"]) == (
        "Running without CAP_SYS_ADMIN. CAP_SYS_ADMIN: nothing is guarded, because fanotify_init needs it"
    )
    assert warning("setns", DOCKER | bits(SYS_PTRACE, SYS_ADMIN), 0, ["argus", "janus"]) == ""


def test_both_services_are_named_in_the_order_that_was_asked_for() -> None:
    text = warning("setns", 0, 0, ["argus", "janus"])
    assert text.startswith(
        "Running without CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_AUDIT_WRITE. CAP_SYS"
    )
    assert "files and directories that are closed to the daemon's user are not watched or guarded; " in text
    assert text.endswith("CAP_AUDIT_WRITE: guards with `audit` are refused")


def test_a_user_other_than_root_is_named() -> None:
    assert warning("openat2", 0, 1000).startswith(
        "Running as user 1000, not as root, and without CAP_SYS_PTRACE, CAP_DAC"
    )


def test_capabilities_are_those_of_the_process(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t000001ffffffffff\n")
    assert held(status) == DOCKER


@pytest.mark.parametrize("text", [None, "Name:\tx\n"])
def test_nothing_is_said_to_be_missing_when_that_cannot_be_found_out(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "status").write_text(text)
    assert missing(needed("setns"), held(tmp_path / "status")) == ()

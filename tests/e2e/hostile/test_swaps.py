"""What is changed while the daemon looks at it: components swapped for links, directories that come and go."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import grpc
import pytest

from tests.daemon import Daemon
from tests.e2e.hostile.hunt import Canaries, HostileContainer, Hunt, create, destroy, event_of, watched
from tests.waiting import until

ROUNDS: Final = int(os.environ.get("ARGUSD_HOSTILE_ROUNDS", "100000"))
LOOKUPS: Final = int(os.environ.get("ARGUSD_HOSTILE_LOOKUPS", "10"))
"""The least numbers of swaps and of CreateWatch calls in each swap attack; for more of them by hand."""


ABSOLUTE: Final = "{canary}"
RELATIVE: Final = "../../../../../../../..{canary}"
SWAPS: Final = {
    "exchange": (ABSOLUTE, 1, "swap", "/data/tree/swap", "/data/tree/bait"),
    "exchange, relative": (RELATIVE, 1, "swap", "/data/tree/swap", "/data/tree/bait"),
    "exchange above": (ABSOLUTE, 1, "swap", "/data/tree", "/data/bait"),
    "replace": (RELATIVE, 10, "replace", "/data/tree/swap", "/data/tree/aside", "{bait}"),
    "relink": (ABSOLUTE, 10, "relink", "/data/tree/link", "swap", "{bait}"),
}
"""The bait, by what the number of rounds is divided because each takes longer, and the attack."""


@pytest.mark.parametrize("attack", SWAPS.values(), ids=SWAPS.keys())
def test_a_swapped_component_leads_nowhere(
    daemon: Daemon,
    canaries: Canaries,
    hunt: Hunt,
    box: HostileContainer,
    pod: str,
    attack: tuple[str, int, *tuple[str, ...]],
) -> None:
    template, divisor, *words = attack
    bait, rounds = template.format(canary=canaries.singing), ROUNDS // divisor
    tree = box.rootfs / "data" / "tree"
    (tree / "swap" / "sub" / "below").mkdir(parents=True)
    (tree / "swap" / "key").touch()
    (tree / "swap" / "sub" / "key").touch()
    (tree / "bait").symlink_to(bait)
    (tree.parent / "bait").symlink_to(bait)
    (tree / "link").symlink_to("swap")
    paths = [
        f"/data/tree/{name}{below}" for name in ("swap", "link") for below in ("", "/sub", "/sub/below", "/sub/key")
    ]
    calls = 0
    create(daemon, box.uri, *paths, pod=pod, event=["delete", "attrib"])
    create(
        daemon, box.uri, "/data/tree", "/data/tree/swap", pod=f"{pod}-tree", event=["delete", "attrib"], recursive=True
    )

    def again(number: int) -> None:
        mine = f"{pod}-{number}"
        with unless_held_up():
            create(daemon, box.uri, *paths, "/data", pod=mine, event=["delete", "attrib"], recursive=number % 2 == 0)
            create(daemon, box.uri, *paths[number % 8 :], pod=mine, event=["delete"], recursive=number % 2 == 0)
        destroy(daemon, mine)

    command = [word.format(bait=bait) for word in words]
    with box.attacking(*command, str(rounds)) as attacking, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in pool.map(again, range(LOOKUPS)):
            assert done is None
            calls += 1
    assert attacking.rounds >= rounds
    print(f"\n{attacking.rounds} swaps, {calls} x {2 * len(paths)} paths looked up and durable ones again, "
          f"{hunt.looks} looks at the watches, {len(hunt.escapes)} escapes")  # fmt: skip
    assert hunt.findings() == []


@contextmanager
def unless_held_up() -> Iterator[None]:
    """A container that changes its tree all the time holds up walks in itself, and then no more of them are begun."""
    try:
        yield
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017  (either is right)


def test_a_followed_path_is_swapped(
    daemon: Daemon, canaries: Canaries, hunt: Hunt, box: HostileContainer, pod: str
) -> None:
    tree = box.rootfs / "data" / "tree"
    (tree / "swap" / "sub").mkdir(parents=True)
    (tree / "bait").symlink_to(canaries.singing)
    paths = ("/data/tree/swap", "/data/tree/swap/sub")
    create(daemon, box.uri, *paths, pod=pod, event=["delete"], recursive=True, followMove=True)
    with box.attacking("swap", "/data/tree/swap", "/data/tree/bait", str(ROUNDS // 4)) as attacking:
        pass
    assert attacking.rounds >= ROUNDS // 4
    assert hunt.findings() == []


def test_init_is_killed_during_the_walk(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    (box.rootfs / "data" / "wide").mkdir()
    box.attack("wide", "/data/wide", "3000")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(create, daemon, box.uri, "/data", pod=f"{pod}-{number}", recursive=True, event=["all"])
            for number in range(4)
        ]
        until(lambda: len(watched(daemon.pid)) > 100, "a walk on its way")
        box.kill()
        for call in calls:
            with suppress(grpc.RpcError):  # NOT_FOUND, or it was quick enough
                call.result()
    until(lambda: not watched(daemon.pid), "all watches are gone")
    assert not [handle for handle in daemon.state() if handle[1].startswith(pod)]
    assert hunt.findings() == []


def test_directories_come_and_go_during_the_walk(daemon: Daemon, hunt: Hunt, box: HostileContainer, pod: str) -> None:
    (box.rootfs / "data" / "wide").mkdir()
    box.attack("wide", "/data/wide", "2000")
    with box.attacking("flood", "/data/wide", "1000") as attacking:
        for number in range(5):
            create(daemon, box.uri, "/data", pod=f"{pod}-{number}", recursive=True, event=["attrib"])
    assert attacking.rounds >= 1000
    box.exec(["chmod", "700", "/data/wide"])
    until(lambda: event_of(daemon, f"{pod}-4", "wide"), "an event afterwards")
    assert hunt.findings() == []

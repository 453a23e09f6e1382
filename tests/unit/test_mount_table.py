"""What a mount table says about who may keep us waiting."""

from __future__ import annotations

from argusd.mounts import Mount, parse, servers_at

TABLE = rb"""22 1 8:1 / / rw,relatime shared:1 - overlay overlay rw
30 22 0:30 / /data rw master:2 - ext4 /dev/sda1 rw
31 30 0:31 / /data/far\040away rw - nfs4 server:/x rw
32 22 0:32 / /mnt rw - fuse.sshfs me@host: rw
33 22 0:33 / /mnt2 rw - tmpfs tmpfs rw
cut off
"""
MOUNTS = list(parse(TABLE))


def test_lines_are_read_and_broken_ones_left_out() -> None:
    assert [mount.place for mount in MOUNTS] == ["/", "/data", "/data/far away", "/mnt", "/mnt2"]
    assert MOUNTS[3] == Mount("/mnt", "fuse.sshfs")


def test_servers_on_the_way_and_below_are_named() -> None:
    assert servers_at(MOUNTS, "/data/") == [Mount("/data/far away", "nfs4")]
    assert servers_at(MOUNTS, "/mnt/deep/down") == [Mount("/mnt", "fuse.sshfs")]
    assert [mount.kind for mount in servers_at(MOUNTS, "/")] == ["nfs4", "fuse.sshfs"]


def test_else_it_is_what_the_path_lies_on() -> None:
    assert servers_at(MOUNTS, "/mnt2/x") == [Mount("/mnt2", "tmpfs")]
    assert servers_at(MOUNTS, "/etc") == [Mount("/", "overlay")]
    assert servers_at([], "/etc") == []

"""The sinks of log lines: order, full buffers, stalled and closed readers, rotation, planted files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from argusd._output import COLOUR, JSON, TEXT, Output
from tests.waiting import until

TIMEOUT_S = 20.0
SMALLEST_RING = 4096
TOLD = re.compile(rb"(\d+) log lines were dropped here")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file of somebody else")


class Pipe:
    """A pipe that holds one page, and nobody reads until it is asked to."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, matches: Callable[[bytes], object]) -> bytes:
        """Read until all that was read ``matches``."""
        data = b""
        while not matches(data):
            data += os.read(self.read_fd, 65536)
        return data

    def read_all(self, output: Output, known: int = 0) -> bytes:
        """Read what ``output`` holds, and what it has to say about drops beyond the ``known`` ones."""
        data = b""
        while not (output.flush(0.001) and known + told(data) == output.dropped()):
            if select.select([self.read_fd], [], [], 0.01)[0]:
                data += os.read(self.read_fd, 65536)
        while select.select([self.read_fd], [], [], 0)[0]:
            data += os.read(self.read_fd, 65536)
        return data

    def read_to_end(self) -> bytes:
        """Read until the writing end is closed."""
        self.close_write()
        with open(self.read_fd, "rb", closefd=False) as pipe:
            return pipe.read()

    def close_read(self) -> None:
        """Close the reading end."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def close_write(self) -> None:
        """Close the writing end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_read()
    pipe.close_write()


@pytest.fixture
def output() -> Iterator[Output]:
    output = Output()
    yield output
    output.close(0.1)


def write(output: Output, line: bytes) -> None:
    """Write a line that is the same in each style."""
    output.write(line, line, line)


def numbered(count: int, size: int = 100) -> list[bytes]:
    """Lines that are all different and all ``size`` long."""
    return [b"%0*d\n" % (size - 1, number) for number in range(count)]


def told(data: bytes) -> int:
    """How many lines are said to have been dropped."""
    return sum(int(number) for number in TOLD.findall(data))


def without_told(data: bytes) -> list[bytes]:
    """The lines that are not about drops."""
    return [line for line in data.splitlines(keepends=True) if not TOLD.search(line)]


def threads() -> set[str]:
    """The native threads of this process."""
    return set(os.listdir("/proc/self/task"))  # noqa: PTH208  (names are all that is wanted)


def descriptors() -> set[str]:
    """The open descriptors of this process, that of the listing itself left out."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (the listing's own descriptor is closed after it)
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{name} {Path('/proc/self/fd', name).readlink()}")
    return found


def test_each_sink_gets_its_own_style_in_order(output: Output, tmp_path: Path) -> None:
    pipes = {style: Pipe() for style in (JSON, TEXT, COLOUR)}
    for style, sink in pipes.items():
        output.add_descriptor(sink.write_fd, style)
    output.add_file(str(tmp_path / "log"), 1 << 20, 1)
    for number in range(20):
        output.write(b"json %d\n" % number, b"text %d\n" % number, b"colour %d\n" % number)
    assert output.flush(TIMEOUT_S)
    for style, word in ((JSON, b"json"), (TEXT, b"text"), (COLOUR, b"colour")):
        assert pipes[style].read_to_end() == b"".join(b"%s %d\n" % (word, number) for number in range(20))
        pipes[style].close_read()
    assert (tmp_path / "log").read_bytes() == b"".join(b"text %d\n" % number for number in range(20))
    assert output.dropped() == 0


def test_lines_of_many_threads_are_whole_and_each_threads_in_order(output: Output, tmp_path: Path) -> None:
    output.add_file(str(tmp_path / "log"), 1 << 30, 0)

    def produce(name: bytes) -> None:
        for number in range(5000):
            write(output, b"%s %d\n" % (name, number))

    producers = [threading.Thread(target=produce, args=(name,)) for name in (b"a", b"b", b"c", b"d")]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    assert output.flush(TIMEOUT_S)
    lines = (tmp_path / "log").read_bytes().splitlines()
    for name in (b"a", b"b", b"c", b"d"):
        assert [line for line in lines if line.startswith(name)] == [b"%s %d" % (name, n) for n in range(5000)]
    assert len(lines) == 20_000


def test_a_stalled_reader_costs_lines_and_never_blocks(output: Output, pipe: Pipe) -> None:
    os.write(pipe.write_fd, b"#" * 4095 + b"\n")  # full
    output.add_descriptor(pipe.write_fd, TEXT, SMALLEST_RING)
    lines = numbered(10_000)
    for line in lines:
        write(output, line)
    held = SMALLEST_RING // 100
    assert output.dropped() == 10_000 - held
    assert not output.flush(0.05)

    data = pipe.read_all(output)
    assert without_told(data)[1:] == lines[:held]
    assert told(data) == 10_000 - held

    write(output, b"after\n")
    assert pipe.read_until(lambda data: data.endswith(b"after\n"))
    assert output.flush(TIMEOUT_S)
    assert output.dropped() == 10_000 - held


def test_a_stalled_sink_leaves_the_others_alone(output: Output, pipe: Pipe, tmp_path: Path) -> None:
    output.add_descriptor(pipe.write_fd, TEXT, SMALLEST_RING)
    output.add_file(str(tmp_path / "log"), 1 << 20, 1)
    lines = numbered(1000)
    for line in lines:
        write(output, line)
    until(lambda: (tmp_path / "log").read_bytes() == b"".join(lines), "all lines in the file")


@pytest.mark.parametrize("style", [JSON, TEXT, COLOUR])
def test_what_was_dropped_is_said_in_the_sinks_style_where_it_is_missing(
    output: Output, pipe: Pipe, style: int
) -> None:
    output.add_descriptor(pipe.write_fd, style, SMALLEST_RING)
    for line in numbered(200):
        write(output, line)
    data = pipe.read_all(output)
    notice = next(line for line in data.splitlines() if TOLD.search(line))
    if style == JSON:
        record = json.loads(notice)
        assert (record["level"], record["logger"], record["dropped"]) == ("WARNING", "argusd.output", told(notice))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    else:
        assert re.match(rb"W\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.]+:\d+\] \d+ log lines", notice)


def test_every_drop_is_told_once(output: Output, pipe: Pipe) -> None:
    output.add_descriptor(pipe.write_fd, TEXT, SMALLEST_RING)
    data, written = b"", 0
    for _ in range(20):
        for line in numbered(150):
            write(output, line)
        written += 150
        data += pipe.read_all(output, told(data))
    assert told(data) == output.dropped()
    assert len(without_told(data)) + output.dropped() == written


def test_a_line_larger_than_the_buffer_is_dropped_alone(output: Output, pipe: Pipe) -> None:
    output.add_descriptor(pipe.write_fd, TEXT, SMALLEST_RING)
    write(output, b"before\n")
    write(output, b"x" * 5000 + b"\n")
    write(output, b"after\n")
    data = pipe.read_until(lambda data: data.endswith(b"after\n"))
    assert data.splitlines()[0] == b"before"
    assert TOLD.findall(data) == [b"1"]
    assert output.dropped() == 1


def test_a_reader_that_went_away_costs_its_lines_only(output: Output, pipe: Pipe, tmp_path: Path) -> None:
    output.add_descriptor(pipe.write_fd, TEXT)
    output.add_file(str(tmp_path / "log"), 1 << 20, 1)
    pipe.close_read()
    for line in numbered(10):
        write(output, line)
    assert output.flush(TIMEOUT_S)
    assert output.dropped() == 10
    assert (tmp_path / "log").read_bytes() == b"".join(numbered(10))
    assert output.close(TIMEOUT_S)


def test_a_descriptor_that_is_non_blocking_loses_nothing(output: Output, pipe: Pipe) -> None:
    os.set_blocking(pipe.write_fd, False)
    output.add_descriptor(pipe.write_fd, TEXT)
    lines = numbered(2000)
    for line in lines:
        write(output, line)
    assert pipe.read_until(lambda data: data.endswith(lines[-1])) == b"".join(lines)
    assert output.dropped() == 0


def test_a_full_disk_is_counted(output: Output) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        output.add_descriptor(full, TEXT)
        write(output, b"x\n")
        assert output.flush(TIMEOUT_S)
        assert output.dropped() == 1
        assert output.close(TIMEOUT_S)
    finally:
        os.close(full)


def test_a_file_is_rotated_at_its_size_and_keeps_so_many_backups(output: Output, tmp_path: Path) -> None:
    output.add_file(str(tmp_path / "log"), 1000, 3)
    lines = numbered(75)
    for line in lines:
        write(output, line)
        assert output.flush(TIMEOUT_S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]
    assert [(tmp_path / name).stat().st_size for name in ("log.3", "log.2", "log.1", "log")] == [1000, 1000, 1000, 500]
    kept = b"".join((tmp_path / name).read_bytes() for name in ("log.3", "log.2", "log.1", "log"))
    assert kept == b"".join(lines[-35:])
    assert output.dropped() == 0


def test_no_line_is_torn_by_a_rotation(output: Output, tmp_path: Path) -> None:
    output.add_file(str(tmp_path / "log"), 3000, 500, SMALLEST_RING)
    lines = numbered(2000, 97)
    for start in range(0, 2000, 20):
        for line in lines[start : start + 20]:
            write(output, line)
        assert output.flush(TIMEOUT_S)
    files = [*sorted(tmp_path.glob("log.*"), key=lambda path: -int(path.suffix[1:])), tmp_path / "log"]
    assert b"".join(path.read_bytes() for path in files) == b"".join(lines)
    assert [path.name for path in files if not path.read_bytes().endswith(b"\n")] == []


def test_without_backups_a_full_file_starts_again(output: Output, tmp_path: Path) -> None:
    output.add_file(str(tmp_path / "log"), 1000, 0)
    for line in numbered(25):
        write(output, line)
        assert output.flush(TIMEOUT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_bytes() == b"".join(numbered(25)[-5:])


def test_a_file_is_appended_to_and_its_size_counts(tmp_path: Path) -> None:
    for start in (0, 5, 10):
        output = Output()
        output.add_file(str(tmp_path / "log"), 1000, 1)
        for line in numbered(15)[start : start + 5]:
            write(output, line)
        assert output.close(TIMEOUT_S)
    assert (tmp_path / "log.1").read_bytes() == b"".join(numbered(15)[:10])
    assert (tmp_path / "log").read_bytes() == b"".join(numbered(15)[10:])


def test_a_new_file_is_not_for_everybody(output: Output, tmp_path: Path) -> None:
    output.add_file(str(tmp_path / "log"), 1000, 1)
    assert (tmp_path / "log").stat().st_mode & 0o027 == 0


def _symlink(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.symlink_to(path.parent / "victim")


def _dangling_symlink(path: Path) -> None:
    path.symlink_to(path.parent / "not-there")


def _hard_link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.hardlink_to(path.parent / "victim")


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _foreign_file(path: Path) -> None:
    path.write_text("theirs")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    "plant",
    [
        _symlink,
        _dangling_symlink,
        _hard_link,
        _directory,
        _fifo,
        _socket,
        pytest.param(_foreign_file, marks=needs_root),
    ],
)
def test_what_somebody_planted_is_refused_and_left_alone(
    output: Output, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / "log"
    plant(path)
    before = path.lstat()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(FileExistsError) as caught:
        output.add_file(str(path), 1000, 1)
    assert caught.value.filename == str(path)
    assert path.lstat() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    if (tmp_path / "victim").exists():
        assert (tmp_path / "victim").read_text() == "precious"
    write(output, b"still usable\n")


def test_a_fifo_with_a_reader_is_refused_as_well(output: Output, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(FileExistsError):
            output.add_file(str(tmp_path / "log"), 1000, 1)
    finally:
        os.close(reader)


def test_a_link_planted_before_a_rotation_is_not_followed(output: Output, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    path = tmp_path / "log"
    output.add_file(str(path), 1000, 1)
    for line in numbered(10):
        write(output, line)
    assert output.flush(TIMEOUT_S)
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    (tmp_path / "log.1").symlink_to(tmp_path / "victim")
    for line in numbered(10):
        write(output, line)
    assert output.flush(TIMEOUT_S)
    assert (tmp_path / "victim").read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_bytes() == b"".join(numbered(10))


def plant_folders(path: Path, count: int) -> None:
    for number in range(1, count + 1):
        path.with_name(f"{path.name}.{number}").joinpath("full").mkdir(parents=True)


def test_a_folder_in_the_place_of_an_older_log_is_left_out(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "log"
    output.add_file(str(path), 1000, 3)
    (tmp_path / "log.2" / "full").mkdir(parents=True)
    for line in numbered(35):
        write(output, line)
        assert output.flush(TIMEOUT_S)
    kept = b"".join((tmp_path / name).read_bytes() for name in ("log.3", "log.1", "log"))
    assert kept == b"".join(numbered(35)[-25:])
    assert (tmp_path / "log.2" / "full").is_dir()
    assert output.dropped() == 0


def test_without_a_place_for_older_logs_nothing_is_lost_until_all_their_room_is_used(
    output: Output, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    output.add_descriptor(stderr, JSON)
    output.add_file(str(path), 1000, 2)
    plant_folders(path, 2)
    for line in numbered(25):
        write(output, line)
        assert output.flush(TIMEOUT_S)
    assert path.read_bytes() == b"".join(numbered(25))
    for line in numbered(25):
        write(output, line)
        assert output.flush(TIMEOUT_S)
    assert path.stat().st_size <= 3200
    assert output.close(TIMEOUT_S)
    os.close(stderr)
    said = (tmp_path / "stderr").read_bytes()
    assert said.count(b"cannot be rotated: File exists") == 1
    assert said.count(b"cannot be written: File too large") == 1


def test_a_file_that_is_moved_away_or_removed_is_made_anew(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "log"
    output.add_file(str(path), 1 << 20, 1)
    write(output, b"one\n")
    assert output.flush(TIMEOUT_S)
    path.rename(tmp_path / "moved")
    write(output, b"two\n")
    assert output.flush(TIMEOUT_S)
    assert (tmp_path / "moved").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"
    path.unlink()
    write(output, b"three\n")
    assert output.flush(TIMEOUT_S)
    assert path.read_bytes() == b"three\n"
    path.unlink()
    path.write_bytes(b"made by logrotate\n")
    write(output, b"four\n")
    assert output.flush(TIMEOUT_S)
    assert path.read_bytes() == b"made by logrotate\nfour\n"


def test_what_is_planted_in_the_place_of_the_file_is_left_alone_and_said_once(
    output: Output, pipe: Pipe, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    output.add_descriptor(pipe.write_fd, JSON)
    output.add_file(str(path), 1 << 20, 1)
    path.rename(tmp_path / "moved")
    _symlink(path)
    for line in numbered(3):
        write(output, line)
        assert output.flush(TIMEOUT_S)
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "moved").read_bytes() == b"".join(numbered(3))
    said = pipe.read_until(lambda data: numbered(3)[-1] in data and b"WARNING" in data)
    assert said.count(b"cannot be opened anew: File exists") == 1


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system with room for so much; ``grow`` it with another mount."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@needs_root
def test_lines_for_which_the_disk_has_no_room_are_told_of_and_leave_no_torn_line(
    output: Output, pipe: Pipe, tmp_path: Path
) -> None:
    with small_disk(tmp_path, 16):
        output.add_file(str(tmp_path / "log"), 1 << 20, 1)
        output.add_descriptor(pipe.write_fd, TEXT)
        seen: list[bytes] = []
        with open(pipe.read_fd, "rb", closefd=False) as stderr:
            reader = threading.Thread(target=lambda: seen.extend(iter(stderr.readline, b"")))
            reader.start()
            lines = numbered(300)
            for line in lines:
                write(output, line)
            until(lambda: any(b"cannot be written: No space left on device" in line for line in seen), "said at once")
            assert output.flush(TIMEOUT_S)
            lost = output.dropped()
            subprocess.run(["mount", "-o", "remount,size=1m", tmp_path], check=True)
            write(output, b"room again\n")
            assert output.flush(TIMEOUT_S)
            until(lambda: any(b"is written again" in line for line in seen), "said when there is room")
            assert output.close(TIMEOUT_S)
            pipe.close_write()
            reader.join(TIMEOUT_S)
        content = (tmp_path / "log").read_bytes().splitlines(keepends=True)
        assert lost > 0
        assert content[: 300 - lost] == lines[: 300 - lost]
        assert re.search(rb"\] %d log lines were lost here" % lost, content[300 - lost])
        assert content[301 - lost :] == [b"room again\n"]


@pytest.mark.parametrize(("name", "error"), [("no/such/log", FileNotFoundError), ("file/log", NotADirectoryError)])
def test_a_file_that_cannot_be_made_is_an_os_error(
    output: Output, tmp_path: Path, name: str, error: type[OSError]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error):
        output.add_file(str(tmp_path / name), 1000, 1)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_an_impossible_file_name_is_refused(output: Output, name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        output.add_file(name, 1000, 1)


def test_an_unknown_style_is_refused(output: Output, pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="style"):
        output.add_descriptor(pipe.write_fd, 99)


def test_close_writes_what_is_queued(pipe: Pipe) -> None:
    output = Output()
    output.add_descriptor(pipe.write_fd, TEXT)
    for line in numbered(30):
        write(output, line)
    assert output.close(TIMEOUT_S)
    assert pipe.read_to_end() == b"".join(numbered(30))


def test_close_of_a_stalled_output_comes_back_and_its_thread_ends_with_the_stall(pipe: Pipe) -> None:
    before = threads()
    output = Output()
    output.add_descriptor(pipe.write_fd, TEXT)
    lines = numbered(1000)
    for line in lines:
        write(output, line)
    assert not output.close(0.05)
    assert pipe.read_until(lambda data: data.endswith(lines[-1])) == b"".join(lines)
    until(lambda: threads() == before, "the writer thread is gone")


def test_close_twice_and_what_comes_after_it() -> None:
    output = Output()
    assert output.close()
    assert output.close()
    write(output, b"nowhere\n")
    assert output.flush(0.01)
    with pytest.raises(RuntimeError):
        output.add_descriptor(1, TEXT)


def test_drops_stay_known_after_close(pipe: Pipe) -> None:
    output = Output()
    output.add_descriptor(pipe.write_fd, TEXT)
    pipe.close_read()
    write(output, b"lost\n")
    assert output.close(TIMEOUT_S)
    assert output.dropped() == 1
    write(output, b"late\n")
    assert output.dropped() == 2


def test_no_descriptor_or_thread_is_left(tmp_path: Path, pipe: Pipe) -> None:
    (tmp_path / "planted").symlink_to("log")
    before = threads(), descriptors()
    for _ in range(50):
        output = Output()
        output.add_descriptor(pipe.write_fd, TEXT)
        output.add_file(str(tmp_path / "log"), 100, 2)
        with pytest.raises(FileExistsError):
            output.add_file(str(tmp_path / "planted"), 100, 2)
        for line in numbered(2):
            write(output, line)
        assert output.close(TIMEOUT_S)
        pipe.read_until(lambda data: len(data) == 200)
    assert (threads(), descriptors()) == before

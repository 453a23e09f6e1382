"""Short random sequences of operations, done at once by one process: hypothesis finds the shortest that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.soak.operations import Operation
from tests.soak.replay import Script, play_all
from tests.soak.subjects import FULL, Subject
from tests.soak.watching import Watching

MEMORY = Path("/dev/shm")  # noqa: S108 - a tmpfs, which makes an example ten times as fast

SETTLE_S = 10.0

DIRECTORIES = ("in", "out", "in/a", "in/a/c", "in/a/c/d", "in/b", "in/c", "out/a", "out/a/b")
FILES = ("in/file", "in/a/old", "out/a/old")
BEFORE = (*(Operation("mkdir", path) for path in DIRECTORIES), *(Operation("create", path) for path in FILES))

# Few names, so that operations meet. The last part is often new.
names = st.sampled_from(["a", "b", "c", "d"])
directories = st.one_of(
    st.sampled_from(["in", "in/a", "in/a/c", "in/b", "in/c", "out", "out/a"]),
    st.builds("{}/{}".format, st.sampled_from(["in", "in/a", "in/b", "out"]), names),
    st.builds("{}/{}/{}".format, st.sampled_from(["in", "in/a", "out"]), names, names),
)
paths = st.one_of(directories, st.sampled_from(["in/file", "in/a/old", "out/a/old", "in/a/new", "in/c/new", "out/new"]))
news = st.builds("{}/u{}".format, directories, st.integers(0, 5))
nothing = st.just("")
operations = st.one_of(
    st.builds(Operation, st.just("mkdir"), directories, nothing),
    st.builds(Operation, st.just("create"), st.one_of(news, paths), nothing),
    st.builds(Operation, st.sampled_from(["write", "chmod"]), paths, nothing),
    st.builds(Operation, st.just("unlink"), st.one_of(news, paths), nothing),
    st.builds(Operation, st.just("rmdir"), directories, nothing),
    st.builds(Operation, st.just("rename"), st.one_of(paths, news), st.one_of(paths, news)),
    st.builds(Operation, st.just("rename"), directories, directories),
    st.builds(Operation, st.just("exchange"), paths, paths),
    st.builds(Operation, st.just("link"), paths, news),
    st.builds(Operation, st.just("symlink"), st.builds("{}/l".format, directories), st.sampled_from(["a", "..", "/"])),
)
bursts = st.lists(st.lists(operations, min_size=1, max_size=10), min_size=1, max_size=3)
subjects = st.one_of(st.just(FULL), st.builds(lambda subject: (subject,), st.sampled_from(FULL)))


class Engines:
    """One engine for all examples, and another one after each that failed."""

    def __init__(self) -> None:
        self._watching = Watching(SETTLE_S)

    def play(self, watched: tuple[Subject, ...], work: list[list[Operation]], place: Path) -> list[str]:
        violations = play_all(watched, BEFORE, work, place, self._watching).violations
        if violations:
            self.close()
            self._watching = Watching(SETTLE_S)
        return violations

    def close(self) -> None:
        self._watching.close()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


@pytest.mark.slow
@pytest.mark.timeout(400)  # a failure is shrunk
@settings(
    max_examples=4000,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(watched=subjects, work=bursts)
def test_every_operation_is_told_and_nothing_else(
    engines: Engines,
    tmp_path_factory: pytest.TempPathFactory,
    watched: tuple[Subject, ...],
    work: list[list[Operation]],
) -> None:
    place = MEMORY if MEMORY.is_dir() else tmp_path_factory.getbasetemp()
    violations = engines.play(watched, work, place)
    script = "\n# then at once\n".join("\n".join(map(str, burst)) for burst in work)
    assert not violations, f"{violations}\n{Script(watched, BEFORE, work[-1])}\n{script}"

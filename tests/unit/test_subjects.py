"""CreateWatch requests: what is accepted, what it becomes, and how the rest is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argusd import subjects
from argusd.proto.argus_pb2 import ArgusdConfig, ArgusWatcherSubject
from argusd.subjects import EVENT_MASKS, InvalidRequest, Request, Subject, container_id, parse_watch
from argusd.templates import DEFAULT_WATCH_TEMPLATE, compile_format

CID = "0123456789abcdef" * 4
VALID = "access, attrib, closewrite, closenowrite, close, create, delete, deleteself, modify, moveself, movedfrom, "
VALID += "movedto, move, open, all"


def subject(**fields: object) -> ArgusWatcherSubject:
    """Return a message that is valid but for ``fields``."""
    message = ArgusWatcherSubject(path=["/p"], event=["open"])
    for name in fields:
        message.ClearField(name)
    message.MergeFrom(ArgusWatcherSubject(**fields))  # type: ignore[arg-type]  # any field
    return message


def request(*entries: ArgusWatcherSubject, **fields: object) -> ArgusdConfig:
    """Return a message that is valid but for ``fields`` and the subjects."""
    fields.setdefault("cid", [f"docker://{CID}"])
    return ArgusdConfig(subject=entries or [subject()], **fields)  # type: ignore[arg-type]  # any field


def only(message: ArgusWatcherSubject) -> Subject:
    """Return the one subject that ``message`` becomes."""
    (parsed,) = parse_watch(request(message)).subjects
    return parsed


def refusal(message: ArgusdConfig) -> tuple[str, str]:
    """Return the field and the reason for which ``message`` is refused."""
    with pytest.raises(InvalidRequest) as caught:
        parse_watch(message)
    assert str(caught.value) == f"{caught.value.field}: {caught.value.reason}"
    return caught.value.field, caught.value.reason


def test_a_whole_request() -> None:
    message = ArgusdConfig(
        name="w1",
        nodeName="node1",
        podName="pod1",
        pid=[7, 8, 7],
        cid=[f"cri-o://{CID}", CID, "containerd://0123456789ab"],
        subject=[
            ArgusWatcherSubject(
                path=["/etc", "var//log/./", "/etc/"],
                event=["create", "move"],
                ignore=["b", "a", "b", ""],
                onlyDir=True,
                recursive=True,
                maxDepth=3,
                followMove=True,
                tags={"k": "v", "a": ""},
            )
        ],
        logFormat="{file}",
    )
    assert parse_watch(message) == Request(
        name="w1",
        node_name="node1",
        pod_name="pod1",
        pids=(7, 8),
        cids=(f"cri-o://{CID}", "containerd://0123456789ab"),
        subjects=(
            Subject(
                paths=("/etc", "/var/log"),
                mask=0x100 | 0x40 | 0x80,
                ignore=("a", "b"),
                only_dir=True,
                recursive=True,
                max_depth=3,
                follow_move=True,
                tags=(("a", ""), ("k", "v")),
            ),
        ),
        template=compile_format("{file}"),
        warnings=(),
    )


def test_every_event_word() -> None:
    single = {word: only(subject(event=[word])).mask for word in EVENT_MASKS}
    assert single["all"] == 0xFFF
    assert single["close"] == single["closewrite"] | single["closenowrite"] == 0x18
    assert single["move"] == single["movedfrom"] | single["movedto"] == 0xC0
    assert single["open"] == 0x20
    others = [mask for word, mask in single.items() if word not in {"all", "close", "move"}]
    assert sum(others) == 0xFFF
    assert all(mask.bit_count() == 1 for mask in others)
    assert only(subject(event=["Open", "MODIFY", "open"])).mask == 0x22


@pytest.mark.parametrize(
    ("path", "normalised"),
    [
        ("/", "/"),
        ("//", "/"),
        (".", "/"),
        ("/./", "/"),
        ("etc", "/etc"),
        ("./etc/", "/etc"),
        ("/a//b/./c/", "/a/b/c"),
        ("/a/../b", "/a/../b"),
        ("..", "/.."),
        ("/...", "/..."),
        (" ", "/ "),
        ("/é\n", "/é\n"),
        ("/" + "a/" * 2047, "/" + "a/" * 2046 + "a"),
        ("/" + "b" * 255, "/" + "b" * 255),
    ],
)
def test_paths_are_normalised(path: str, normalised: str) -> None:
    assert only(subject(path=[path])).paths == (normalised,)


def test_what_only_matters_to_a_recursive_watch_is_dropped_otherwise() -> None:
    assert only(subject(ignore=["x"], maxDepth=3)) == only(subject())
    assert only(subject(ignore=["x"], maxDepth=3, recursive=True)) != only(subject(recursive=True))
    assert only(subject(ignore=["x" * 256, ""], recursive=True)) == only(subject(recursive=True))


def test_an_unknown_event_is_ignored_with_a_warning() -> None:
    parsed = parse_watch(request(subject(event=["opened", "open", "re\nad", "opened"])))
    assert parsed.subjects[0].mask == 0x20
    assert parsed.warnings == (
        f"subject[0].event: unknown, ignored: 'opened', 're\\nad' (valid events: {VALID})",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "warning"),
    [
        (subject(event=[]), "subject[0]: skipped, it has no valid event"),
        (subject(event=["x"]), "subject[0]: skipped, it has no valid event"),
        (subject(path=[]), "subject[0]: skipped, it has no path"),
        (subject(path=[""]), "subject[0]: skipped, it has no path"),
    ],
)
def test_a_subject_without_use_is_skipped_with_a_warning(entry: ArgusWatcherSubject, warning: str) -> None:
    parsed = parse_watch(request(entry, subject()))
    assert len(parsed.subjects) == 1
    assert parsed.warnings[-1] == warning
    assert refusal(request(entry)) == (
        "subject",
        f"nothing to watch: no subject has both a path and a valid event (valid events: {VALID})",
    )


def test_no_subject_at_all() -> None:
    assert refusal(ArgusdConfig(cid=[CID]))[0] == "subject"


def test_warnings_are_bounded() -> None:
    warnings = parse_watch(request(*[subject(event=["open", "x" * 9999])] * 1000, logFormat="{")).warnings
    assert len(warnings) == 18
    assert warnings[16] == "984 more warnings about subjects are not shown"
    assert max(map(len, warnings)) < 400


def test_a_malformed_format_is_a_warning_and_the_default() -> None:
    parsed = parse_watch(request(logFormat="{nope}"))
    assert parsed.warnings == ('Malformed ArgusWatcher `.spec.logFormat`: "argument not found"',)
    assert parsed.template == DEFAULT_WATCH_TEMPLATE
    assert parsed == parse_watch(request())


@pytest.mark.parametrize(
    "scheme", ["", "docker://", "containerd://", "cri-o://", "podman://", "rkt://", "runc://", "crun://"]
)
@pytest.mark.parametrize("digits", [12, 63, 64])
def test_container_ids(scheme: str, digits: int) -> None:
    assert container_id(scheme + CID[:digits]) == CID[:digits]


@pytest.mark.parametrize(
    "cid",
    [
        "", "docker://", CID[:11], CID + "0", CID.upper(), f"docker:/{CID}", f"lxc://{CID}", f" {CID}", f"{CID}\n",
        f"docker://docker://{CID}", "../../../../etc/passwd", "٣" * 12, "docker://" + "g" * 64,
    ],
)  # fmt: skip
def test_no_container_ids(cid: str) -> None:
    field, reason = refusal(request(cid=[CID, cid]))
    assert field == "cid[1]"
    assert reason.startswith(f"{cid!r} is no container id")


TOO_MUCH = [
    (request(name="n" * 1025), "name", "1025 bytes long, the limit is 1024"),
    (request(nodeName="é" * 513), "nodeName", "1026 bytes long, the limit is 1024"),
    (request(podName="n" * 1025), "podName", "1025 bytes long, the limit is 1024"),
    (request(cid=[]), "cid", "neither cid nor pid says which containers are meant"),
    (request(pid=[1, 0]), "pid[1]", "0 is no process id"),
    (request(pid=[-1]), "pid[0]", "-1 is no process id"),
    (request(pid=[1] * 257), "pid", "257 entries, the limit is 256"),
    (request(cid=[CID] * 257), "cid", "257 entries, the limit is 256"),
    (request(*[subject()] * 1025), "subject", "1025 entries, the limit is 1024"),
    (request(subject(path=["/"] * 4097)), "subject[0].path", "4097 entries, the limit is 4096"),
    (request(subject(event=["open"] * 257)), "subject[0].event", "257 entries, the limit is 256"),
    (request(subject(ignore=["x"] * 1025)), "subject[0].ignore", "1025 entries, the limit is 1024"),
    (request(subject(tags={str(i): "" for i in range(257)})), "subject[0].tags", "257 entries, the limit is 256"),
    (request(subject(tags={"k": "v" * 4097})), "subject[0].tags['k']", "4097 bytes long, the limit is 4096"),
    (
        request(subject(tags={"k" * 4097: ""})),
        f"subject[0].tags['{'k' * 100}'…]",
        "the key is 4097 bytes long, the limit is 4096",
    ),
    (
        request(subject(), subject(path=["/", "/", "a/" * 5000])),
        "subject[1].path[2]",
        "10000 bytes long, the limit is 4095",
    ),
    (request(subject(path=["a/" * 2047 + "a"])), "subject[0].path[0]", "4096 bytes long, the limit is 4095"),
    (
        request(subject(path=["/" + "é" * 128])),
        "subject[0].path[0]",
        f"the component '{'é' * 100}'… is longer than 255 bytes",
    ),
    (request(subject(path=["", "/a\0b"])), "subject[0].path[1]", "'/a\\x00b' holds a NUL"),
    (request(subject(ignore=["\0"])), "subject[0].ignore[0]", "'\\x00' holds a NUL"),
    (request(subject(maxDepth=-1)), "subject[0].maxDepth", "-1 is negative"),
]


@pytest.mark.parametrize(("message", "field", "reason"), TOO_MUCH, ids=[field for _, field, _ in TOO_MUCH])
def test_what_is_refused(message: ArgusdConfig, field: str, reason: str) -> None:
    assert refusal(message) == (field, reason)


def test_masks_are_those_of_inotify() -> None:
    bits = [value for name, value in vars(subjects).items() if name.startswith("IN_") and name != "IN_ALL_EVENTS"]
    assert sorted(bits) == [1 << i for i in range(12)]


MESSAGES = st.builds(
    ArgusdConfig,
    name=st.text(),
    pid=st.lists(st.integers(-1, 9), max_size=3),
    cid=st.lists(st.sampled_from([CID, f"docker://{CID}"]) | st.text(), max_size=3),
    subject=st.lists(
        st.builds(
            ArgusWatcherSubject,
            path=st.lists(st.text("/.a\0") | st.text(), max_size=4),
            event=st.lists(st.sampled_from([*EVENT_MASKS, "x"]) | st.text(), max_size=4),
            ignore=st.lists(st.text(), max_size=4),
            onlyDir=st.booleans(),
            recursive=st.booleans(),
            maxDepth=st.integers(-2, 9),
            followMove=st.booleans(),
            tags=st.dictionaries(st.text(), st.text(), max_size=4),
        ),
        max_size=4,
    ),
    logFormat=st.text("{}:s") | st.text(),
)


@given(MESSAGES)
def test_any_request_is_refused_with_a_reason_or_becomes_normal(message: ArgusdConfig) -> None:
    try:
        parsed = parse_watch(message)
    except InvalidRequest as error:
        assert str(error).isprintable()  # noqa: PT017  (either outcome is right)
        return
    assert all(warning.isprintable() for warning in parsed.warnings)
    for entry in parsed.subjects:
        assert entry.mask
        assert entry.paths
        assert len(set(entry.paths)) == len(entry.paths)
        for path in entry.paths:
            assert path == "/" or all(part not in {"", "."} for part in path[1:].split("/"))
    again = ArgusdConfig(name=message.name, pid=parsed.pids, cid=parsed.cids, logFormat=message.logFormat)
    for entry in parsed.subjects:
        again.subject.append(as_message(entry))
    assert parse_watch(again) == parsed


def as_message(entry: Subject) -> ArgusWatcherSubject:
    """Return a message that asks for ``entry``."""
    events = [word for word, mask in EVENT_MASKS.items() if mask & entry.mask == mask]
    return ArgusWatcherSubject(
        path=entry.paths,
        event=events,
        ignore=entry.ignore,
        onlyDir=entry.only_dir,
        recursive=entry.recursive,
        maxDepth=entry.max_depth,
        followMove=entry.follow_move,
        tags=dict(entry.tags),
    )


@given(st.lists(st.sampled_from(["/", "a", ".", "..", "b/"]), min_size=1).map("".join))
def test_normalising_twice_changes_nothing(path: str) -> None:
    (once,) = only(subject(path=[path])).paths
    assert only(subject(path=[once])).paths == (once,)
    kept = [part for part in path.split("/") if part not in {"", "."}]
    assert list(itertools.chain.from_iterable(part.split("/") for part in [once[1:]] if part)) == kept

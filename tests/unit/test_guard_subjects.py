"""CreateGuard requests: what is accepted, what it becomes, and how the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argusd._fanotify import EVENTS
from argusd.proto.janus_pb2 import JanusdConfig, JanusGuardSubject
from argusd.subjects import GUARD_EVENT_MASKS, GuardSubject, InvalidRequest, Request, parse_guard
from argusd.templates import DEFAULT_GUARD_TEMPLATE, GUARD_FIELDS, compile_format

CID = "0123456789abcdef" * 4
OPEN, ACCESS = 0x10000, 0x20000


def subject(**fields: object) -> JanusGuardSubject:
    """Return a message that is valid but for ``fields``."""
    message = JanusGuardSubject(deny=["/p"], event=["open"])
    for name in fields:
        message.ClearField(name)
    message.MergeFrom(JanusGuardSubject(**fields))  # type: ignore[arg-type]  # any field
    return message


def request(*entries: JanusGuardSubject, **fields: object) -> JanusdConfig:
    """Return a message that is valid but for ``fields`` and the subjects."""
    fields.setdefault("cid", [f"docker://{CID}"])
    return JanusdConfig(subject=entries or [subject()], **fields)  # type: ignore[arg-type]  # any field


def only(message: JanusGuardSubject) -> GuardSubject:
    """Return the one subject that ``message`` becomes."""
    (parsed,) = parse_guard(request(message)).subjects
    return parsed


def refusal(message: JanusdConfig) -> tuple[str, str]:
    """Return the field and the reason for which ``message`` is refused."""
    with pytest.raises(InvalidRequest) as caught:
        parse_guard(message)
    assert str(caught.value) == f"{caught.value.field}: {caught.value.reason}"
    return caught.value.field, caught.value.reason


def test_a_whole_request() -> None:
    message = JanusdConfig(
        name="g1",
        nodeName="node1",
        podName="pod1",
        pid=[7, 8, 7],
        cid=[f"cri-o://{CID}", CID, "containerd://0123456789ab"],
        subject=[
            JanusGuardSubject(
                deny=["/etc//shadow", "var/./log/", "/etc/shadow"],
                allow=["/etc/", "/"],
                event=["Open", "ACCESS", "open"],
                onlyDir=True,
                autoAllowOwner=True,
                audit=True,
                tags={"k": "v", "a": ""},
            )
        ],
        logFormat="{response}",
    )
    assert parse_guard(message) == Request(
        name="g1",
        node_name="node1",
        pod_name="pod1",
        pids=(7, 8),
        cids=(f"cri-o://{CID}", "containerd://0123456789ab"),
        subjects=(
            GuardSubject(
                deny=("/etc/shadow", "/var/log"),
                allow=("/etc", "/"),
                mask=OPEN | ACCESS,
                only_dir=True,
                auto_allow_owner=True,
                audit=True,
                tags=(("a", ""), ("k", "v")),
            ),
        ),
        template=compile_format("{response}", GUARD_FIELDS),
        warnings=(),
    )


def test_every_event_word() -> None:
    assert {word: only(subject(event=[word])).mask for word in GUARD_EVENT_MASKS} == {
        "open": OPEN,
        "access": ACCESS,
        "all": OPEN | ACCESS,
    }
    assert {"OPEN_PERM": OPEN, "ACCESS_PERM": ACCESS} == EVENTS


@pytest.mark.parametrize("word", ["modify", "create", "close", "opened", "", "open ", "re\nad", "x" * 5000])
def test_an_event_that_guards_nothing_is_refused(word: str) -> None:
    field, reason = refusal(request(subject(), subject(event=["open", word])))
    assert field == "subject[1].event[1]"
    assert reason.endswith("guards nothing (valid events: open, access, all)")
    assert reason.startswith(repr(word[:100]))
    assert len(reason) < 200


def test_deny_beats_allow() -> None:
    parsed = parse_guard(request(subject(deny=["/a", "/b/"], allow=["b", "/c", "/a/./"])))
    assert (parsed.subjects[0].deny, parsed.subjects[0].allow) == (("/a", "/b"), ("/c",))
    assert parsed.warnings == ("subject[0].allow: also in deny, which wins: '/a', '/b'",)


def test_a_subject_may_only_allow_or_only_deny() -> None:
    assert only(subject(deny=[], allow=["/a"])).allow == ("/a",)
    assert only(subject(deny=["/a"])).allow == ()
    assert only(subject(deny=["/a"], allow=["/a"])).deny == ("/a",)


@pytest.mark.parametrize(
    ("entry", "warning"),
    [
        (subject(event=[]), "subject[0]: skipped, it has no event"),
        (subject(deny=[]), "subject[0]: skipped, it has no path"),
        (subject(deny=[""], allow=[""]), "subject[0]: skipped, it has no path"),
    ],
)
def test_a_subject_without_use_is_skipped_but_never_all_of_them(entry: JanusGuardSubject, warning: str) -> None:
    parsed = parse_guard(request(entry, subject()))
    assert len(parsed.subjects) == 1
    assert parsed.warnings[-1] == warning
    assert refusal(request(entry)) == (
        "subject",
        "nothing to guard: no subject has both a path and an event (valid events: open, access, all)",
    )


def test_a_malformed_format_is_a_warning_and_the_default() -> None:
    parsed = parse_guard(request(logFormat="{file}"))
    assert parsed.warnings == ('Malformed JanusGuard `.spec.logFormat`: "argument not found"',)
    assert parsed.template == DEFAULT_GUARD_TEMPLATE
    assert parsed == parse_guard(request())


REFUSED = [
    (request(name="n" * 1025), "name", "1025 bytes long, the limit is 1024"),
    (request(cid=[]), "cid", "neither cid nor pid says which containers are meant"),
    (request(cid=[CID[:11]]), "cid[0]", None),
    (request(pid=[0]), "pid[0]", "0 is no process id"),
    (JanusdConfig(cid=[CID]), "subject", None),
    (request(*[subject()] * 1025), "subject", "1025 entries, the limit is 1024"),
    (request(subject(deny=["/"] * 4097)), "subject[0].deny", "4097 entries, the limit is 4096"),
    (request(subject(allow=["/"] * 4097)), "subject[0].allow", "4097 entries, the limit is 4096"),
    (request(subject(event=["open"] * 257)), "subject[0].event", "257 entries, the limit is 256"),
    (request(subject(allow=["/a\0b"])), "subject[0].allow[0]", "'/a\\x00b' holds a NUL"),
    (request(subject(deny=["/", "a/" * 5000])), "subject[0].deny[1]", "10000 bytes long, the limit is 4095"),
    (request(subject(tags={"k": "v" * 4097})), "subject[0].tags['k']", "4097 bytes long, the limit is 4096"),
]


@pytest.mark.parametrize(("message", "field", "reason"), REFUSED, ids=[field for _, field, _ in REFUSED])
def test_what_is_refused(message: JanusdConfig, field: str, reason: str | None) -> None:
    named, why = refusal(message)
    assert named == field
    assert reason in {None, why}


def test_many_paths_on_both_lists_are_compared_in_no_time_to_speak_of() -> None:
    paths = [f"/{number}" for number in range(4096)]
    parsed = only(subject(deny=paths, allow=paths[::-1]))
    assert (len(parsed.deny), parsed.allow) == (4096, ())


MESSAGES = st.builds(
    JanusdConfig,
    name=st.text(),
    pid=st.lists(st.integers(-1, 9), max_size=3),
    cid=st.lists(st.sampled_from([CID, f"docker://{CID}"]) | st.text(), max_size=3),
    subject=st.lists(
        st.builds(
            JanusGuardSubject,
            deny=st.lists(st.text("/.a\0") | st.text(), max_size=4),
            allow=st.lists(st.text("/.a") | st.text(), max_size=4),
            event=st.lists(st.sampled_from([*GUARD_EVENT_MASKS]) | st.sampled_from(["x", "All"]), max_size=3),
            onlyDir=st.booleans(),
            autoAllowOwner=st.booleans(),
            audit=st.booleans(),
            tags=st.dictionaries(st.text(), st.text(), max_size=4),
        ),
        max_size=4,
    ),
    logFormat=st.text("{}:s") | st.text(),
)


@given(MESSAGES)
def test_any_request_is_refused_with_a_reason_or_becomes_normal(message: JanusdConfig) -> None:
    try:
        parsed = parse_guard(message)
    except InvalidRequest as error:
        assert str(error).isprintable()  # noqa: PT017  (either outcome is right)
        return
    assert all(warning.isprintable() for warning in parsed.warnings)
    again = JanusdConfig(name=message.name, pid=parsed.pids, cid=parsed.cids, logFormat=message.logFormat)
    for entry in parsed.subjects:
        assert entry.mask
        assert entry.deny or entry.allow
        assert len({*entry.deny, *entry.allow}) == len(entry.deny) + len(entry.allow)
        again.subject.append(as_message(entry))
    assert parse_guard(again) == parsed


def as_message(entry: GuardSubject) -> JanusGuardSubject:
    """Return a message that asks for ``entry``."""
    return JanusGuardSubject(
        deny=entry.deny,
        allow=entry.allow,
        event=[word for word, mask in GUARD_EVENT_MASKS.items() if mask & entry.mask == mask],
        onlyDir=entry.only_dir,
        autoAllowOwner=entry.auto_allow_owner,
        audit=entry.audit,
        tags=dict(entry.tags),
    )

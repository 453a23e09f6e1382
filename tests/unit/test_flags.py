"""The gflags spellings of the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argusd import __version__
from argusd.flags import FlagError, Settings, help_text, parse, version_text

WORDS = [
    "-tls", "-notls", "--tls=maybe", "-address", "-address=:1", "--", "-", "-v", "-v=3", "x", "", "-help",
    "-noservices", "-services=argus,janus", "-log_dir=", "-=", "---tls",
]  # fmt: skip


def test_defaults() -> None:
    assert parse([], "argusd") == Settings(
        action="serve",
        services=("argus",),
        tls=False,
        tlscafile="",
        tlscertfile="",
        tlskeyfile="",
        address="[::]:50051",
        config="",
        log="auto",
        log_dir="/tmp",  # noqa: S108  (the documented default)
        v=0,
        reflection=False,
    )


@pytest.mark.parametrize(
    ("program", "services"),
    [
        ("argusd", ("argus",)),
        ("/usr/local/bin/argusd", ("argus",)),
        ("./janusd", ("janus",)),
        ("argusd-1.0", ("argus",)),
        ("", ("argus",)),
    ],
)
def test_the_name_of_the_program_picks_the_services(program: str, services: tuple[str, ...]) -> None:
    assert parse([], program).services == services


def test_services_flag_overrides_the_name() -> None:
    assert parse(["-services=argus,janus"], "janusd").services == ("argus", "janus")
    assert parse(["-services", "argus, argus"], "janusd").services == ("argus",)


@pytest.mark.parametrize(
    "argv", [["-v=3"], ["--v=3"], ["-v", "3"], ["--v", "3"], ["-v=1", "-v=3"], ["-v=0x3"], ["-v=+3"]]
)
def test_every_spelling_of_a_value(argv: list[str]) -> None:
    assert parse(argv, "argusd").v == 3


def test_a_value_may_begin_with_a_hyphen_or_be_empty() -> None:
    assert parse(["-v", "-1"], "argusd").v == -1
    assert parse(["-tlscafile", "-tls"], "argusd") == Settings(tlscafile="-tls")
    assert parse(["-log_dir="], "argusd") == Settings(log_dir="")
    assert parse(["-log_dir", ""], "argusd") == Settings(log_dir="")
    assert parse(["-tlscafile=a=b"], "argusd").tlscafile == "a=b"
    assert parse(["-log-dir=/x"], "argusd").log_dir == "/x"


@pytest.mark.parametrize("word", ["", "=true", "=TRUE", "=t", "=1", "=yes", "=Yes", "=y"])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_boolean_is_true(dashes: str, word: str) -> None:
    assert parse([f"{dashes}tls{word}"], "argusd").tls is True


@pytest.mark.parametrize("argument", ["notls", "tls=false", "tls=F", "tls=0", "tls=no", "tls=N"])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_boolean_is_false(dashes: str, argument: str) -> None:
    assert parse(["-tls", f"{dashes}{argument}"], "argusd").tls is False


def test_a_boolean_takes_no_second_argument() -> None:
    with pytest.raises(FlagError, match=r"^ERROR: unexpected argument 'false'$"):
        parse(["-tls", "false"], "argusd")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-x"], "ERROR: unknown command line flag 'x'"),
        (["--x=1"], "ERROR: unknown command line flag 'x'"),
        (["-nox"], "ERROR: unknown command line flag 'nox'"),
        (["-tl"], "ERROR: unknown command line flag 'tl'"),
        (["-TLS"], "ERROR: unknown command line flag 'TLS'"),
        (["-x", "-y"], "ERROR: unknown command line flag 'x'\nERROR: unknown command line flag 'y'"),
        (["-noaddress"], "ERROR: boolean value (noaddress) specified for string command line flag"),
        (["-address"], "ERROR: flag 'address' is missing its argument"),
        (["-tls=maybe"], "ERROR: illegal value 'maybe' specified for bool flag 'tls'"),
        (["-tls="], "ERROR: illegal value '' specified for bool flag 'tls'"),
        (["-v=x"], "ERROR: illegal value 'x' specified for int32 flag 'v'"),
        (["-v="], "ERROR: illegal value '' specified for int32 flag 'v'"),
        (["-v=1_0"], "ERROR: illegal value '1_0' specified for int32 flag 'v'"),
        (["-v=4294967296"], "ERROR: illegal value '4294967296' specified for int32 flag 'v'"),
        (
            ["-enter=door"],
            "ERROR: illegal value 'door' specified for string flag 'enter' (wanted: auto, openat2 or setns)",
        ),
        (["-log=xml"], "ERROR: illegal value 'xml' specified for string flag 'log' (wanted: auto, json or text)"),
        (
            ["-services=argus,zeus"],
            "ERROR: illegal value 'argus,zeus' specified for string flag 'services' (wanted: argus, janus)",
        ),
        (["-config=/etc/argusd.yaml"], "ERROR: flag 'config': this version has no static configuration"),
        (["watch"], "ERROR: unexpected argument 'watch'"),
        (["-"], "ERROR: unexpected argument '-'"),
        (["--", "-tls"], "ERROR: unexpected argument '-tls'"),
    ],
)
def test_a_mistake_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(argv, "argusd")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value", ["[::]:50051", "0.0.0.0:0", "localhost:65535", ":1", "unix:/run/a.sock", "[fe80::1%eth0]:1"]
)
def test_addresses(value: str) -> None:
    assert parse([f"-address={value}"], "argusd").address == value


@pytest.mark.parametrize(
    "value", ["", "50051", "host", "host:", "host:http", "host:65536", "::1:50051", "unix:", "a b:1", "h:٣"]
)
def test_no_addresses(value: str) -> None:
    with pytest.raises(FlagError, match=r"^ERROR: illegal value '.*' specified for string flag 'address'"):
        parse([f"-address={value}"], "argusd")


def test_two_hyphens_end_the_flags() -> None:
    assert parse(["-tls", "--"], "argusd").tls is True


@pytest.mark.parametrize("argument", ["-help", "--help", "-helpfull", "--helpshort", "-h", "-help=yes"])
def test_help_wins_over_mistakes(argument: str) -> None:
    assert parse(["-x", argument, "-version", "-config=x"], "argusd").action == "help"


def test_version() -> None:
    assert parse(["--version"], "argusd").action == "version"
    assert parse(["-noversion", "-nohelp"], "argusd").action == "serve"
    assert version_text("/opt/argusd") == f"argusd version {__version__}\n"


def test_help_names_every_flag_with_its_default() -> None:
    text = help_text("/opt/janusd")
    for name in Settings.__dataclass_fields__.keys() - {"action"}:
        assert f"\n  -{name} (" in text
    assert '-services (string, default "janus")' in text
    assert text.startswith("janusd: allows or denies ")
    assert help_text("/opt/argusd").startswith("argusd: reports ")
    assert "-tls (bool, default false)" in text
    assert max(map(len, text.splitlines())) <= 100


@given(st.lists(st.sampled_from(WORDS) | st.text() | st.text().map("-{}".format)), st.text())
def test_nothing_but_settings_or_a_flag_error(argv: list[str], program: str) -> None:
    try:
        settings = parse(argv, program)
    except FlagError as error:
        assert str(error).startswith("ERROR: ")  # noqa: PT017  (either outcome is right)
    else:
        assert settings.services


@given(st.integers(-(2**31), 2**31 - 1))
def test_every_int32_is_a_verbosity(number: int) -> None:
    assert parse([f"-v={number}"], "argusd").v == number

"""The server's side of mutual TLS, checked before grpc sees it: grpc names neither the file nor the reason."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Never

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TlsError", "credentials", "expiry", "expiry_line"]

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_SOON: Final = timedelta(days=30)
_VERSION: Final = 0xA0  # the tag of the only field that may be missing
_VALIDITY: Final = 3  # serial number, signature, issuer, validity
_UTC_TIME: Final = 0x17
_MAX_BYTES: Final = 16 * 1024 * 1024
_MISMATCH: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"})


class TlsError(Exception):
    """The TLS files cannot be used; ``str()`` is the message for the operator."""


class _EncryptedKeyError(Exception):
    pass


def expiry(cert_file: str) -> datetime | None:
    """Return when the first certificate in a file expires; None when that cannot be read."""
    try:
        text = Path(cert_file).read_text("ascii", "replace")
        begin = text.index(_BEGIN)
        return _not_after(ssl.PEM_cert_to_DER_cert(text[begin : text.index(_END, begin) + len(_END)]))
    except (OSError, ValueError, IndexError):
        return None


def expiry_line(cert_file: str, expires: datetime, now: datetime) -> tuple[int, str] | None:
    """Return what to log of a certificate, with its level; None while it is valid for long enough."""
    date = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    if expires <= now:
        return logging.ERROR, f"The certificate in {cert_file} (-tlscertfile) expired at {date}: clients refuse it"
    if expires - now < _SOON:
        days = (expires - now).days
        return logging.WARNING, f"The certificate in {cert_file} (-tlscertfile) expires at {date}, in {days} days"
    return None


def _not_after(der: bytes) -> datetime:
    """Return the end of validity of a certificate (RFC 5280, section 4.1). Raises ValueError or IndexError."""
    _, content, _ = _element(der)
    _, rest, _ = _element(content)
    fields: list[bytes] = []
    while rest and len(fields) < _VALIDITY + 1:
        tag, value, rest = _element(rest)
        if tag != _VERSION:
            fields.append(value)
    _, _, after = _element(fields[_VALIDITY])
    tag, value, _ = _element(after)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Split off the first element: its tag, its content, and what follows it."""
    size, start = der[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + size], der[start + size :]


def credentials(ca_file: str, cert_file: str, key_file: str) -> grpc.ServerCredentials:
    """Credentials that require and verify a client certificate.

    Raises TlsError naming the file. Each file is read once, so that a pipe will do.
    """
    if not cert_file or not key_file:
        raise TlsError("Certificate/private key not supplied (with -tls flag).")
    if not ca_file:
        raise TlsError("Certificate authority not supplied (-tlscafile, with -tls flag): no client could be verified.")
    authorities, certificate, key = _read(ca_file), _read(cert_file), _read(key_file)
    _check_certificates("-tlscafile", ca_file, authorities)
    _check_certificates("-tlscertfile", cert_file, certificate)
    _check_pair(cert_file, certificate, key_file, key)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authorities, require_client_auth=True)


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TlsError(f"Cannot read TLS file {path}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise TlsError(f"Cannot read TLS file {path}: larger than {_MAX_BYTES} bytes")
    return content


def _check_certificates(flag: str, path: str, content: bytes) -> None:
    try:
        text = content.decode("ascii", "replace")  # what stands between PEM blocks is free text
        if "-----BEGIN " not in text:
            raise TlsError(f"TLS file {path} ({flag}) is not PEM")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text.replace("\ufffd", "?"))
    except ssl.SSLError as error:
        raise TlsError(f"TLS file {path} ({flag}) holds no valid PEM certificate: {_reason(error)}") from error


def _check_pair(cert_path: str, certificate: bytes, key_path: str, key: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _as_path(certificate) as cert, _as_path(key) as secret:
        try:
            context.load_cert_chain(cert, secret, password=_refuse_password)
        except _EncryptedKeyError:
            raise TlsError(f"TLS file {key_path} (-tlskeyfile) is encrypted; a plain private key is needed") from None
        except ssl.SSLError as error:
            if error.reason in _MISMATCH:
                raise TlsError(
                    f"TLS file {key_path} (-tlskeyfile) is not the private key of the certificate in {cert_path}"
                ) from error
            raise TlsError(
                f"TLS file {key_path} (-tlskeyfile) holds no private key in PEM that can be used with {cert_path}: "
                f"{_reason(error)}"
            ) from error


def _refuse_password() -> Never:
    # Without this callback OpenSSL would ask on the terminal.
    raise _EncryptedKeyError


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """Give ``content`` a path in memory: the ssl module loads a key from nothing else."""
    fd = os.memfd_create("argusd-tls", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()

"""Throw-away certificate authorities."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write both; returns the paths."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return str(certificate), str(key)


class Authority:
    """A certificate authority that signs for 127.0.0.1, if nothing else is said."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key.public_key(), is_authority=True)

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, folder: Path, name: str) -> str:
        path = folder / f"{name}.pem"
        path.write_bytes(self.certificate)
        return str(path)

    def issue(
        self,
        name: str,
        password: bytes = b"",
        *,
        organization: str = "",
        names: Sequence[x509.GeneralName] = (LOOPBACK,),
    ) -> Pair:
        """``names`` are the addresses and hosts that the certificate is good for."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        certificate = self._sign(x509.Name(attributes), key.public_key(), is_authority=False, names=names)
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        is_authority: bool,
        names: Sequence[x509.GeneralName] = (LOOPBACK,),
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Files:
    """A server's TLS files."""

    ca: str
    certificate: str
    key: str

    @classmethod
    def make(cls, authority: Authority, folder: Path) -> Self:
        return cls(authority.write(folder, "ca"), *authority.issue("server").write(folder, "server"))

    def flags(self, **replaced: str) -> list[str]:
        """The flags that use them; ``replaced`` is by ``ca``, ``certificate``, ``key``, and leaves out what is ""."""
        values = {"ca": self.ca, "certificate": self.certificate, "key": self.key, **replaced}
        names = {"ca": "tlscafile", "certificate": "tlscertfile", "key": "tlskeyfile"}
        return ["-tls", *(f"-{names[what]}={path}" for what, path in values.items() if path)]

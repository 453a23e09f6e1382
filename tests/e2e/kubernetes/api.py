"""The little of the Kubernetes API that the tests speak themselves, with a client certificate."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 30.0
MERGE: Final = "application/merge-patch+json"
GROUPS: Final = {
    **dict.fromkeys(
        ("namespaces", "nodes", "pods", "services", "endpoints", "configmaps", "secrets", "serviceaccounts"), "/api/v1"
    ),
    **dict.fromkeys(("daemonsets", "deployments", "replicasets"), "/apis/apps/v1"),
}
"""Where each kind of object lives."""

Object = dict[str, Any]


class ApiError(Exception):
    """The API server, or kubectl, refused; the text is what it said."""


class Api:
    """Objects are the dictionaries that their JSON is. Each call has its own connection: any thread may make it."""

    def __init__(self, port: int, folder: Path) -> None:
        """``folder`` holds the authority's certificate and the administrator's key."""
        self._port = port
        self._context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        self._context.load_cert_chain(folder / "admin.pem", folder / "admin.key")

    def raw(self, method: str, path: str, body: object = None, kind: str = "application/json") -> bytes:
        """One request; the answer's body, or ApiError, or OSError where nobody answers."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=TIMEOUT_S)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": kind})
            response = connection.getresponse()
            text = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(f"{method} {path}: {response.status} {text.decode()}")
        return text

    def list(self, plural: str, namespace: str = "") -> list[Object]:
        """All objects of a kind, in one namespace or in all."""
        items: list[Object] = json.loads(self.raw("GET", path_of(plural, namespace)))["items"]
        return items

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """One object."""
        found: Object = json.loads(self.raw("GET", path_of(plural, namespace, name)))
        return found

    def create(self, plural: str, namespace: str, value: Object) -> Object:
        """A new object; returns it as the server has it."""
        made: Object = json.loads(self.raw("POST", path_of(plural, namespace), value))
        return made

    def patch(self, plural: str, namespace: str, name: str, value: Object) -> None:
        """Change what ``value`` names; None takes a field away."""
        self.raw("PATCH", path_of(plural, namespace, name), value, MERGE)

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Ask for an object's end, with everything that it owns."""
        self.raw("DELETE", path_of(plural, namespace, name), {"propagationPolicy": "Background"})


def path_of(plural: str, namespace: str, name: str = "") -> str:
    """Where an object, or all of a kind, are found."""
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{GROUPS[plural]}{inside}/{plural}" + (f"/{name}" if name else "")

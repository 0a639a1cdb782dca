"""Which addresses this version can use, checked before a socket is made."""

from __future__ import annotations

from urllib.parse import urlsplit

from voxring.errors import StudyError

_MAX_PORT = 65535


def check_address(name: str, address: str, *, sealed: bool, insecure: bool) -> str:
    """Return the address for nng if it can be used.

    Links of a study with keys are sealed, whether the address says ``tcp`` or ``tls+tcp``.

    Raises
    ------
    StudyError
        There is none, it is malformed, or links in the clear were not asked for.

    Examples
    --------
    >>> check_address("a", "tls+tcp://127.0.0.1:7001", sealed=True, insecure=False)
    'tcp://127.0.0.1:7001'
    """
    if not address:
        raise StudyError(
            f"{name}: expected an address, got none: write one in the study or give it on the command line"
        )
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and parts.port is not None
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("tcp", "tls+tcp"):
        raise StudyError(f"{name}: expected an address like tcp://HOST:PORT, got {address!r}")
    if sealed:
        return "tcp" + address[len(parts.scheme) :]
    if parts.scheme == "tls+tcp":
        raise StudyError(
            f"{name}: {address!r} asks for encrypted links, and the study has no keys: make one for every member with "
            "`voxring keys new` and write the public keys in the study"
        )
    if not insecure:
        raise StudyError(
            f"{name}: the study has no keys, so its links are not encrypted: whoever can listen on both sides of a "
            "party can work out its numbers. Make keys with `voxring keys new`, or pass --insecure if the network "
            "itself is trusted, such as one machine or a VPN"
        )
    return address


def port_of(address: str) -> int:
    """Return the port of an address that was checked."""
    return urlsplit(address).port or 0


def beside(address: str, distance: int) -> str:
    """Return the address whose port is so much higher.

    Raises
    ------
    StudyError
        There is no such port.

    Examples
    --------
    >>> beside("tcp://127.0.0.1:7001", 2)
    'tcp://127.0.0.1:7003'
    """
    port = port_of(address) + distance
    if not 0 < port <= _MAX_PORT:
        raise StudyError(f"{address}: expected room for a port {distance} further, there is none: choose another port")
    return f"{address.rpartition(':')[0]}:{port}"

"""Which addresses this version can use, checked before a socket is made."""

from __future__ import annotations

from urllib.parse import urlsplit

from voxring.errors import StudyError


def check_address(name: str, address: str, *, insecure: bool) -> str:
    """Return the address if it can be used.

    Raises
    ------
    StudyError
        There is none, it is malformed, or links in the clear were not asked for.

    Examples
    --------
    >>> check_address("a", "tcp://127.0.0.1:7001", insecure=True)
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
    if parts.scheme == "tls+tcp":
        raise StudyError(
            f"{name}: {address!r} asks for encrypted links, which this version does not have: "
            "use tcp:// with --insecure inside a network that you trust, such as a VPN"
        )
    if not insecure:
        raise StudyError(
            f"{name}: links are not encrypted in this version: whoever can listen on both sides of a party can work "
            "out its numbers. Pass --insecure if the network itself is trusted, such as one machine or a VPN"
        )
    return address

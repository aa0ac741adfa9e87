"""How a node joins: it compares the service's root with its code, proves the service, makes its key, and shows the code.

In this order: what is told to a wrong service is nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import store
from blazen_certs.authority import IssuedIdentity
from blazen_certs.codes import JoinCode
from blazen_certs.errors import ServiceError
from blazen_certs.pem import load_certificates, private_key_pem, split_pem
from blazen_certs.publish import Material, publish_identity
from blazen_certs.remote import RemoteService, ServiceAddress, fetch_roots
from blazen_certs.remote_request import request_pem

__all__ = ["join"]


async def join(address: ServiceAddress, code: JoinCode, directory: Path) -> IssuedIdentity:
    """Become the node that *code* names, with an identity under *directory* (``nodes/<node>``).

    An identity that is there already goes on being used until the new one takes its place in one step.

    Raises:
        ServiceError: No answer; not the service that the code pins (the code was not told to it); or the code was refused.
        CertificateError: What it sent does not hold; nothing was written, and the code is used up.
        OSError: The disk, or the rights, do not allow it.
    """
    root = next((root for root in await fetch_roots(address) if code.pins(root)), None)
    if root is None:
        raise ServiceError(
            f"{address} is not the certificate service that made this code: its root is another. The code was not told to it. "
            "Look at the address; if the mesh has changed its root since, have a new code made",
            "Untrusted",
        )
    # Before the code is spent: that the disk takes an identity.
    home = store.node_directory(directory, code.peer.node_id)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with store.locked(home):
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    service = RemoteService(address, code.peer.trust_domain, [root])
    granted = await service.join(code.id, code.secret, request_pem(code.peer, key))
    material = Material(granted.certificate, private_key_pem(key), granted.trust.bundle, granted.trust.crl)
    version = publish_identity(
        home,
        material,
        node_id=code.peer.node_id,
        trust_domain=code.peer.trust_domain,
        now=datetime.now(UTC),
        roots=[root],
    )
    leaf = load_certificates(split_pem(granted.certificate, store.CERTIFICATE))[0]
    return IssuedIdentity(home, code.peer, version, leaf)

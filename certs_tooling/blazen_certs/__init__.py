"""The identities: a certificate authority, leaves, inspection, verification. Command: ``blazen-certs``.

    from blazen_certs import Authority

    authority = Authority.create(Path("certs"), "mesh.example")
    identity = authority.issue("analyst")
    identity.path                     # certs/nodes/analyst: the directory that a sidecar watches

Who reads what: ``profile`` says what a certificate of ours holds, ``checks`` whether a finished one is right, ``pem`` is the
one door for files, ``store`` the layout on disk, ``authority`` puts these together, ``verify`` and ``describe`` are what the
commands of those names show.
"""

from __future__ import annotations

from blazen_certs.authority import Authority, IssuedIdentity
from blazen_certs.checks import Check
from blazen_certs.errors import CertificateError, StoreError
from blazen_certs.profile import LeafRequest, build_leaf, build_root
from blazen_certs.verify import Report, verify_identity

__all__ = [
    "Authority",
    "CertificateError",
    "Check",
    "IssuedIdentity",
    "LeafRequest",
    "Report",
    "StoreError",
    "build_leaf",
    "build_root",
    "verify_identity",
]

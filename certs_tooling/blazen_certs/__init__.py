"""The identities: a certificate authority, leaves, inspection, verification. Command: ``blazen-certs``.

    from blazen_certs import Authority

    authority = Authority.create(Path("certs"), "mesh.example")
    identity = authority.issue("analyst")
    identity.path                     # certs/nodes/analyst: the directory that a sidecar watches

Who reads what: ``profile`` and ``crl`` say what a certificate and a revocation list of ours hold, ``chain`` and ``checks``
whether a finished one is right, ``pem`` is the one door for files, ``store`` the layout on disk, ``publish`` the one door to a
node's directory. ``trust``, ``keys`` and ``issuing`` are the CAs, ``issued`` the record, ``authority`` puts these together.
``renewal`` says when, ``upkeep`` does it, ``issuing_renewal`` and ``rotation`` replace CAs in guarded steps, ``watch`` runs it;
``node_state``, ``status``, ``verify`` and ``describe`` look, ``sidecar`` asks an Envoy what it serves.
"""

from __future__ import annotations

from blazen_certs.authority import Authority, IssuedIdentity, SignedIdentity
from blazen_certs.checks import Check
from blazen_certs.crl import build_crl
from blazen_certs.errors import CertificateError, StoreError
from blazen_certs.keys import RootKeys
from blazen_certs.profile import LeafRequest, build_issuing, build_leaf, build_root
from blazen_certs.publish import Material, publish_identity
from blazen_certs.trust import Issuer, Root, Trust, read_trust
from blazen_certs.upkeep import Kept, Revocation, keep_lists, keep_node, revoke_node, revoke_serial
from blazen_certs.verify import Report, verify_identity

__all__ = [
    "Authority",
    "CertificateError",
    "Check",
    "IssuedIdentity",
    "Issuer",
    "Kept",
    "LeafRequest",
    "Material",
    "Report",
    "Revocation",
    "Root",
    "RootKeys",
    "SignedIdentity",
    "StoreError",
    "Trust",
    "build_crl",
    "build_issuing",
    "build_leaf",
    "build_root",
    "keep_lists",
    "keep_node",
    "publish_identity",
    "read_trust",
    "revoke_node",
    "revoke_serial",
    "verify_identity",
]

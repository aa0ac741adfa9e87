"""Mutual TLS 1.3 from files that are swapped whole: the contexts of both ends, and the secrets they read.

Names are pinned in the context alone: Envoy joins matchers of the context and of the secret with OR.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blazen_mesh.paths import NodePaths
from blazen_peer.identity import PeerId

__all__ = ["ANY", "downstream", "sds_config", "secrets", "upstream"]

ANY = "type.googleapis.com/"
_TLS = f"{ANY}envoy.extensions.transport_sockets.tls.v3."
LEAF, BUNDLE, PROOF, TOKEN = "leaf", "bundle", "sidecar-proof", "token"


def downstream(allowed: Iterable[PeerId], paths: NodePaths) -> dict[str, Any]:
    """Return the ingress's transport socket: a client certificate is demanded and must carry one of *allowed*.

    Session resumption is off: a resumed session has no certificate to look at.

    Raises:
        ValueError: *allowed* is empty, which to Envoy means any name at all.
    """
    context = {
        "@type": f"{_TLS}DownstreamTlsContext",
        "common_tls_context": _common(allowed, paths),
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def upstream(callee: PeerId, paths: NodePaths) -> dict[str, Any]:
    """Return the egress's transport socket: our own certificate is shown, and the server's must carry *callee*'s name."""
    context = {
        "@type": f"{_TLS}UpstreamTlsContext",
        "common_tls_context": _common([callee], paths),
        "max_session_keys": 0,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def sds_config(name: str, paths: NodePaths) -> dict[str, Any]:
    """Return the reference to the secret *name*.

    Certificates are asked for again whenever the identity changes, so that those which come late are taken up too: the
    secret's own watch begins only once it could be read.
    """
    source: dict[str, Any] = {"path": paths.sds(name)}
    if name in (LEAF, BUNDLE):
        source["watched_directory"] = {"path": paths.identity_dir}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}


def secrets(paths: NodePaths, *, crl: bool) -> dict[str, dict[str, Any]]:
    """Return every secret-discovery file of a node: its name, and its document.

    Args:
        crl: Whether there are revocation lists. Then there must be one of every authority that issues leaves; only leaves are
            looked up, since the root, which would have to revoke the others, is offline.
    """
    current = f"{paths.identity_dir}/current"
    watched = {"watched_directory": {"path": paths.identity_dir}}
    leaf = {
        "certificate_chain": {"filename": f"{current}/tls.crt"},
        "private_key": {"filename": f"{current}/tls.key"},
        **watched,
    }
    bundle: dict[str, Any] = {"trusted_ca": {"filename": f"{current}/bundle.crt"}, **watched}
    if crl:
        bundle |= {"crl": {"filename": f"{current}/crl.pem"}, "only_verify_leaf_cert_crl": True}
    found = {
        LEAF: _secret(LEAF, {"tls_certificate": leaf}),
        BUNDLE: _secret(BUNDLE, {"validation_context": bundle}),
        PROOF: _secret(PROOF, {"generic_secret": {"secret": _watched_file(paths.proof_file)}}),
    }
    if paths.token_file is not None:
        found[TOKEN] = _secret(TOKEN, {"generic_secret": {"secret": _watched_file(paths.token_file)}})
    return found


def _common(allowed: Iterable[PeerId], paths: NodePaths) -> dict[str, Any]:
    names = [{"san_type": "URI", "matcher": {"exact": str(peer)}} for peer in allowed]
    if not names:
        raise ValueError("no name to pin: Envoy would take any certificate of the bundle")
    return {
        # Both: upstream, Envoy stops at 1.2 unless told otherwise.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [sds_config(LEAF, paths)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": sds_config(BUNDLE, paths),
        },
    }


def _secret(name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"resources": [{"@type": f"{_TLS}Secret", "name": name, **body}]}


def _watched_file(path: str) -> dict[str, Any]:
    return {"filename": path, "watched_directory": {"path": path.rpartition("/")[0] or "/"}}

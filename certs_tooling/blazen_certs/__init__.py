"""The identities: a certificate authority, leaves, inspection, verification. Command: ``blazen-certs``."""

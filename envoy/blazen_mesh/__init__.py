"""The sidecars: who may call whom, as Envoy configuration. Command: ``blazen-mesh``."""

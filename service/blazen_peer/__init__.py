"""Distributed workflow peers, wire-compatible with Blazen."""

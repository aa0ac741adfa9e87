"""The application of `gpu`: one step that turns weighted terms into a vector, by feature hashing."""

from __future__ import annotations

import hashlib
import math

from blazen_peer import StartEvent, StopEvent, Workflow, register_workflow, step

DIMENSIONS = 8


class Terms(StartEvent):
    """The input: `{"terms": {"word": weight}}`."""

    terms: dict[str, float]


class Embedding(StopEvent):
    """The result: a vector of length 1, or of zeros where there was no term."""

    embedding: list[float]


@step("gpu::embed")
def embed(event: Terms) -> Embedding:
    """Add each term's weight, with a sign, to the dimension that its hash gives."""
    vector = [0.0] * DIMENSIONS
    for term, weight in event.terms.items():
        digest = hashlib.sha256(term.encode()).digest()
        vector[digest[0] % DIMENSIONS] += weight if digest[1] % 2 else -weight
    length = math.hypot(*vector) or 1.0
    return Embedding(embedding=[round(value / length, 4) for value in vector])


register_workflow(Workflow("embed", [embed], data_class="internal"))

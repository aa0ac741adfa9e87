"""The application of the `analyst` peer: two steps that read a document.

`my_app::analyze` counts and finds the key terms; `my_app::summarize` picks the sentences that carry them.
Both are plain functions: the peer runs them in threads, so a long document keeps nobody else waiting.
"""

from __future__ import annotations

import re
from collections import Counter

from blazen_peer import Event, StartEvent, StopEvent, Workflow, register_workflow, step

MAX_TERMS = 8
MAX_SENTENCES = 3
MAX_SENTENCE_CHARS = 600
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_SENTENCE = re.compile(r"(?:[^.!?\n]|\n(?!\s*\n))+[.!?]*")  # ends at a full stop or the like, or at an empty line
_STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been but by can could do does each for from had has have he her his how if "
    "in into is it its may more most must no not of on one only or other our out over she should so some such than that the "
    "their them then there these they this those to under up us was we were what when where which while who whose will with "
    "would you your".split()
)


class Document(StartEvent):
    """The input: `{"document": "..."}`."""

    document: str


class Analyzed(Event, event_type="my_app::Analyzed"):
    """What `my_app::analyze` hands on."""

    document: str
    characters: int
    words: int
    distinct_words: int
    sentences: int
    key_terms: dict[str, int]


class Summary(StopEvent):
    """The result."""

    characters: int
    words: int
    distinct_words: int
    sentences: int
    key_terms: dict[str, int]
    key_sentences: list[str]


@step("my_app::analyze")
def analyze(event: Document) -> Analyzed:
    """Count words and sentences; the key terms are the most frequent words that mean something."""
    words = Counter(match.group().lower() for match in _WORD.finditer(event.document))
    terms = Counter({word: count for word, count in words.items() if len(word) > 2 and word not in _STOP_WORDS})
    return Analyzed(
        document=event.document,
        characters=len(event.document),
        words=words.total(),
        distinct_words=len(words),
        sentences=sum(1 for sentence in _SENTENCE.finditer(event.document) if sentence.group().strip()),
        key_terms=dict(terms.most_common(MAX_TERMS)),
    )


@step("my_app::summarize")
def summarize(event: Analyzed) -> Summary:
    """Pick the sentences in which the key terms are densest, in the document's own order."""
    best: list[tuple[float, int, str]] = []
    seen: set[str] = set()
    for position, match in enumerate(_SENTENCE.finditer(event.document)):
        sentence = " ".join(match.group().split())
        if not sentence or sentence in seen:
            continue
        weight = sum(event.key_terms.get(word.group().lower(), 0) for word in _WORD.finditer(sentence))
        score = weight / (len(sentence) ** 0.5)
        if len(best) < MAX_SENTENCES or score > best[-1][0]:
            seen.add(sentence)
            best = sorted([*best, (score, position, sentence)], reverse=True)[:MAX_SENTENCES]
    return Summary(
        characters=event.characters,
        words=event.words,
        distinct_words=event.distinct_words,
        sentences=event.sentences,
        key_terms=event.key_terms,
        key_sentences=[sentence[:MAX_SENTENCE_CHARS] for _, _, sentence in sorted(best, key=lambda item: item[1])],
    )


# A policy allows workflows by name, and only their own steps.
register_workflow(Workflow("analyze-pipeline", ["my_app::analyze", "my_app::summarize"]))

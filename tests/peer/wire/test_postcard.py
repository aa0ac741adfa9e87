"""The postcard primitives: anywhere in a buffer, at every boundary, and against what does not fit."""

from __future__ import annotations

import tracemalloc
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.errors import EncodeError
from blazen_peer.wire.postcard import Reader, Writer

BOUNDARIES = [0, 1, 127, 128, 255, 256, 16383, 16384, 2**31, 2**32 - 1]


def written(kind: str, value: object) -> bytes:
    writer = Writer()
    getattr(writer, kind)(value)
    return writer.joined()


VALUES = st.one_of(
    st.tuples(st.just("u32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("u64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("text"), st.text()),
    st.tuples(st.just("blob"), st.binary(max_size=300)),
    st.tuples(st.just("flag"), st.booleans()),
    st.tuples(st.just("uuid"), st.uuids()),
)


@given(VALUES, st.binary(max_size=20), st.binary(max_size=20))
def test_round_trip_anywhere(case: tuple[str, object], before: bytes, after: bytes) -> None:
    """A value written is read back the same, wherever it stands, and the cursor stops right behind it."""
    kind, value = case
    raw = written(kind, value)
    reader = Reader(before + raw + after, len(before))
    assert getattr(reader, kind)() == value
    assert reader.position == len(before) + len(raw)


@pytest.mark.parametrize("value", [*BOUNDARIES, 2**32, 2**63, 2**64 - 1])
def test_varint_is_minimal(value: int) -> None:
    """Seven bits a byte, and no byte more than needed."""
    assert len(written("u64", value)) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        pytest.param("u32", "8000", 0, id="zero-in-two"),
        pytest.param("u32", "ffffffff0f", 2**32 - 1, id="u32-max"),
        pytest.param("u32", "8180808000", 1, id="one-in-five"),
        pytest.param("u64", "ffffffffffffffffff01", 2**64 - 1, id="u64-max"),
        pytest.param("u64", "81808080808080808000", 1, id="one-in-ten"),
        pytest.param("blob", "820061620000", b"ab", id="length-in-two"),
        pytest.param("uuid", "9000" + "11" * 16, UUID("11" * 16), id="uuid-length-in-two"),
    ],
)
def test_non_minimal_is_read(kind: str, raw: str, value: object) -> None:
    """Longer forms of a number are accepted, as postcard does."""
    assert getattr(Reader(bytes.fromhex(raw)), kind)() == value


@pytest.mark.parametrize(
    ("kind", "raw", "why"),
    [
        pytest.param("u32", "ffffffff10", "does not fit u32", id="u32-fifth-byte"),
        pytest.param("u32", "808080808000", "does not fit u32", id="u32-six-bytes"),
        pytest.param("u64", "ffffffffffffffffff02", "does not fit u64", id="u64-tenth-byte"),
        pytest.param("u64", "8080808080808080808000", "does not fit u64", id="u64-eleven-bytes"),
        pytest.param("blob", "ffffffffffffffffff02", "does not fit length", id="length-tenth-byte"),
        pytest.param("blob", "026100"[:4], "unexpected end", id="blob-cut"),
        pytest.param("count", "0300", "unexpected end", id="more-items-than-bytes"),
        pytest.param("flag", "02", "a bool is not 0 or 1", id="bool-2"),
        pytest.param("present", "ff", "an Option's tag is not 0 or 1", id="option-255"),
        pytest.param("uuid", "0f" + "00" * 15, "15 bytes instead of 16", id="uuid-15"),
        pytest.param("uuid", "11" + "00" * 17, "17 bytes instead of 16", id="uuid-17"),
    ],
)
def test_refused(kind: str, raw: str, why: str) -> None:
    """What is no such value is refused, by one line that says why."""
    with pytest.raises(EncodeError, match=f"^postcard decode failed: .*{why}"):
        getattr(Reader(bytes.fromhex(raw)), kind)()


@pytest.mark.parametrize("kind", ["count", "blob", "text", "uuid"])
@pytest.mark.parametrize("length", [2**20, 2**32 - 1, 2**63, 2**64 - 1])
def test_huge_length_takes_no_memory(kind: str, length: int) -> None:
    """A declared length beyond the bytes that are left is refused before anything is allocated for it."""
    raw = written("u64", length) + b"x" * 100
    tracemalloc.start()
    try:
        with pytest.raises(EncodeError, match="unexpected end"):
            getattr(Reader(raw), kind)()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("u32", -1), ("u32", 2**32), ("u64", -1), ("u64", 2**64)],
)
def test_numbers_out_of_range_are_not_written(kind: str, value: int) -> None:
    """A number that does not fit its field is refused, never cut."""
    with pytest.raises(EncodeError, match=f"^postcard encode failed: a number does not fit {kind}"):
        written(kind, value)

"""Postcard (https://postcard.jamesmunns.com/wire-format), as much of it as the peer's envelopes use.

Integers and lengths are unsigned LEB128; non-minimal forms are read, minimal ones are written. Nothing here recurses, and
no length is believed before it is compared with the bytes that are left.
"""

from __future__ import annotations

from uuid import UUID

from blazen_peer.errors import EncodeError

__all__ = ["Reader", "Writer", "decode_error", "encode_error", "length_of"]

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
_SHORT = tuple(bytes([value]) for value in range(0x80))  # varints of one byte, which most are
_ABSENT, _PRESENT = b"\x00", b"\x01"


def decode_error(why: str) -> EncodeError:
    """Return the error for bytes that are not the struct they should be."""
    return EncodeError(f"postcard decode failed: {why}")


def encode_error(why: str) -> EncodeError:
    """Return the error for a value that the format cannot carry."""
    return EncodeError(f"postcard encode failed: {why}")


class Reader:
    """A cursor over *data*; each method takes one value and moves on.

    Raises:
        EncodeError: From every method, for bytes that are not such a value.
        IndexError, UnicodeDecodeError: Likewise, for an end within a number and for a string that is not UTF-8. Whoever reads
            a whole struct turns these two into ``EncodeError`` once, which costs the good case nothing.
    """

    __slots__ = ("_data", "_end", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data, self._end, self.position = data, len(data), position

    def u32(self) -> int:
        """Take an unsigned integer of 32 bits: at most 5 bytes, the fifth at most 0x0f."""
        value = self._data[self.position]
        if value < 0x80:
            self.position += 1
            return value
        return self._varint(5, 0x0F, "u32")

    def u64(self) -> int:
        """Take an unsigned integer of 64 bits: at most 10 bytes, the tenth at most 0x01."""
        value = self._data[self.position]
        if value < 0x80:
            self.position += 1
            return value
        return self._varint(10, 0x01, "u64")

    def count(self) -> int:
        """Take the count of a sequence or map. Each item takes a byte or more, so a count over what is left is refused now."""
        value = self._data[self.position]
        if value < 0x80:
            self.position += 1
        else:
            value = self._varint(10, 0x01, "length")
        if value > self._end - self.position:
            raise decode_error("unexpected end")
        return value

    def blob(self) -> bytes:
        """Take a byte array: its length, then the bytes."""
        data, start = self._data, self.position
        length = data[start]
        if length < 0x80:
            start += 1
        else:
            length = self._varint(10, 0x01, "length")
            start = self.position
        end = start + length
        if end > self._end:
            raise decode_error("unexpected end")
        self.position = end
        return data[start:end]

    def text(self) -> str:
        """Take a string: its length in bytes, then UTF-8."""
        data, position = self._data, self.position
        length = data[position]
        end = position + 1 + length
        if length < 0x80 and end <= self._end:  # nearly all: names and ids
            self.position = end
            return data[position + 1 : end].decode()
        return self.blob().decode()

    def flag(self) -> bool:
        """Take a bool: one byte, 0 or 1."""
        return self._bit("a bool is not 0 or 1")

    def present(self) -> bool:
        """Take an Option's tag: True when a value follows."""
        return self._bit("an Option's tag is not 0 or 1")

    def uuid(self) -> UUID:
        """Take a UUID: a byte array of exactly 16."""
        raw = self.blob()
        if len(raw) != 16:
            raise decode_error(f"a UUID has {len(raw)} bytes instead of 16")
        return UUID(bytes=raw)

    def _bit(self, why: str) -> bool:
        value = self._data[self.position]
        if value > 1:
            raise decode_error(why)
        self.position += 1
        return value == 1

    def _varint(self, max_bytes: int, last_max: int, name: str) -> int:
        data, position, value = self._data, self.position, 0
        for index in range(max_bytes):
            byte = data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if index == max_bytes - 1 and byte > last_max:
                    break
                self.position = position + index + 1
                return value
        raise decode_error(f"a varint does not fit {name}")


class Writer:
    """Collects the parts of one struct. Large byte arrays are kept as they are until :meth:`joined` copies them once.

    Raises:
        EncodeError: From the number methods, for a value out of range.
        UnicodeEncodeError: From :meth:`text`, for a lone surrogate; whoever writes a struct turns it into ``EncodeError``.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def u32(self, value: int) -> None:
        """Put an unsigned integer of 32 bits."""
        if not 0 <= value <= U32_MAX:
            raise encode_error("a number does not fit u32")
        self._parts.append(_SHORT[value] if value < 0x80 else _varint(value))

    def u64(self, value: int) -> None:
        """Put an unsigned integer of 64 bits."""
        if not 0 <= value <= U64_MAX:
            raise encode_error("a number does not fit u64")
        self._parts.append(_SHORT[value] if value < 0x80 else _varint(value))

    def count(self, value: int) -> None:
        """Put the count of a sequence or map; the items follow."""
        self._parts.append(_SHORT[value] if value < 0x80 else _varint(value))

    def blob(self, value: bytes) -> None:
        """Put a byte array."""
        self._parts += length_of(value), value

    def text(self, value: str) -> None:
        """Put a string."""
        self.blob(value.encode())

    def flag(self, value: bool) -> None:
        """Put a bool, or an Option's tag."""
        self._parts.append(_PRESENT if value else _ABSENT)

    def uuid(self, value: UUID) -> None:
        """Put a UUID."""
        self.blob(value.bytes)

    def joined(self) -> bytes:
        """Return all of it."""
        return b"".join(self._parts)


def length_of(value: bytes) -> bytes:
    """Return what stands before a byte array: how many bytes follow."""
    length = len(value)
    return _SHORT[length] if length < 0x80 else _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

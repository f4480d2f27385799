"""Files as they come back from a bad disk."""


def flipped(data, bit):
    """The data with one bit changed."""
    at, mask = bit // 8, 1 << bit % 8
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]

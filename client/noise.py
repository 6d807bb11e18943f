"""Normal numbers that nobody can know without a key: a stream cipher's output, turned into a bell curve.

torch's own generator will not do: it is a Mersenne twister, seeded with 32 bits. Who sees some of its numbers, as the
coordinator does where an update is zero, finds all others.
"""

from __future__ import annotations

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

CHUNK = 1 << 20
"""Numbers made at once: bounds the memory beside the result."""


class KeyedNormal:
    """Standard normal numbers that follow from a key of 32 bytes; each call goes on where the last one ended.

    AES-256 in counter mode gives 64 bits a number, of which 52 make a uniform number u in (0, 1), and Φ⁻¹(u) is the result:
    all lie within 8.3 of zero, which one in 10¹⁶ would not. A key must serve one purpose only.
    """

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()

    def __call__(self, count: int) -> Tensor:
        """The next `count` numbers, float64 (count,)."""
        result = torch.empty(count, dtype=torch.float64)
        for part in result.split(CHUNK):
            stream = bytearray(self._stream.update(bytes(8 * len(part))))
            bits = torch.frombuffer(stream, dtype=torch.int64) if len(part) else torch.empty(0, dtype=torch.int64)
            uniform = ((bits & (1 << 52) - 1).double() + 0.5) * 2.0**-52  # exact, and never 0 or 1
            part.copy_(torch.special.ndtri(uniform))
        return result

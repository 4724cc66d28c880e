"""Answers from the network, no larger than what was asked for can be."""

import aiohttp

PLAIN = {"Accept-Encoding": "identity"}
"""Headers of a request whose answer is to be counted: a compressed one grows when it is read."""
SETTINGS_BYTES = 16 << 20
"""The largest answer about a server's own settings or models."""


class TooLargeError(aiohttp.ClientPayloadError):
    """An answer that nobody asked for: counted while it comes, and not read to its end."""


async def read_body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of an answer.

    Raises:
        TooLargeError: beyond `most` bytes; a `aiohttp.ClientError`, as other answers are that cannot be used.
    """
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > most:
            response.close()
            raise TooLargeError(f"the answer has more than {most:,} bytes, as no answer to this request has")
    return bytes(body)

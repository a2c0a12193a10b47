"""Endpoints that do as a request's script says, and remember what they received.

A request belongs to a test by its `x-test-id`. A script is a list, one entry a try; the last entry is for all further tries:
words of `200` (a status), `delay=0.3` (seconds before the header), `x-a:1` (a header), `body=text`, `pause=0.3` (after the
header and half of the body), `count` (`x-on-connection` says which request of its connection it is), `chunked`, `reset` or `close` (instead of a response), `cut` (after half of the body).
"""

import asyncio
import collections
import ipaddress
import socket
import struct

MIRROR = "mirror"
# What comes to this endpoint begins with the PROXY protocol; `x-proxy` says what it said.
PROXIED = "proxied"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class Upstream:
    """Named endpoints, each with an address of its own. `tries[id]` is what tests' requests came to."""

    def __init__(self):
        self.scripts, self.tries = {}, collections.defaultdict(list)

    async def listen(self, endpoints):
        for name, (address, port) in endpoints.items():
            serve = lambda reader, writer, name=name: self.connection(name, reader, writer)
            await asyncio.start_server(serve, address, port, limit=1 << 20, backlog=512)

    async def connection(self, name, reader, writer):
        try:
            said = [("x-proxy", await proxy(reader))] if name == PROXIED else []
            number = 1
            while await self.request(name, reader, writer, number, said):
                number += 1
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def request(self, name, reader, writer, on_connection, said):
        """Answers one request; whether the connection goes on."""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = line.split(" ")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        first = dict(reversed(headers))
        seen = {"endpoint": name, "method": method, "path": path, "headers": headers, "body": "(cut)"}
        tries = self.tries[first.get("x-test-id", "")]
        number = sum(t["endpoint"] != MIRROR for t in tries)
        tries.append(seen)
        seen["body"] = (await body(reader, first)).decode("latin-1")
        if first.get("upgrade"):
            return await self.upgraded(reader, writer, first)
        script = self.scripts.get(first.get("x-test-id"), ["200"])
        words = "200" if name == MIRROR else script[min(number, len(script) - 1)]
        words = words.replace("count", f"x-on-connection:{on_connection}")
        return await answer(words.split(), method, name, writer, said)

    async def upgraded(self, reader, writer, first):
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {first['upgrade']}\r\n\r\n".encode())
        while data := await reader.read(1000):
            writer.write(b"echo " + data)
        return False


async def body(reader, headers):
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while length := int(await reader.readline(), 16):
            whole += await reader.readexactly(length)
            await reader.readline()
        while await reader.readline() not in (b"\r\n", b""):
            pass
        return whole
    return await reader.readexactly(int(headers.get("content-length", 0)))


async def proxy(reader):
    """Versions 1 and 2 of the PROXY protocol, as text without the port of the client."""
    begin = await reader.readexactly(len(SIGNATURE))
    if begin != SIGNATURE:
        words = (begin + await reader.readuntil(b"\r\n")).decode().split()
        return " ".join(["v1", *words[:4], *words[5:]])
    command, family, *length = await reader.readexactly(4)
    rest = await reader.readexactly(int.from_bytes(length, "big"))
    size = {0x11: 4, 0x21: 16}[family]
    hosts = [str(ipaddress.ip_address(rest[at : at + size])) for at in (0, size)]
    port = int.from_bytes(rest[2 * size + 2 : 2 * size + 4], "big")
    return " ".join(["v2", f"{command:x} {family:x}", *hosts, str(port), rest[2 * size + 4 :].hex()])


async def answer(words, method, name, writer, said):
    status, headers, text = "200", [("x-endpoint", name), *said], f"from {name}\n"
    flags = {word for word in words if word.isalpha()}
    options = dict(word.split("=", 1) for word in words if "=" in word and ":" not in word.split("=")[0])
    for word in words:
        if word.isdigit():
            status = word
        elif word not in flags and ":" in word.split("=")[0]:
            headers.append(tuple(word.split(":", 1)))
    await asyncio.sleep(float(options.get("delay", 0)))
    if "reset" in flags:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if flags & {"reset", "close"}:
        return False
    text = options.get("body", text).encode()
    if status in ("204", "304"):
        text = b""
    elif "chunked" in flags:
        headers.append(("transfer-encoding", "chunked"))
        text = b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
    else:
        headers.append(("content-length", str(len(text))))
    if method == "HEAD":
        text = b""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    half = len(text) // 2 if flags & {"cut"} or "pause" in options else len(text)
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode("latin-1") + text[:half])
    await writer.drain()
    if "cut" in flags:
        await asyncio.sleep(0.05)
        return False
    await asyncio.sleep(float(options.get("pause", 0)))
    writer.write(text[half:])
    await writer.drain()
    return True

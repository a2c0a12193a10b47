"""An HTTP/1.1 client that sends what it is told, byte for byte, and changes nothing of what comes back."""

import asyncio
import dataclasses


@dataclasses.dataclass
class Response:
    """What came back: no status if the connection ended before one came."""

    status: int | None = None
    headers: list = dataclasses.field(default_factory=list)
    body: str = ""
    complete: bool = True
    seconds: float = 0


class Connection:
    """A connection to one subject, from 127.0.0.1 or another address."""

    def __init__(self, address, port, source="127.0.0.1"):
        self.to, self.source = (address, port), source
        self.reader = self.writer = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def close(self):
        if self.writer:
            self.writer.transport.abort()
            self.reader = self.writer = None

    async def send(self, data, method="GET", seconds=20):
        """The response to these bytes; opens the connection anew where it has ended."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        response = Response()
        try:
            async with asyncio.timeout(seconds):
                if not self.writer:
                    self.reader, self.writer = await asyncio.open_connection(*self.to, local_addr=(self.source, 0), limit=1 << 20)
                self.writer.write(data)
                await self.read(response, method)
        except TimeoutError:
            response.complete = False
            self.close()
        except (OSError, ValueError, asyncio.IncompleteReadError):
            response.complete = False
            self.close()
        response.seconds = loop.time() - start
        return response

    async def read(self, response, method):
        while True:
            line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
            status = int(line.split(" ")[1])
            if status >= 200 or status == 101:
                break
        response.status = status
        response.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        first = dict(reversed(response.headers))
        if method != "HEAD" and status not in (101, 204, 304):
            async for part in self.body(first):
                response.body += part.decode("latin-1")
        if first.get("connection", "").lower() == "close":
            self.close()

    async def body(self, headers):
        if headers.get("transfer-encoding") == "chunked":
            while length := int(await self.reader.readline(), 16):
                yield await self.reader.readexactly(length)
                await self.reader.readline()
            while await self.reader.readline() not in (b"\r\n", b""):
                pass
        elif "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
        else:
            while data := await self.reader.read(65536):
                yield data
            self.close()

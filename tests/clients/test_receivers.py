"""Every receiver of docs/clients.md: cut off, refused, sent away, and never without its events.

All of them run at the same time, because they mostly wait. Each has a channel and a proxy of its own.
"""

import asyncio
import json
import os
import unittest

from snippets import programs
from support import Gateway, Proxy, Redis, Running, until

# Three of them, at the interval that gateways have by default: longer than any client's own read timeout.
QUIET_HEARTBEATS = 3
# A part of the file names of those to run, while one is being written.
RECEIVERS = os.environ.get("RECEIVERS", "")
SECRET = "0123456789abcdef0123456789abcdef"


def event(number, size=0):
    """The data of a test's event. The text is not ASCII."""
    return json.dumps({"n": number, "text": "héllo ✓", "filling": "x" * size}, ensure_ascii=False)


class Trial:
    """One receiver's way through everything."""

    def __init__(self, fleet, program, proxy, running):
        self.fleet = fleet
        self.channel = program.channel
        self.proxy = proxy
        self.running = running
        self.published = []

    async def keep(self, *options, size=0):
        self.published.append(len(self.published) + 1)
        await self.fleet.redis.keep(self.channel, event(self.published[-1], size), *options)

    async def received(self, what):
        """It has had every event, each once and in order."""
        await until(what, lambda: len(self.running.numbers()) >= len(self.published))
        assert self.running.numbers() == self.published, f"{what}: {self.running.numbers()}"

    async def opened(self, before):
        """It has come back, on a connection of the proxy beyond so many."""
        await until("a stream", lambda: len(self.proxy.connections) > before and self.proxy.last.is_open)

    async def cut(self, how, what):
        """Cuts the connection; an event is kept while the client is away."""
        self.proxy.target = None
        how(self.proxy.last)
        await self.keep()
        self.proxy.target = self.fleet.open.address
        await self.received(what)

    async def move(self, gateway):
        """Brings it to another gateway."""
        before = len(self.proxy.connections)
        self.proxy.target = gateway.address
        self.proxy.last.reset()
        return before

    async def run(self):
        self.proxy.target = self.fleet.open.address
        await self.opened(0)
        await self.cut(lambda connection: connection.reset(), "cut before its first event")

        self.published.append(2)
        await until("an active stream", lambda: self.proxy.last.is_open)
        await self.fleet.redis.publish(self.channel, event(2))
        await self.keep("event", "order")
        await self.received("a live event, and a kept one with a name")

        await self.cut(lambda connection: connection.reset(), "the connection was reset")
        await self.cut(lambda connection: connection.end(), "the body broke off")
        await self.quiet()
        await self.busy()
        await self.drained()

        await self.keep(size=1_000_000)
        await self.keep()
        await self.received("an event of 1 MB, and one behind it")
        await self.refused()

    async def quiet(self):
        """Heartbeats alone keep the connection, and show as nothing."""
        connections, lines = len(self.proxy.connections), len(self.running.lines)
        beats = self.proxy.last.heartbeats + QUIET_HEARTBEATS
        await until("heartbeats", lambda: self.proxy.last.heartbeats >= beats or self.proxy.last.is_over)
        assert len(self.proxy.connections) == connections and not self.proxy.last.is_over, "it gave up a quiet stream"
        assert self.running.lines[lines:] == [], f"a heartbeat shows: {self.running.lines[lines:]}"

    async def busy(self):
        """A full replica sends it away; it comes back for what was kept meanwhile."""
        before = await self.move(self.fleet.full)
        await until(
            "a busy answer",
            lambda: len(self.proxy.connections) > before and b"event: $busy\n" in self.proxy.last.received,
        )
        self.proxy.target = self.fleet.open.address
        await self.keep()
        await self.received("it met a full replica")

    async def drained(self):
        """A replica closes its stream in order."""
        async with await Gateway().run() as gateway:
            await self.opened(await self.move(gateway))
            self.proxy.target = None
            await gateway.drain()
        await self.keep()
        self.proxy.target = self.fleet.open.address
        await self.received("the stream was closed in order")

    async def refused(self):
        """401: it ends."""
        await self.move(self.fleet.closed)
        await until("it ends when it is refused", lambda: self.running.process.returncode is not None)


class Fleet:
    async def __aenter__(self):
        self.redis = await Redis().__aenter__()
        self.open = await Gateway().run()
        self.full = await Gateway().run(FANFARE_MAX_CONNECTIONS="1")
        self.closed = await Gateway().run(FANFARE_JWT_SECRET=SECRET)
        # The place that there is.
        self.reader, self.writer = await asyncio.open_connection(*self.full.address)
        self.writer.write(b"GET /events/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await self.reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        for process in (self.open, self.full, self.closed):
            await process.__aexit__()
        await self.redis.__aexit__()


class Receivers(unittest.TestCase):
    def test_every_receiver_loses_nothing(self):
        asyncio.run(self.every_receiver())

    async def every_receiver(self):
        receivers = [program for program in programs() if program.receives and RECEIVERS in program.file]
        self.assertTrue(receivers)

        async def trial(fleet, program):
            async with Proxy(program.host) as proxy, Running(program) as running:
                try:
                    await Trial(fleet, program, proxy, running).run()
                    print(f"{program.file}: {len(proxy.connections)} connections, nothing lost", flush=True)
                except Exception as failure:
                    failure.add_note(f"{program.file} has printed:\n{running.tail()}")
                    for number, connection in enumerate(proxy.connections):
                        failure.add_note(f"connection {number}, over {connection.is_over}: {bytes(connection.received[-200:])}")
                    raise

        async with Fleet() as fleet:
            trials = (trial(fleet, program) for program in receivers)
            results = await asyncio.gather(*trials, return_exceptions=True)
        for program, result in zip(receivers, results):
            with self.subTest(program.file):
                if isinstance(result, BaseException):
                    raise result


if __name__ == "__main__":
    unittest.main()

"""Every publisher of docs/clients.md, with the least rights that docs/protocol.md gives: one kept event, however
often it runs, and a live one each time."""

import asyncio
import unittest

from snippets import programs
from support import Gateway, Redis, Running, until


class Publishers(unittest.TestCase):
    def test_every_publisher_publishes_one_kept_event_and_live_ones(self):
        asyncio.run(self.every_publisher())

    async def every_publisher(self):
        publishers = [program for program in programs() if not program.receives]
        self.assertGreater(len(publishers), 6)
        for program in publishers:
            with self.subTest(program.file):
                async with Redis() as redis, await Gateway().run() as gateway:
                    await redis.restrict(program.channel)
                    reader, writer = await asyncio.open_connection(*gateway.address)
                    writer.write(f"GET /events/{program.channel} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
                    await reader.readuntil(b"retry:")
                    ids = [await self.run_once(program) for _ in range(2)]
                    # Nothing that is on its way is behind this.
                    await redis.keep(program.channel, "the last one")
                    stream = (await reader.readuntil(b"data: the last one\n")).decode()
                    writer.close()
                self.assertRegex(ids[0], r"^\d+-\d+$")
                self.assertEqual(ids[0], ids[1])
                self.assertEqual(stream.count(f"id: {ids[0]}\nevent: order\n"), 1, stream)
                self.assertEqual(stream.count("data: a live event\n"), 2, stream)

    async def run_once(self, program):
        async with Running(program) as running:
            await until(f"{program.file} ends", lambda: running.process.returncode is not None)
            await running.reading
        self.assertEqual(running.process.returncode, 0, running.tail())
        self.assertEqual(len(running.lines), 1, running.tail())
        return running.lines[0].strip()


if __name__ == "__main__":
    unittest.main()

// The peer "Node as people write it first": better-sse channels, one ioredis subscription to all of them.
//
// node server.mjs PORT REDIS_PORT      (both on 127.0.0.1)

import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";
import { Redis } from "ioredis";

const PREFIX = "sse:";
const [port, redisPort] = process.argv.slice(2).map(Number);
const channels = new Map();

function channel(name) {
  if (!channels.has(name)) channels.set(name, createChannel());
  return channels.get(name);
}

const redis = new Redis(redisPort, "127.0.0.1");
await redis.psubscribe(`${PREFIX}*`);
redis.on("pmessage", (_pattern, name, data) => {
  channels.get(name.slice(PREFIX.length))?.broadcast(data);
});

const server = createServer(async (request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  if (!pathname.startsWith("/events/")) return response.writeHead(404).end();
  const session = await createSession(request, response);
  channel(pathname.slice("/events/".length)).register(session);
});
// Many clients connect at once: the queue of connections must not be the limit.
server.listen({ port, host: "127.0.0.1", backlog: 65535 });

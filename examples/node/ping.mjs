// Publishes an event named "ping" with JSON data every second.
//
//   npm ci                            (once, in this folder)
//   node ping.mjs status              until Ctrl-C
//   node ping.mjs status --count 3
//
// A page receives it with:
//   new EventSource("/events/status").addEventListener("ping", (event) => JSON.parse(event.data))

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import Redis from "ioredis";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { count: { type: "string" } },
});
const [channel] = positionals;
if (channel === undefined) {
  console.error("usage: node ping.mjs CHANNEL [--count N]");
  process.exit(2);
}
const count = Number(values.count ?? Infinity);

const redis = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379");

for (let sequence = 1; sequence <= count; sequence += 1) {
  if (sequence > 1) {
    await sleep(1000);
  }
  // An object whose only member is "sse" carries the event's fields; its data may be any JSON.
  const event = { sse: { event: "ping", data: { sequence, time: new Date().toISOString() } } };
  await redis.publish(`sse:${channel}`, JSON.stringify(event));
}
await redis.quit();

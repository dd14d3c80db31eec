// Follows channels, through lost connections too, and notices when events are missing.
//
//   npm ci                            (once, in this folder)
//   node follow.mjs orders prices     until Ctrl-C
//
// FANFARE_URL is the gateway's address: http://127.0.0.1:8080 when not set. In a page the same
// code works with the browser's own EventSource.

import { EventSource } from "eventsource";

const channels = process.argv.slice(2);
if (channels.length === 0) {
  console.error("usage: node follow.mjs CHANNEL...");
  process.exit(2);
}

const query = new URLSearchParams(channels.map((name) => ["channel", name]));
const gateway = process.env.FANFARE_URL ?? "http://127.0.0.1:8080";
const source = new EventSource(`${gateway}/events?${query}`);

// After a lost connection it comes back by itself with the last id, and what was kept meanwhile
// follows. Events are in order, and none comes twice on a connection.
source.onmessage = (event) => console.log(`event ${event.data}`);

// Where nobody can be sure that nothing is missing, the gateway says so, for each channel: fetch
// anew what its events are about, from wherever they come from. Events that follow are newer.
source.addEventListener("$gap", (event) => {
  const { channel, reason } = JSON.parse(event.data);
  console.log(`gap ${channel} ${reason}: fetching its state anew`);
});

// "open" does not say that the channels are followed: a gateway that is busy answers too, and ends
// the stream. The first $cursor does.
let isFollowed = false;
source.addEventListener("$cursor", () => {
  if (!isFollowed) console.log("open");
  isFollowed = true;
});
source.onerror = (error) => {
  isFollowed = false;
  if (source.readyState === EventSource.CLOSED) {
    // A refusal, such as 400 or 403: trying again would not help.
    console.error(`refused: ${error.message}`);
    process.exit(1);
  }
};

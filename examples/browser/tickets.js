// An EventSource for pages whose token must not be in a URL and whose browser cannot send headers:
// it draws a ticket for every stream, opens the next one where the last one ended, and goes on for
// as long as tickets are to be had.
//
//     import { TicketSource } from "./tickets.js";
//
//     const events = new TicketSource("/events?channel=orders", async () => {
//       const answer = await fetch("/my-backend/ticket", { method: "POST" });
//       if (answer.status === 401 || answer.status === 403) return null;      // no more: logged out
//       return (await answer.json()).ticket;                                  // whatever else: again
//     });
//     events.addEventListener("message", (event) => console.log(event.data));
//
// The backend knows who the user is, makes a token for them, and passes on what POST /tickets of
// the gateway answers. Where the page itself has the token, it asks the gateway itself.
//
// Events are those of an EventSource; "end" says that no ticket is to be had any more.

/** The longest pause before the next attempt, in milliseconds. */
const LONGEST_PAUSE = 30_000;

const OWN_EVENTS = ["open", "error", "end"];

export class TicketSource extends EventTarget {
  #url;
  #draw;
  #source = null;
  #cursor;
  #closed = false;
  #pause = 0;
  #names = new Set(["message", "$cursor"]);

  /**
   * `url` is that of the stream, without a ticket; `draw` resolves to a ticket, or to null when
   * there are none any more; `cursor` is where an earlier page was, if there was one.
   */
  constructor(url, draw, cursor = "") {
    super();
    this.#url = new URL(url, location.href);
    this.#draw = draw;
    this.#cursor = cursor;
    this.#open();
  }

  /** The id to begin after, for another page. */
  get cursor() {
    return this.#cursor;
  }

  addEventListener(name, ...rest) {
    super.addEventListener(name, ...rest);
    if (!OWN_EVENTS.includes(name) && !this.#names.has(name)) {
      this.#names.add(name);
      this.#source?.addEventListener(name, this.#pass);
    }
  }

  close() {
    this.#closed = true;
    this.#source?.close();
  }

  async #open() {
    let ticket;
    try {
      ticket = await this.#draw();
    } catch {
      this.#again();
      return;
    }
    if (this.#closed) return;
    if (ticket === null) {
      this.#closed = true;
      this.dispatchEvent(new Event("end"));
      return;
    }
    const url = new URL(this.#url);
    url.searchParams.set("ticket", ticket);
    if (this.#cursor) url.searchParams.set("last_event_id", this.#cursor);
    const source = new EventSource(url);
    this.#source = source;
    for (const name of this.#names) source.addEventListener(name, this.#pass);
    source.onopen = () => this.dispatchEvent(new Event("open"));
    // The first one says that the stream is open. "open" does not: a gateway that is busy or stops
    // answers too.
    source.addEventListener("$cursor", () => this.#pause = 0, { once: true });
    source.onerror = () => {
      this.dispatchEvent(new Event("error"));
      // While it is connecting the browser waits as long as the gateway has asked for, and tries
      // the same ticket: one that opened nothing is still good. One that is spent is answered with
      // 401, the browser gives up, and it is time for the next.
      if (source.readyState === EventSource.CLOSED) this.#again();
    };
  }

  #again() {
    setTimeout(() => this.#closed || this.#open(), this.#pause * (0.5 + Math.random() / 2));
    this.#pause = Math.min(Math.max(2 * this.#pause, 1_000), LONGEST_PAUSE);
  }

  #pass = (event) => {
    // An event without an id has that of the last one; a stream without any, the empty one.
    if (event.lastEventId) this.#cursor = event.lastEventId;
    const { data, lastEventId, origin } = event;
    this.dispatchEvent(new MessageEvent(event.type, { data, lastEventId, origin }));
  };
}

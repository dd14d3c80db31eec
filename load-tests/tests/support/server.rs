//! A tiny server that does its work well, or wrong in a way of one's choice.
//!
//! `GET` streams every event, whatever the channel, with ids and replay; `POST` publishes the body.
//! Only the cursor of a block without data resumes without a `$gap`; `GET /metrics` counts each resume
//! as a read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the server gets wrong, once, when event number 30 comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The event reaches nobody.
    Loses,
    Duplicates,
    /// It comes after its successor.
    Reorders,
    /// It comes as something else.
    Alters,
    /// One client's connection is cut.
    Disconnects,
    /// One client is left out from then on, without a word.
    ForgetsAClient,
    /// Whoever resumes is told of a gap, though there is none.
    TellsOfAGap,
}

/// When it goes wrong: well after warm-up, well before the end.
const WHEN: usize = 30;

#[derive(Default)]
struct State {
    log: Vec<String>,
    held_back: Option<String>,
    subscribers: Vec<TcpStream>,
    history_reads: usize,
}

/// Starts it; returns its address. Its threads end with the test.
pub(crate) fn start(fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let state = Arc::new(Mutex::new(State::default()));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(connection, &state, fault));
        }
    });
    address
}

/// Answers requests until one turns the connection into a stream, or it ends.
fn serve(mut connection: TcpStream, state: &Mutex<State>, fault: Fault) -> Option<()> {
    let mut input = BufReader::new(connection.try_clone().ok()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_ascii_lowercase());
        }
        let header = |name: &str| {
            head.iter()
                .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        if head.first()?.starts_with("get /metrics") {
            let reads = state.lock().unwrap().history_reads;
            let page = format!("HTTP/1.0 200 OK\r\n\r\nfanfare_history_reads_total {reads}\n");
            return connection.write_all(page.as_bytes()).ok();
        }
        if head.first()?.starts_with("get") {
            let cursor = header("last-event-id:");
            return state.lock().unwrap().subscribe(connection, cursor, fault);
        }
        let mut body = vec![0; header("content-length:")?.parse().ok()?];
        input.read_exact(&mut body).ok()?;
        state
            .lock()
            .unwrap()
            .publish(String::from_utf8(body).ok()?, fault);
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .ok()?;
    }
}

impl State {
    fn subscribe(
        &mut self,
        mut connection: TcpStream,
        cursor: Option<String>,
        fault: Fault,
    ) -> Option<()> {
        connection
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n\
                  retry: 1000\nevent: $cursor\ndata: {}\n\n",
            )
            .ok()?;
        if let Some(cursor) = cursor {
            self.history_reads += 1;
            let (event, position) = cursor.split_once('.').unwrap_or((&cursor, ""));
            if position != "8" || fault == Fault::TellsOfAGap {
                connection.write_all(b"event: $gap\ndata: {}\n\n").ok()?;
            }
            let from = event.parse::<usize>().ok()? + 1;
            for (id, event) in self.log.iter().enumerate().skip(from) {
                connection.write_all(block(id, event).as_bytes()).ok()?;
            }
        }
        self.subscribers.push(connection);
        Some(())
    }

    fn publish(&mut self, event: String, fault: Fault) {
        let now = self.log.len() == WHEN;
        match fault {
            Fault::Loses if now => self.log.push(event),
            Fault::Duplicates if now => {
                self.send(event.clone());
                self.send(event);
            }
            Fault::Reorders if now && self.held_back.is_none() => self.held_back = Some(event),
            Fault::Alters if now => self.send("something else".to_owned()),
            Fault::Disconnects if now => {
                if let Some(subscriber) = self.subscribers.pop() {
                    let _ = subscriber.shutdown(Shutdown::Both);
                }
                self.send(event);
            }
            Fault::ForgetsAClient if now => {
                // Kept open, or the client would know.
                std::mem::forget(self.subscribers.pop());
                self.send(event);
            }
            _ => {
                self.send(event);
                if let Some(late) = self.held_back.take() {
                    self.send(late);
                }
            }
        }
    }

    fn send(&mut self, event: String) {
        let block = block(self.log.len(), &event);
        self.subscribers
            .retain_mut(|subscriber| subscriber.write_all(block.as_bytes()).is_ok());
        self.log.push(event);
    }
}

/// An event, and in the same write the cursor after it in both its forms, the later one last.
fn block(id: usize, event: &str) -> String {
    format!("id: {id}\ndata: {event}\n\nevent: $cursor\nid: {id}.7\ndata: {{}}\n\nid: {id}.8\n\n")
}

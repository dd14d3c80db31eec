//! A tiny server that does its work well, or wrong in a way of one's choice.
//!
//! `GET` streams every event, whatever the channel, with ids and replay; `POST` publishes the body.

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
}

/// When it goes wrong: well after warm-up, well before the end.
const WHEN: usize = 30;

#[derive(Default)]
struct State {
    log: Vec<String>,
    held_back: Option<String>,
    subscribers: Vec<TcpStream>,
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
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok())
        };
        if head.first()?.starts_with("get") {
            let seen = header("last-event-id:").map_or(usize::MAX, |id| id + 1);
            return state.lock().unwrap().subscribe(connection, seen);
        }
        let mut body = vec![0; header("content-length:")?];
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
    fn subscribe(&mut self, mut connection: TcpStream, from: usize) -> Option<()> {
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nretry: 1000\n\n")
            .ok()?;
        for (id, event) in self.log.iter().enumerate().skip(from) {
            connection.write_all(block(id, event).as_bytes()).ok()?;
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

fn block(id: usize, event: &str) -> String {
    format!("id: {id}\ndata: {event}\n\n")
}

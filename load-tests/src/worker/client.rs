//! One client: a connection, its parser, and where it stands on its channels.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use crate::payload::{Payload, RunTag, WARM_UP};
use crate::schedule::Schedule;
use crate::worker::check::{Arrival, Sequence};
use crate::worker::http::{Fault, Progress, Response};
use crate::worker::sse::Sink;
use crate::worker::tally::Tally;

/// A client that never reads should fill its side soon.
const SLOW_RECEIVE_BUFFER_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Closed,
    /// The handshake is under way; the request goes out with its end.
    Connecting,
    AwaitingHead,
    Open,
}

/// What a call to [`Client::read`] ended with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All that was there has been read.
    Drained,
    /// There may be more: the fairness bound was reached.
    More,
    Closed(Why),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The server closed it, in order or not.
    Server,
    /// The answer's framing is broken.
    Malformed,
    Refused(String),
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) phase: Phase,
    pub(crate) socket: Option<TcpStream>,
    pub(crate) response: Response,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) first_channel: u32,
    pub(crate) connect_ns: u64,
    /// When the head was complete; 0: not yet.
    pub(crate) head_ns: u64,
    /// The last id seen, where ids are kept: the cursor to come back with.
    pub(crate) last_id: Vec<u8>,
    pub(crate) retry_ms: u64,
    /// Since this connection was opened.
    pub(crate) saw_event: bool,
    pub(crate) never_reads: bool,
}

/// What all clients of a process share while one of them reads.
pub(crate) struct Shared<'a> {
    pub(crate) run: RunTag,
    pub(crate) channels: u32,
    pub(crate) keep_ids: bool,
    pub(crate) schedule: Option<&'a Schedule>,
    pub(crate) tally: &'a mut Tally,
    pub(crate) buffer: &'a mut [u8],
    pub(crate) clock: fn() -> u64,
}

/// Reads in a row from one connection before the others get their turn.
const READS_IN_A_ROW: usize = 16;

impl Client {
    /// Begins to connect; the caller registers the socket.
    pub(crate) fn connect(
        &mut self,
        server: SocketAddr,
        source: Option<Ipv4Addr>,
        receive_buffer_bytes: Option<u32>,
        now_ns: u64,
    ) -> std::io::Result<&mut TcpStream> {
        let socket = Socket::new(
            Domain::for_address(server),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        if self.never_reads {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER_BYTES)?;
        } else if let Some(bytes) = receive_buffer_bytes {
            socket.set_recv_buffer_size(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
        }
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        self.phase = Phase::Connecting;
        self.response = Response::default();
        self.connect_ns = now_ns;
        self.head_ns = 0;
        self.retry_ms = 0;
        self.saw_event = false;
        Ok(self.socket.insert(TcpStream::from_std(socket.into())))
    }

    /// Sends the request, once the handshake is over.
    pub(crate) fn request(&mut self, request: &[u8]) -> std::io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        match socket.write(request) {
            Ok(written) if written == request.len() => {
                self.phase = Phase::AwaitingHead;
                Ok(())
            }
            Ok(_) => Err(std::io::Error::other(
                "a request of a few hundred bytes did not fit a new socket",
            )),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::NotConnected
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.phase = Phase::Closed;
    }

    /// Reads what has come. `hung_up`: the kernel has said that the other side closed.
    pub(crate) fn read(&mut self, shared: &mut Shared<'_>, hung_up: bool) -> Outcome {
        for _ in 0..READS_IN_A_ROW {
            let Some(socket) = &mut self.socket else {
                return Outcome::Drained;
            };
            let received = match socket.read(shared.buffer) {
                Ok(0) => return Outcome::Closed(Why::Server),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Drained,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if self.phase == Phase::Open => {
                    drop(error);
                    return Outcome::Closed(Why::Server);
                }
                Err(error) => return Outcome::Closed(Why::Refused(error.to_string())),
            };
            let now_ns = (shared.clock)();
            if let Err(why) = self.digest(shared, received, now_ns) {
                return Outcome::Closed(why);
            }
            // A short read has emptied the socket; whatever comes later is a new edge.
            if received < shared.buffer.len() && !hung_up {
                return Outcome::Drained;
            }
            if self.never_reads && self.phase == Phase::Open {
                return Outcome::Drained;
            }
        }
        Outcome::More
    }

    fn digest(&mut self, shared: &mut Shared<'_>, received: usize, now_ns: u64) -> Result<(), Why> {
        let bytes = shared.buffer.get(..received).unwrap_or_default();
        shared.tally.received_bytes += u64::try_from(received).unwrap_or(0);
        let mut delivery = Delivery {
            sequences: &mut self.sequences,
            first_channel: self.first_channel,
            channels: shared.channels,
            keep_ids: shared.keep_ids,
            // An event can come in one read with the head.
            head_ns: if self.head_ns == 0 {
                now_ns
            } else {
                self.head_ns
            },
            schedule: shared.schedule,
            tally: shared.tally,
            last_id: &mut self.last_id,
            retry_ms: &mut self.retry_ms,
            now_ns,
            arrived: 0,
            delivered: 0,
        };
        let progress = self.response.feed(shared.run, bytes, &mut delivery);
        let Delivery {
            arrived, delivered, ..
        } = delivery;
        if delivered > 0 {
            shared.tally.received(delivered, now_ns);
        }
        self.saw_event |= arrived > 0;
        match progress {
            Ok(Progress::AwaitingHead) => Ok(()),
            Ok(Progress::Streaming) => {
                if self.head_ns == 0 {
                    self.head_ns = now_ns;
                    self.phase = Phase::Open;
                }
                Ok(())
            }
            Ok(Progress::Ended) => Err(Why::Server),
            Err(Fault::Malformed) => Err(Why::Malformed),
            Err(Fault::NotEventStream) => {
                Err(Why::Refused("the answer is no text/event-stream".into()))
            }
            Err(Fault::Status(status)) => {
                Err(Why::Refused(format!("answered with status {status}")))
            }
        }
    }
}

/// Takes the events of one read of one client.
struct Delivery<'a> {
    sequences: &'a mut [Sequence],
    first_channel: u32,
    channels: u32,
    keep_ids: bool,
    head_ns: u64,
    schedule: Option<&'a Schedule>,
    tally: &'a mut Tally,
    last_id: &'a mut Vec<u8>,
    retry_ms: &'a mut u64,
    now_ns: u64,
    /// Any event of the run.
    arrived: u64,
    /// Measured ones.
    delivered: u64,
}

impl Sink for Delivery<'_> {
    #[inline]
    fn event(&mut self, payload: Payload) {
        self.arrived += 1;
        // A client's channels are consecutive numbers, modulo the number of channels.
        let Payload {
            channel,
            sequence,
            intended_ns,
        } = payload;
        let around = if channel >= self.first_channel {
            0
        } else {
            self.channels
        };
        let position = channel
            .wrapping_add(around)
            .wrapping_sub(self.first_channel);
        let stream = usize::try_from(position)
            .ok()
            .and_then(|position| self.sequences.get_mut(position));
        let Some(stream) = stream else {
            self.tally.faults.misrouted += 1;
            return;
        };
        let faults = &mut self.tally.faults;
        match stream.accept(sequence) {
            Arrival::InOrder => {}
            Arrival::First => {
                self.tally.ready += 1;
                if let (Some(schedule), true) = (self.schedule, sequence != WARM_UP) {
                    // Whoever joins late is owed everything that was due after the head had come.
                    let owed_from = schedule.first_sequence_from(channel, self.head_ns);
                    faults.lost += u64::from(sequence.saturating_sub(owed_from));
                }
            }
            Arrival::Skipped(count) => faults.lost += u64::from(count),
            Arrival::Reordered => {
                faults.reordered += 1;
                faults.lost = faults.lost.saturating_sub(1);
            }
            // Warm-up is repeated until everybody has heard it.
            Arrival::Duplicate if sequence == WARM_UP => return,
            Arrival::Duplicate => {
                faults.duplicated += 1;
                return;
            }
        }
        if sequence != WARM_UP {
            self.delivered += 1;
            self.tally
                .latency
                .saturating_record(self.now_ns.saturating_sub(intended_ns));
        }
    }

    fn foreign(&mut self) {
        self.tally.faults.foreign += 1;
    }

    fn gap(&mut self) {
        self.tally.gaps += 1;
    }

    fn heartbeat(&mut self) {
        self.tally.heartbeats += 1;
    }

    fn retry(&mut self, milliseconds: u64) {
        *self.retry_ms = milliseconds;
    }

    fn id(&mut self, id: &[u8]) {
        if self.keep_ids {
            self.last_id.clear();
            self.last_id.extend_from_slice(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(payloads: &[(u32, u32)]) -> Tally {
        let mut tally = Tally::new();
        tally.begin_phase(0);
        let schedule = Schedule {
            start_ns: 0,
            events_per_second: 1.0,
            first: 0,
            count: 10,
            channels: 4,
        };
        let mut delivery = Delivery {
            sequences: &mut [Sequence::default(), Sequence::default()],
            // Channels 3 and, around the corner, 0.
            first_channel: 3,
            channels: 4,
            keep_ids: false,
            head_ns: 1,
            schedule: Some(&schedule),
            tally: &mut tally,
            last_id: &mut Vec::new(),
            retry_ms: &mut 0,
            now_ns: 10,
            arrived: 0,
            delivered: 0,
        };
        for (channel, sequence) in payloads {
            delivery.event(Payload {
                channel: *channel,
                sequence: *sequence,
                intended_ns: 5,
            });
        }
        let delivered = delivery.delivered;
        tally.received(delivered, 10);
        tally
    }

    #[test]
    fn every_kind_of_fault_is_counted() {
        let tally = deliver(&[
            (3, 0),
            (0, 0),
            (3, 0),
            (3, 1),
            (0, 1),
            (0, 3),
            (0, 2),
            (3, 1),
            (3, 4),
            (1, 1),
            (9, 1),
        ]);
        assert_eq!(tally.ready, 2);
        assert_eq!(tally.delivered, 5);
        assert_eq!(tally.latency.len(), 5);
        let faults = tally.faults;
        assert_eq!(
            (
                faults.lost,
                faults.duplicated,
                faults.reordered,
                faults.misrouted
            ),
            (2, 1, 1, 2)
        );
    }

    #[test]
    fn a_late_joiner_is_owed_what_was_due_after_its_head() {
        // The head came at 1 ns; channel 0's second event is due at 4 s.
        assert_eq!(deliver(&[(0, 2)]).faults.lost, 0);
        assert_eq!(deliver(&[(0, 3)]).faults.lost, 1);
        assert_eq!(deliver(&[(3, 1)]).faults.lost, 0);
        assert_eq!(deliver(&[(3, 2)]).faults.lost, 1);
    }
}

//! Reads of history, shared by the clients that wait for them: a crowd that comes back costs
//! reads by channel, not by client.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::encoded::EncodedEvent;
use super::interest::Generation;
use super::shard::Hub;
use super::subscriber::ChannelKey;
use super::{HistoryError, HistoryRead, HistoryRequest};
use crate::continuity::{HistoryPage, KeptEvent};
use crate::protocol::{ChannelName, EventId};

/// A page of history, encoded.
pub(super) type Page = Rc<HistoryPage<EncodedEvent>>;

/// From the second read of a channel on, so many events before the one asked for are read too:
/// a crowd is coming back, and its cursors lie close together. The length of a usual history.
const PRECEDING_FOR_A_CROWD: u32 = 1000;

/// Clients that are answered at once. Each then has some work to do; between them the shard accepts:
/// a crowd that waits for one page must not have the kernel drop those who come behind it.
const ANSWERS_AT_ONCE: usize = 64;

/// The reads of one channel.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: VecDeque<Waiting>,
    is_under_way: bool,
    /// The last page did not reach the newest event.
    was_cut: bool,
    is_crowd: bool,
}

#[derive(Debug)]
struct Waiting {
    from: EventId,
    reply: oneshot::Sender<Result<Page, HistoryError>>,
}

impl Reads {
    /// The next read, and who gets it. The earliest id serves everybody as long as pages reach
    /// the newest event; when they do not, it would keep those waiting who are nearer to it, so
    /// then who came first is served first.
    fn next(&mut self) -> Option<(HistoryRead, Vec<Waiting>)> {
        let first = self.waiting.front()?.from;
        let from = if self.was_cut {
            first
        } else {
            self.waiting.iter().map(|waiting| waiting.from).min()?
        };
        let preceding = if self.is_crowd && !self.was_cut {
            PRECEDING_FOR_A_CROWD
        } else {
            0
        };
        self.is_crowd = true;
        let (served, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.from >= from);
        self.waiting = waiting;
        let read = HistoryRead::From {
            id: from,
            preceding,
        };
        Some((read, served.into()))
    }
}

impl Hub {
    /// Reads a channel's history from `from` on, together with whoever else waits for it. The
    /// read begins after this call.
    pub(super) fn read_history(
        self: &Rc<Self>,
        key: ChannelKey,
        from: EventId,
    ) -> oneshot::Receiver<Result<Page, HistoryError>> {
        let (reply, answer) = oneshot::channel();
        let mut channels = self.channels.borrow_mut();
        if let Some(channel) = channels.by_key(key) {
            let reads = channel.reads.get_or_insert_default();
            reads.waiting.push_back(Waiting { from, reply });
            if !std::mem::replace(&mut reads.is_under_way, true) {
                let serve =
                    Rc::clone(self).serve_reads(key, channel.generation, channel.name.clone());
                tokio::task::spawn_local(serve);
            }
        }
        answer
    }

    /// Reads until nobody waits, or the channel is gone.
    async fn serve_reads(
        self: Rc<Self>,
        key: ChannelKey,
        generation: Generation,
        name: ChannelName,
    ) {
        while let Some((read, served)) = self.next_read(key, generation) {
            let page = self.read(name.clone(), read).await.map(Rc::new);
            if let Ok(page) = &page {
                let mut channels = self.channels.borrow_mut();
                let channel = channels.by_key(key);
                if let Some(channel) = channel.filter(|channel| channel.generation == generation) {
                    if let Some(reads) = &mut channel.reads {
                        reads.was_cut = !page.complete;
                    }
                    channels.extend_tail(key, page);
                }
            }
            for (number, waiting) in served.into_iter().enumerate() {
                if number > 0 && number % ANSWERS_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
                // Who is gone does not mind.
                let _ = waiting.reply.send(page.clone());
            }
        }
    }

    fn next_read(
        &self,
        key: ChannelKey,
        generation: Generation,
    ) -> Option<(HistoryRead, Vec<Waiting>)> {
        let mut channels = self.channels.borrow_mut();
        let channel = channels
            .by_key(key)
            .filter(|channel| channel.generation == generation)?;
        let reads = channel.reads.as_mut()?;
        let next = reads.next();
        if next.is_none() {
            reads.is_under_way = false;
        }
        next
    }

    /// One read.
    pub(super) async fn read(
        &self,
        channel: ChannelName,
        read: HistoryRead,
    ) -> Result<HistoryPage<EncodedEvent>, HistoryError> {
        let gone = || HistoryError::Unavailable("the gateway is stopping".into());
        let name = channel.clone();
        let encode = |event: &KeptEvent| EncodedEvent::new(name.clone(), event);
        let (reply, answer) = oneshot::channel();
        let request = HistoryRequest {
            channel,
            read,
            reply,
        };
        self.history.send(request).await.map_err(|_| gone())?;
        let page = answer.await.map_err(|_| gone())??;
        Ok(page.map(encode))
    }
}

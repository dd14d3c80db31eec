//! Reads of history, shared by the clients that wait for them: a crowd that comes back costs
//! reads by channel, not by client.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::fanout::encoded::EncodedEvent;
use super::interest::Generation;
use super::reads::{Page, Waiting};
use super::state::Hub;
use super::subscriber::ChannelKey;
use super::{HistoryError, HistoryRead, HistoryRequest};
use crate::continuity::{HistoryPage, KeptEvent};
use crate::protocol::{ChannelName, EventId};

/// Clients that are answered at once. Each then has some work to do; between them the shard accepts:
/// a crowd that waits for one page must not have the kernel drop those who come behind it.
const ANSWERS_AT_ONCE: usize = 64;

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
        let _place = self.reads.acquire().await.map_err(|_| gone())?;
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

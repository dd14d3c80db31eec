//! What the gateway itself says on a stream: reconnection times, cursors, gaps, why it ends.
//!
//! Every block has data, because Firefox, WebKit and many client libraries forget an `id` without
//! data, and other libraries take a block without data for an event. A reader that takes every
//! `data` for its own asks for [`ControlForm::Comment`].

use std::fmt::Write;
use std::time::Duration;

use super::channel::ChannelName;
use super::cursor::Cursor;
use super::end::EndReason;
use super::event::Framing;
use super::gap::GapReason;
use super::id::EventId;

/// How a stream's client gets what the gateway itself says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControlForm {
    /// Events `$cursor`, `$gap`, `$end`, `$close` and `$busy`, which a client without a listener for them
    /// does not notice.
    #[default]
    Event,
    /// Comments, and blocks of an `id` or `retry` without data.
    Comment,
}

impl ControlForm {
    /// The form that the query parameter `control` names.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "event" => Some(Self::Event),
            "comment" => Some(Self::Comment),
            _ => None,
        }
    }

    /// The first block of a stream: the reconnection time, and the client's cursor if it has one.
    pub fn first_block(self, retry: Duration, cursor: Option<Cursor>) -> String {
        let mut block = retry_line(retry);
        self.append_cursor(cursor, &mut block);
        block
    }

    /// The last block of a stream whose client has to wait before it reconnects.
    pub fn retry_block(self, retry: Duration) -> String {
        self.first_block(retry, None)
    }

    /// The block that moves a client's cursor, where no event does.
    pub fn cursor_block(self, cursor: Cursor) -> String {
        let mut block = String::new();
        self.append_cursor(Some(cursor), &mut block);
        block
    }

    fn append_cursor(self, cursor: Option<Cursor>, block: &mut String) {
        if self == Self::Event {
            block.push_str("event: $cursor\n");
        }
        if let Some(cursor) = cursor {
            // Writing to a string does not fail.
            let _ = writeln!(block, "id: {cursor}");
        }
        if self == Self::Event {
            block.push_str("data: {}\n");
        }
        block.push('\n');
    }

    /// What a stream gets that was silent for the heartbeat interval, and whose cursor has not
    /// moved. As an event, so that a page can notice that its stream is silent. A comment ends with
    /// its line: some libraries take the blank line after it for an event.
    pub fn heartbeat(self, framing: Framing) -> &'static [u8] {
        match (self, framing) {
            (Self::Event, Framing::Plain) => b"event: $cursor\ndata: {}\n\n",
            (Self::Event, Framing::Chunked) => b"19\r\nevent: $cursor\ndata: {}\n\n\r\n",
            (Self::Comment, Framing::Plain) => b":\n",
            (Self::Comment, Framing::Chunked) => b"2\r\n:\n\r\n",
        }
    }

    /// Tells a client that something may be missing.
    pub fn gap_block(
        self,
        channel: &ChannelName,
        reason: GapReason,
        after: Option<EventId>,
        oldest: Option<EventId>,
        id: Option<EventId>,
    ) -> String {
        // No character of a channel name, a reason or an id needs escaping in JSON.
        let data = format!(
            "{{\"channel\":\"{channel}\",\"reason\":\"{reason}\",\"after\":{},\"oldest\":{}}}",
            Json(after),
            Json(oldest),
        );
        self.block("$gap", &data, id)
    }

    /// Tells a client that what follows is published now.
    pub fn live_block(self) -> &'static str {
        match self {
            Self::Event => "event: $live\ndata: {}\n\n",
            Self::Comment => ": $live\n",
        }
    }

    /// Tells a client that nothing follows on a channel.
    pub fn end_block(
        self,
        channel: &ChannelName,
        reason: EndReason,
        id: Option<EventId>,
    ) -> String {
        let data = format!("{{\"channel\":\"{channel}\",\"reason\":\"{reason}\"}}");
        self.block("$end", &data, id)
    }

    /// A message of a name with JSON and, where it moves the client's cursor, an id.
    fn block(self, name: &str, data: &str, id: Option<EventId>) -> String {
        let id_line = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        match (self, id) {
            (Self::Event, _) => format!("{id_line}event: {name}\ndata: {data}\n\n"),
            (Self::Comment, None) => format!(": {name} {data}\n"),
            (Self::Comment, Some(_)) => format!(": {name} {data}\n{id_line}\n"),
        }
    }

    /// Tells a client why its stream ends. `reason` is a word.
    pub fn close_block(self, reason: &str) -> String {
        match self {
            Self::Event => format!("event: $close\ndata: {{\"reason\":\"{reason}\"}}\n\n"),
            Self::Comment => format!(": $close {{\"reason\":\"{reason}\"}}\n"),
        }
    }

    /// The whole body of the answer to a request that cannot be served now. `start` is the cursor of a
    /// client that has none; without it the block has no `id`, so the client keeps its cursor.
    pub fn busy_block(self, retry: Duration, start: Option<Cursor>) -> String {
        let retry = retry_line(retry);
        let id = start.map_or_else(String::new, |cursor| format!("id: {cursor}\n"));
        match self {
            Self::Event => format!("{retry}event: $busy\n{id}data: {{}}\n\n"),
            Self::Comment => format!("{retry}: $busy\n{id}\n"),
        }
    }
}

/// How long a client waits before it reconnects.
fn retry_line(retry: Duration) -> String {
    format!("retry: {}\n", retry.as_millis())
}

struct Json(Option<EventId>);

impl std::fmt::Display for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, "\"{id}\""),
            None => f.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ControlForm::{Comment, Event};
    use super::*;

    fn cursor() -> Cursor {
        Cursor::new(EventId::new(5, 0), EventId::new(9, 1))
    }

    #[test]
    fn byte_for_byte() {
        let retry = Duration::from_millis(2500);
        for (found, expected) in [
            (
                Event.first_block(retry, None),
                "retry: 2500\nevent: $cursor\ndata: {}\n\n",
            ),
            (
                Event.first_block(retry, Some(cursor())),
                "retry: 2500\nevent: $cursor\nid: 5-0.9-1\ndata: {}\n\n",
            ),
            (Comment.first_block(retry, None), "retry: 2500\n\n"),
            (
                Comment.first_block(retry, Some(cursor())),
                "retry: 2500\nid: 5-0.9-1\n\n",
            ),
            (
                Event.retry_block(retry),
                "retry: 2500\nevent: $cursor\ndata: {}\n\n",
            ),
            (Comment.retry_block(retry), "retry: 2500\n\n"),
            (
                Event.cursor_block(cursor()),
                "event: $cursor\nid: 5-0.9-1\ndata: {}\n\n",
            ),
            (Comment.cursor_block(cursor()), "id: 5-0.9-1\n\n"),
            (
                Event.close_block("expired"),
                "event: $close\ndata: {\"reason\":\"expired\"}\n\n",
            ),
            (
                Comment.close_block("expired"),
                ": $close {\"reason\":\"expired\"}\n",
            ),
            (
                Event.busy_block(retry, Some(cursor())),
                "retry: 2500\nevent: $busy\nid: 5-0.9-1\ndata: {}\n\n",
            ),
            (
                Comment.busy_block(retry, Some(cursor())),
                "retry: 2500\n: $busy\nid: 5-0.9-1\n\n",
            ),
            (
                Event.busy_block(retry, None),
                "retry: 2500\nevent: $busy\ndata: {}\n\n",
            ),
            (Comment.busy_block(retry, None), "retry: 2500\n: $busy\n\n"),
        ] {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_end_moves_the_cursor_where_nothing_else_does() {
        let channel = ChannelName::parse("run.1").unwrap();
        let block = |form: ControlForm, id| form.end_block(&channel, EndReason::Done, id);
        let id = Some(EventId::new(5, 0));
        let data = "{\"channel\":\"run.1\",\"reason\":\"done\"}";
        for (found, expected) in [
            (block(Event, None), format!("event: $end\ndata: {data}\n\n")),
            (
                block(Event, id),
                format!("id: 5-0\nevent: $end\ndata: {data}\n\n"),
            ),
            (block(Comment, None), format!(": $end {data}\n")),
            (block(Comment, id), format!(": $end {data}\nid: 5-0\n\n")),
        ] {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_heartbeat_is_the_same_in_both_framings() {
        for (form, expected) in [
            (Event, &b"event: $cursor\ndata: {}\n\n"[..]),
            (Comment, b":\n"),
        ] {
            assert_eq!(form.heartbeat(Framing::Plain), expected);
            let framed = Framing::Chunked.frame(expected);
            assert_eq!(form.heartbeat(Framing::Chunked), framed);
        }
    }

    #[test]
    fn a_gap_is_json() {
        let channel = ChannelName::parse("a.b~c:-_").unwrap();
        let block = |form: ControlForm, id| {
            let oldest = Some(EventId::new(7, 2));
            form.gap_block(&channel, GapReason::Expired, None, oldest, id)
        };
        let id = Some(EventId::new(7, 1));
        for (block, before, after) in [
            (block(Event, id), "id: 7-1\nevent: $gap\ndata: ", "\n\n"),
            (block(Event, None), "event: $gap\ndata: ", "\n\n"),
            (block(Comment, id), ": $gap ", "\nid: 7-1\n\n"),
            (block(Comment, None), ": $gap ", "\n"),
        ] {
            let data = block
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .unwrap();
            let json: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!(
                json,
                serde_json::json!({"channel": "a.b~c:-_", "reason": "expired", "after": null, "oldest": "7-2"})
            );
        }
    }
}

//! What the gateway itself says on a stream: reconnection times, cursors, gaps, why it ends.

use std::fmt::Write;
use std::time::Duration;

use super::channel::ChannelName;
use super::cursor::Cursor;
use super::gap::GapReason;
use super::id::EventId;

/// The block that tells a client how long to wait before it reconnects. It dispatches nothing.
pub fn retry_block(retry: Duration) -> String {
    format!("retry: {}\n\n", retry.as_millis())
}

/// How a client learns its cursor where no event carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CursorStyle {
    /// An `id` without data: browsers take note and dispatch nothing (WHATWG HTML, 9.2.6).
    #[default]
    Silent,
    /// An event `$cursor`, for client libraries that forget an id without data.
    Event,
}

impl CursorStyle {
    fn append(self, cursor: Cursor, out: &mut String) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "id: {cursor}");
        if self == Self::Event {
            out.push_str("event: $cursor\ndata: {}\n");
        }
    }
}

/// The first block of a stream: the reconnection time, and where the client is.
pub fn first_block(retry: Duration, cursor: Option<Cursor>, style: CursorStyle) -> String {
    let mut block = format!("retry: {}\n", retry.as_millis());
    if let Some(cursor) = cursor {
        style.append(cursor, &mut block);
    }
    block.push('\n');
    block
}

/// A heartbeat that tells a client where it is by now.
pub fn cursor_block(cursor: Cursor, style: CursorStyle) -> String {
    let mut block = String::from(":\n");
    style.append(cursor, &mut block);
    block.push('\n');
    block
}

/// The event that tells a client that something may be missing.
pub fn gap_block(
    channel: &ChannelName,
    reason: GapReason,
    after: Option<EventId>,
    oldest: Option<EventId>,
    id: Option<EventId>,
) -> String {
    let mut block = String::new();
    if let Some(id) = id {
        let _ = writeln!(block, "id: {id}");
    }
    // No character of a channel name, a reason or an id needs escaping in JSON.
    let _ = writeln!(
        block,
        "event: $gap\ndata: {{\"channel\":\"{channel}\",\"reason\":\"{reason}\",\"after\":{},\"oldest\":{}}}\n",
        Json(after),
        Json(oldest),
    );
    block
}

/// The event that tells a client why its stream ends. `reason` is a word.
pub fn close_block(reason: &str) -> String {
    format!("event: $close\ndata: {{\"reason\":\"{reason}\"}}\n\n")
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
    use super::*;

    fn cursor() -> Cursor {
        Cursor::new(EventId::new(5, 0), EventId::new(9, 1))
    }

    #[test]
    fn byte_for_byte() {
        let retry = Duration::from_millis(2500);
        assert_eq!(
            first_block(retry, None, CursorStyle::Event),
            "retry: 2500\n\n"
        );
        assert_eq!(
            first_block(retry, Some(cursor()), CursorStyle::Silent),
            "retry: 2500\nid: 5-0.9-1\n\n"
        );
        assert_eq!(
            cursor_block(cursor(), CursorStyle::Silent),
            ":\nid: 5-0.9-1\n\n"
        );
        assert_eq!(
            cursor_block(cursor(), CursorStyle::Event),
            ":\nid: 5-0.9-1\nevent: $cursor\ndata: {}\n\n"
        );
        assert_eq!(
            close_block("expired"),
            "event: $close\ndata: {\"reason\":\"expired\"}\n\n"
        );
    }

    #[test]
    fn a_gap_is_json() {
        let channel = ChannelName::parse("a.b~c:-_").unwrap();
        let block = gap_block(
            &channel,
            GapReason::Expired,
            None,
            Some(EventId::new(7, 2)),
            Some(EventId::new(7, 1)),
        );
        let data = block
            .strip_prefix("id: 7-1\nevent: $gap\ndata: ")
            .and_then(|rest| rest.strip_suffix("\n\n"))
            .unwrap();
        let json: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"channel": "a.b~c:-_", "reason": "expired", "after": null, "oldest": "7-2"})
        );
    }
}

//! The last release beside this version at one Redis: streams move between them in both directions, and
//! a roll-back works. docs/upgrading.md promises it.

use std::path::Path;
use std::time::Duration;

use crate::support::release::previous_release;
use crate::support::{BINARY, Events, Gateway, Redis, test_within};

/// The last release, which may be built first, takes longer than this test.
const MINUTE: Duration = Duration::from_secs(60);

async fn gateway(binary: &Path, redis: &Redis) -> Gateway {
    let url = redis.url();
    let gateway = Gateway::start_binary(binary, &[("FANFARE_REDIS_URL", &url)]).await;
    gateway.ready().await;
    gateway
}

/// A stream of either version, and the last id that it has received.
struct Reader {
    stream: Events,
    cursor: String,
}

impl Reader {
    /// Opens a stream on the channel `orders`, and waits for its first cursor.
    async fn open(gateway: &Gateway, query: &str) -> Self {
        let stream = gateway.events(&format!("/events/orders?{query}")).await;
        let mut reader = Self {
            stream,
            cursor: String::new(),
        };
        reader.block().await;
        reader
    }

    /// Goes on at another gateway.
    async fn moves_to(self, gateway: &Gateway) -> Self {
        Self::open(gateway, &format!("last_event_id={}", self.cursor)).await
    }

    /// The next block: name and data, each empty where it has none.
    async fn block(&mut self) -> (String, String) {
        let block = self.stream.block().await.expect("the stream goes on");
        if let Some(id) = block.id {
            self.cursor = id;
        }
        let name = block.event.unwrap_or_default();
        (name, block.data.unwrap_or_default())
    }

    /// The data of the next event of a publisher. There is no `$gap` before it.
    async fn event(&mut self) -> String {
        loop {
            let (name, data) = self.block().await;
            assert_ne!(name, "$gap", "{data}");
            if name.is_empty() && !data.is_empty() {
                return data;
            }
        }
    }
}

/// The version of the function library that Redis has.
async fn library_version(redis: &Redis) -> String {
    let answer: Vec<String> = redis.command(&["FCALL_RO", "fanfare_library", "0"]).await;
    answer[0].clone()
}

#[tokio::test]
async fn the_last_release_and_this_version_serve_the_same_streams() {
    let released = previous_release();
    let current = Path::new(BINARY);
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let old = gateway(&released, &redis).await;
        let mut from_old = Reader::open(&old, "").await;
        old.keep("/events/orders", "kept by the old one").await;
        assert_eq!(from_old.event().await, "kept by the old one");

        // The first new gateway loads its library. Publishers of all kinds go on.
        let new = gateway(current, &redis).await;
        let library = library_version(&redis).await;
        let mut from_new = Reader::open(&new, "").await;
        redis.keep("orders", "kept in Redis", &[]).await;
        old.keep("/events/orders", "kept beside the new one").await;
        new.keep("/events/orders", "kept by the new one").await;
        redis.publish("orders", "live").await;
        for reader in [&mut from_old, &mut from_new] {
            for expected in [
                "kept in Redis",
                "kept beside the new one",
                "kept by the new one",
                "live",
            ] {
                assert_eq!(reader.event().await, expected);
            }
        }

        // Each resumes at the other. The one that has had no event yet, too.
        let without_events = Reader::open(&old, "").await;
        drop((from_old.stream, from_new.stream));
        let (old_cursor, new_cursor) = (from_old.cursor, from_new.cursor);
        redis.keep("orders", "kept meanwhile", &[]).await;
        for (gateway, cursor) in [
            (&new, &old_cursor),
            (&old, &new_cursor),
            (&new, &without_events.cursor),
        ] {
            let query = format!("last_event_id={cursor}");
            let mut reader = Reader::open(gateway, &query).await;
            assert_eq!(reader.event().await, "kept meanwhile", "{cursor}");
        }

        // The way back: the newer library stays, and old gateways serve.
        let mut reader = Reader::open(&new, &format!("last_event_id={new_cursor}")).await;
        assert_eq!(reader.event().await, "kept meanwhile");
        drop((old, new));
        let old = gateway(&released, &redis).await;
        assert_eq!(library_version(&redis).await, library);
        old.keep("/events/orders", "kept after the way back").await;
        let mut reader = reader.moves_to(&old).await;
        assert_eq!(reader.event().await, "kept after the way back");

        // And forward again.
        let new = gateway(current, &redis).await;
        new.keep("/events/orders", "kept at last").await;
        let mut reader = reader.moves_to(&new).await;
        assert_eq!(reader.event().await, "kept at last");
    })
    .await;
}

#[tokio::test]
async fn the_last_release_shows_what_readers_will_get() {
    let released = previous_release();
    test_within(MINUTE, async {
        let redis = Redis::start().await;
        let old = gateway(&released, &redis).await;
        let new = gateway(Path::new(BINARY), &redis).await;
        // Parameters that are new are ignored by the last release.
        let mut first_blocks = Vec::new();
        for (gateway, query) in [(&old, "cursor=event"), (&new, ""), (&new, "cursor=event")] {
            let mut stream = gateway.events(&format!("/events/orders?{query}")).await;
            let mut block = stream.block().await.unwrap();
            // A release that sends the pause in a block of its own.
            while block.data.is_none() {
                block = stream.block().await.unwrap();
            }
            assert!(block.id.is_some(), "{block:?}");
            first_blocks.push((block.event, block.data));
        }
        let cursor = (Some("$cursor".to_owned()), Some("{}".to_owned()));
        assert_eq!(first_blocks, vec![cursor; 3]);
        Reader::open(&old, "control=comment&heartbeat=4s").await;
        Reader::open(&new, "control=comment&heartbeat=4s").await;
    })
    .await;
}

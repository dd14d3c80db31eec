//! How to reach Redis, as the files of the settings say it now.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use redis::ConnectionInfo;

use super::pool::CommandPool;
use crate::config::{RedisPlace, RedisSource, RedisUrl, SentinelGroup, SourceFault};
use crate::files::FileWatch;
use crate::tasks::Tasks;
use crate::warnings::Warnings;

/// The source of the warning about files that cannot be used.
const WARNING: &str = "redis";

/// How to connect, by the URL in force. The servers stay the same; users, passwords and certificates
/// may change.
#[derive(Clone)]
pub(super) enum Place {
    /// To this server.
    Server(Arc<ArcSwap<ConnectionInfo>>),
    /// To these Sentinels, and to the primary that they name.
    Sentinels(Arc<ArcSwap<SentinelGroup>>),
}

impl Place {
    /// What `url` says, until the files of `source` say otherwise. Connections that are made later,
    /// also those of `pool`, use what they say then; those that are open stay.
    ///
    /// # Errors
    /// When files cannot be watched.
    pub(super) fn watch(
        url: &RedisUrl,
        source: &RedisSource,
        pool: &CommandPool,
        warnings: &Warnings,
        tasks: &mut Tasks,
    ) -> io::Result<Self> {
        let place = match url.place() {
            RedisPlace::Server(info) => Self::Server(Arc::new(ArcSwap::from_pointee(info.clone()))),
            RedisPlace::Sentinels(group) => {
                Self::Sentinels(Arc::new(ArcSwap::from_pointee(group.clone())))
            }
        };
        let files = source.files();
        if !files.is_empty() {
            let files = tasks.enter(|| FileWatch::new(files))?;
            let watch = Watch {
                place: place.clone(),
                source: source.clone(),
                pool: pool.clone(),
                warnings: warnings.clone(),
            };
            tasks.spawn("the watch over the Redis URL", watch.run(files));
        }
        Ok(place)
    }

    /// Puts in force what a URL says now. `false`: it names other servers.
    fn take(&self, url: &RedisUrl) -> bool {
        match (self, url.place()) {
            (Self::Server(current), RedisPlace::Server(info))
                if current.load().addr() == info.addr() =>
            {
                current.store(Arc::new(info.clone()));
            }
            (Self::Sentinels(current), RedisPlace::Sentinels(group))
                if current.load().has_servers_of(group) =>
            {
                current.store(Arc::new(group.clone()));
            }
            _ => return false,
        }
        true
    }
}

struct Watch {
    place: Place,
    source: RedisSource,
    pool: CommandPool,
    warnings: Warnings,
}

impl Watch {
    async fn run(self, mut files: FileWatch) {
        loop {
            files.changed().await;
            let fault = self.take().err();
            match &fault {
                None => tracing::info!(
                    target: "fanfare::bus",
                    "read the Redis URL and its certificates again; new connections use them"
                ),
                Some(fault) => tracing::warn!(
                    target: "fanfare::bus",
                    fault,
                    "the changed Redis URL or certificates cannot be used; keeping the previous ones"
                ),
            }
            let warning = fault.map(|fault| format!("{fault}; keeping the previous ones"));
            self.warnings.set(WARNING, warning);
        }
    }

    /// Puts in force what the files say. Nothing of a password is in the error.
    fn take(&self) -> Result<(), String> {
        let url = self.source.read();
        let url =
            url.map_err(|SourceFault { setting, rule }| format!("FANFARE_{setting} {rule}"))?;
        // A replica that publishes to one server and listens to another would lose events.
        let url = url
            .filter(|url| self.place.take(url))
            .ok_or("FANFARE_REDIS_URL_FILE names other servers, which needs a restart")?;
        self.pool
            .log_in_with(url.place())
            .map_err(|error| format!("FANFARE_REDIS_URL_FILE {error}"))
    }
}

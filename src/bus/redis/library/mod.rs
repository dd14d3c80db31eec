//! The function library in Redis: what it looks like for these settings, and seeing to it that it
//! is there.
//!
//! Publishers call it, so it belongs to all gateways together: each loads it where it is missing,
//! replaces an older one, adds its prefix, and leaves a newer one alone.

mod settings;

use std::fmt::Write;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use super::functions::{Refusal, call, call_read_only, refusal};
use super::once::connect_once;
use crate::config::RedisUrl;

pub use settings::{HistoryConfig, LibrarySettings};

/// Raised with every change of `fanfare.lua` that publishers or gateways could notice.
pub const LIBRARY_VERSION: u64 = 4;

const SOURCE: &str = include_str!("fanfare.lua");

/// How often the library is looked at again because another gateway has changed it meanwhile:
/// as many as may start at once with prefixes of their own.
const ATTEMPTS: usize = 16;

/// How the library stands with Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Library {
    /// It is there and knows the prefix.
    Ready {
        /// What Redis has, which counts.
        config: HistoryConfig,
    },
    /// Events cannot be kept, for this reason; live events go on.
    Unavailable(String),
    /// This server has no functions, so that events can never be kept on it; live events go on.
    Impossible(String),
    /// This server is a node of a cluster.
    ClusterNode,
    /// This server is a replica: the library must be loaded on its primary.
    Replica,
}

/// What was done to have the library in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// There was none.
    Loaded,
    /// There was an older one, or one that did not know the prefix.
    Replaced,
    /// Nothing: this version was there.
    Present,
    /// Nothing: a newer version was there.
    Newer {
        /// Its version.
        version: u64,
    },
}

/// Why the library is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The connection failed, or Redis is still loading: worth another attempt.
    #[error(transparent)]
    Connection(RedisError),
    /// Redis answered, and another attempt would not change it.
    #[error("{0}")]
    Unavailable(String),
    /// The server has no functions.
    #[error("{0} (kept events need Redis 7)")]
    Impossible(RedisError),
    /// The server is a replica.
    #[error("{0} (connected to a replica)")]
    Replica(RedisError),
    /// The server is a node of a cluster.
    #[error("{0} (connected to a node of a cluster)")]
    ClusterNode(RedisError),
    /// The library is gone, or does not know the prefix.
    #[error("{0}")]
    Missing(RedisError),
}

impl From<RedisError> for LibraryError {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::BusyLoading) => Self::Connection(error),
            ErrorKind::Server(_) | ErrorKind::Extension if is_missing(&error) => {
                Self::Missing(error)
            }
            ErrorKind::Server(_) | ErrorKind::Extension => match refusal(&error) {
                Some(Refusal::Replica) => Self::Replica(error),
                Some(Refusal::ClusterNode) => Self::ClusterNode(error),
                // Functions that are missing were told apart above: the command itself is unknown.
                Some(Refusal::Missing) => Self::Impossible(error),
                Some(Refusal::Forbidden) => {
                    Self::Unavailable(format!("{error} (the Redis user lacks the right)"))
                }
                _ => Self::Unavailable(error.to_string()),
            },
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Unavailable(format!(
                "the library answers in a way that this version does not know: {error}"
            )),
            _ => Self::Connection(error),
        }
    }
}

/// The library's source for these settings and prefixes.
pub fn render(settings: &LibrarySettings, prefixes: &[String]) -> String {
    let prefixes: Vec<_> = prefixes
        .iter()
        .map(|prefix| format!("'{}'", escape(prefix)))
        .collect();
    SOURCE
        .replace("--[[VERSION]]", &LIBRARY_VERSION.to_string())
        .replace("--[[PREFIXES]]", &prefixes.join(", "))
        .replace("--[[LENGTH]]", &settings.history_length.to_string())
        .replace(
            "--[[TTL_MS]]",
            &settings.history_ttl.as_millis().to_string(),
        )
        .replace(
            "--[[LAG_MS]]",
            &settings.max_replication_lag.as_millis().to_string(),
        )
        .replace(
            "--[[MAX_EVENT_BYTES]]",
            &settings.max_event_bytes.to_string(),
        )
}

/// Text as it stands between the quotes of a Lua string.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b":._-~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\{byte:03}");
        }
    }
    out
}

/// Whether `error` says that the library is gone, or does not know the prefix: a reason to call
/// [`ensure`] again.
pub fn is_missing(error: &RedisError) -> bool {
    let text = error.to_string();
    let says = |part| text.contains(part);
    says("Function not found")
        || says("fanfare_publish: channel: begins with")
        || says("fanfare_history: channel: begins with")
        || says("fanfare_probe: channel: ")
        || says("fanfare_configure: key: ")
        || says("fanfare_revoke: key: ")
        || says("fanfare_config: key: ")
}

/// Sees to it that the library is in Redis, knows the prefix, and that `$config` is written.
///
/// # Errors
/// When the connection fails; whatever Redis refuses is [`Library::Unavailable`].
pub async fn ensure(
    connection: &mut impl ConnectionLike,
    settings: &LibrarySettings,
) -> Result<Library, RedisError> {
    match set_up(connection, settings, ConfigWrite::WhenAbsent).await {
        Ok((_, config)) => Ok(Library::Ready { config }),
        Err(LibraryError::Unavailable(reason)) => Ok(Library::Unavailable(reason)),
        Err(error @ LibraryError::Missing(_)) => Ok(Library::Unavailable(error.to_string())),
        Err(error @ LibraryError::Impossible(_)) => Ok(Library::Impossible(error.to_string())),
        Err(LibraryError::Replica(_)) => Ok(Library::Replica),
        Err(LibraryError::ClusterNode(_)) => Ok(Library::ClusterNode),
        Err(LibraryError::Connection(error)) => Err(error),
    }
}

/// Loads the library, as [`ensure`] does, and writes `settings` to `$config` even where there is
/// one.
///
/// # Errors
/// When Redis cannot be reached or refuses.
pub async fn load(
    connection: &mut impl ConnectionLike,
    settings: &LibrarySettings,
) -> Result<(Installed, HistoryConfig), LibraryError> {
    set_up(connection, settings, ConfigWrite::Always).await
}

/// [`load`] over a connection of its own, for the command line.
///
/// # Errors
/// When Redis cannot be reached or refuses.
pub async fn load_once(
    url: &RedisUrl,
    settings: &LibrarySettings,
) -> Result<(Installed, HistoryConfig), LibraryError> {
    load(&mut connect_once(url).await?, settings).await
}

async fn set_up(
    connection: &mut impl ConnectionLike,
    settings: &LibrarySettings,
    write: ConfigWrite,
) -> Result<(Installed, HistoryConfig), LibraryError> {
    for _ in 0..ATTEMPTS {
        let installed = install(connection, settings).await?;
        match configure(connection, settings, write).await {
            // Replaced by a gateway that did not know the prefix; it will see that, too.
            Err(LibraryError::Missing(_)) => {}
            configured => return Ok((installed, configured?)),
        }
    }
    Err(too_many_cooks())
}

fn too_many_cooks() -> LibraryError {
    LibraryError::Unavailable(
        "Redis has a library named fanfare that is not ours, or others keep replacing it".into(),
    )
}

async fn install(
    connection: &mut impl ConnectionLike,
    settings: &LibrarySettings,
) -> Result<Installed, LibraryError> {
    let own = &settings.prefix;
    // Every prefix that any look has found: what a race has taken away is put back.
    let mut prefixes = vec![own.clone()];
    let mut installed = Installed::Present;
    for _ in 0..ATTEMPTS {
        let Some(found) = look(connection).await? else {
            match load_new(connection, &render(settings, &prefixes)).await? {
                LoadedNew::Yes => installed = Installed::Loaded,
                // Another gateway was faster, or it is a library that is not ours: look again.
                LoadedNew::Exists => {}
            }
            continue;
        };
        let knows_prefix = found.prefixes.contains(own);
        if found.version > LIBRARY_VERSION && knows_prefix {
            return Ok(Installed::Newer {
                version: found.version,
            });
        }
        if found.version > LIBRARY_VERSION {
            return Err(LibraryError::Unavailable(format!(
                "Redis has version {} of the library, which is newer than this gateway's \
                 {LIBRARY_VERSION} and does not know the prefix {own}; \
                 a gateway of that version has to load it",
                found.version
            )));
        }
        let complete = prefixes
            .iter()
            .all(|prefix| found.prefixes.contains(prefix));
        if found.version == LIBRARY_VERSION && complete {
            return Ok(installed);
        }
        let nested =
            |other: &&String| *other != own && (other.starts_with(own) || own.starts_with(*other));
        if let Some(other) = found.prefixes.iter().find(nested) {
            return Err(LibraryError::Unavailable(format!(
                "the library already serves the prefix {other}: with {own} beside it, a \
                 channel of one would be a channel of the other too"
            )));
        }
        add_all(&mut prefixes, found.prefixes);
        let replaced = replace(connection, &render(settings, &prefixes)).await?;
        add_all(&mut prefixes, replaced);
        installed = Installed::Replaced;
    }
    Err(too_many_cooks())
}

fn add_all(prefixes: &mut Vec<String>, more: Vec<String>) {
    for prefix in more {
        if !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
}

/// Whether a library was loaded where there was none.
enum LoadedNew {
    Yes,
    Exists,
}

async fn load_new(
    connection: &mut impl ConnectionLike,
    source: &str,
) -> Result<LoadedNew, LibraryError> {
    let answer = redis::cmd("FUNCTION")
        .arg(&["LOAD", source])
        .exec_async(connection)
        .await;
    match answer {
        Ok(()) => Ok(LoadedNew::Yes),
        Err(error) if error.to_string().contains("already exists") => Ok(LoadedNew::Exists),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the library and returns the prefixes of the one replaced, which another gateway may
/// have put there since it was last looked at.
async fn replace(
    connection: &mut impl ConnectionLike,
    source: &str,
) -> Result<Vec<String>, LibraryError> {
    let mut transaction = redis::pipe();
    transaction
        .atomic()
        .add_command(fcall_library())
        .cmd("FUNCTION")
        .arg(&["LOAD", "REPLACE", source])
        .ignore();
    match transaction.query_async::<(Vec<Value>,)>(connection).await {
        Ok((answer,)) => Ok(Found::read(answer)?.prefixes),
        // Deleted meanwhile, and loaded by this.
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The library that Redis has.
struct Found {
    version: u64,
    prefixes: Vec<String>,
}

impl Found {
    /// Reads the answer of `fanfare_library`.
    fn read(answer: Vec<Value>) -> Result<Self, RedisError> {
        let mut values = answer.into_iter();
        let version = redis::from_redis_value(values.next().unwrap_or(Value::Nil))?;
        let prefixes = values
            .map(redis::from_redis_value)
            .collect::<Result<_, _>>()?;
        Ok(Self { version, prefixes })
    }
}

fn fcall_library() -> Cmd {
    let mut command = redis::cmd("FCALL_RO");
    command.arg("fanfare_library").arg(0);
    command
}

async fn look(connection: &mut impl ConnectionLike) -> Result<Option<Found>, LibraryError> {
    match fcall_library().query_async(connection).await {
        Ok(answer) => Ok(Some(Found::read(answer)?)),
        Err(error) if error.to_string().contains("Function not found") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// When `$config` is written.
#[derive(Clone, Copy, Debug)]
enum ConfigWrite {
    WhenAbsent,
    Always,
}

async fn configure(
    connection: &mut impl ConnectionLike,
    settings: &LibrarySettings,
    write: ConfigWrite,
) -> Result<HistoryConfig, LibraryError> {
    /// A flag, and the six values.
    type Answer = (u8, u64, u64, u64, u64, u64, String);
    let key = format!("{}$config", settings.prefix);
    let mut command = call("fanfare_configure", &key);
    command
        .arg(match write {
            ConfigWrite::WhenAbsent => "absent",
            ConfigWrite::Always => "set",
        })
        .arg(settings.history_length)
        .arg(settings.history_ttl.as_millis().to_string())
        .arg(settings.max_replication_lag.as_millis().to_string())
        .arg(settings.max_event_bytes);
    let configured = command.query_async(connection).await;
    let answer: Answer = match (write, configured) {
        (ConfigWrite::WhenAbsent, Err(error))
            if matches!(refusal(&error), Some(Refusal::NotNow(_))) && !is_missing(&error) =>
        {
            // It takes no writes, for now; its histories are there all the same.
            let read: Result<Answer, _> = call_read_only("fanfare_config", &key)
                .query_async(connection)
                .await;
            match read {
                Ok(found @ (1, ..)) => found,
                _ => return Err(error.into()),
            }
        }
        (_, configured) => configured?,
    };
    let (_, length, ttl_ms, lag_ms, max_event_bytes, old_ttl_ms, ttl_since) = answer;
    Ok(HistoryConfig {
        length,
        ttl: Duration::from_millis(ttl_ms),
        old_ttl: Duration::from_millis(old_ttl_ms),
        ttl_since: ttl_since.parse().map_err(|_| {
            LibraryError::Unavailable(format!("{}$config holds no id", settings.prefix))
        })?,
        max_replication_lag: Duration::from_millis(lag_ms),
        max_event_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LibrarySettings {
        LibrarySettings {
            prefix: "sse:".into(),
            history_length: 1000,
            history_ttl: Duration::from_secs(3600),
            max_replication_lag: Duration::from_secs(60),
            max_event_bytes: 1 << 20,
        }
    }

    #[test]
    fn every_placeholder_is_filled() {
        let source = render(&settings(), &["sse:".into(), "it's{1}:".into()]);
        assert!(source.starts_with("#!lua name=fanfare\n"));
        assert!(!source.contains("--[["));
        assert!(source.contains(r"local PREFIXES = {'sse:', 'it\039s\1231\125:'}"));
        assert!(source.contains("  ttl_ms = 3600000,\n"));
        assert!(source.is_ascii());
    }
}

//! Keys of a JWK set that is fetched: again every few minutes, and when a token names a key that
//! is not in it.
//!
//! Where it cannot be fetched the last good set stays in force up to a stated age: so an outage of
//! who signs tokens is none of the streams', and a key that was taken back does not live for ever.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use humantime::format_duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::keys::{self, Key};
use crate::tasks::Tasks;
use crate::telemetry::AuthMetrics;
use crate::telemetry::occurrences::{JwksFetched, JwksNotFetched};

/// How often the set is fetched, at least three times within its greatest age: a key that was
/// taken back is out of force after this time.
const REFRESH: Duration = Duration::from_secs(300);

/// Between two fetches that unknown keys ask for: whoever invents keys causes no more.
const COOLDOWN: Duration = Duration::from_secs(10);

/// From a failed fetch to the next, doubling, and jittered by up to a half more: replicas that
/// were started together do not ask together.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// For one fetch, all of it. nginx/nginx.conf waits longer for an answer.
pub(crate) const FETCH_DEADLINE: Duration = Duration::from_secs(5);

/// A set of [a few](keys) keys has some kilobytes, with certificates some dozens.
const MAX_SET_BYTES: usize = 256 * 1024;

/// Requests that may wait for a fetch; more are told to come back.
const WAITING: usize = 1024;

/// A JWK set, kept current by a task on the control runtime.
#[derive(Debug)]
pub struct Jwks {
    state: Arc<ArcSwap<State>>,
    asked: mpsc::Sender<oneshot::Sender<()>>,
    max_age: Duration,
}

/// What is known of the set.
#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<Arc<Vec<Key>>>,
    /// When it was last known to be so.
    fetched: Option<Instant>,
    /// Why the last fetch failed.
    fault: Option<String>,
}

/// What came of asking for the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refetched {
    /// It is of after the question.
    Done,
    /// It was fetched a moment ago, or cannot be.
    NotNow,
}

impl Jwks {
    /// Begins to fetch the set at `url`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(
        url: reqwest::Url,
        max_age: Duration,
        metrics: AuthMetrics,
        tasks: &mut Tasks,
    ) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(FETCH_DEADLINE)
            // Where keys come from is what the operator said, not where it points to.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("fanfare/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let state = Arc::default();
        let (asked, questions) = mpsc::channel(WAITING);
        let fetcher = Fetcher {
            client,
            url,
            max_age,
            state: Arc::clone(&state),
            questions,
            metrics,
        };
        tasks.spawn("the JWK set's fetcher", fetcher.run());
        Ok(Self {
            state,
            asked,
            max_age,
        })
    }

    /// The keys in force; none while they are unknown or too old.
    pub(super) fn keys(&self) -> Option<Arc<Vec<Key>>> {
        let state = self.state.load();
        let young = |fetched: Instant| fetched.elapsed() <= self.max_age;
        state
            .keys
            .clone()
            .filter(|_| state.fetched.is_some_and(young))
    }

    /// Has the set fetched, unless that was done a moment ago, and waits for it.
    pub(super) async fn refetch(&self) -> Refetched {
        let (reply, fetched) = oneshot::channel();
        if self.asked.try_send(reply).is_err() {
            return Refetched::NotNow;
        }
        match timeout(FETCH_DEADLINE, fetched).await {
            Ok(Ok(())) => Refetched::Done,
            _ => Refetched::NotNow,
        }
    }

    /// Why there are no keys.
    pub(super) fn outage(&self) -> Option<String> {
        if self.keys().is_some() {
            return None;
        }
        let state = self.state.load();
        let fault = state.fault.as_deref().unwrap_or("not fetched yet");
        Some(match state.fetched {
            None => format!("keys: {fault}"),
            Some(_) => format!(
                "keys: the last good JWK set is older than {}: {fault}",
                format_duration(self.max_age)
            ),
        })
    }

    /// What is wrong while there are keys.
    pub(super) fn warning(&self) -> Option<String> {
        let state = self.state.load();
        let (fault, fetched) = (state.fault.as_ref()?, state.fetched?);
        let age = Duration::from_secs(fetched.elapsed().as_secs());
        self.keys()?;
        Some(format!(
            "keys: {fault}; the JWK set of {} ago stays in force until it is {} old",
            format_duration(age),
            format_duration(self.max_age)
        ))
    }
}

struct Fetcher {
    client: reqwest::Client,
    url: reqwest::Url,
    max_age: Duration,
    state: Arc<ArcSwap<State>>,
    questions: mpsc::Receiver<oneshot::Sender<()>>,
    metrics: AuthMetrics,
}

impl Fetcher {
    /// Fetches until nobody can ask any more.
    async fn run(mut self) {
        let mut retry = RETRY.0;
        let mut waiting = Vec::new();
        let mut asked_at: Option<Instant> = None;
        loop {
            let next = if self.fetch().await {
                retry = RETRY.0;
                for reply in waiting.drain(..) {
                    // Whoever has given up needs no answer.
                    let _ = oneshot::Sender::<()>::send(reply, ());
                }
                REFRESH.min(self.max_age / 3)
            } else {
                // Dropped: the answer is that there is none.
                waiting.clear();
                let pause = retry.mul_f64(1.0 + fastrand::f64() / 2.0);
                retry = (retry * 2).min(RETRY.1);
                pause
            };
            let due = Instant::now() + next;
            loop {
                tokio::select! {
                    () = sleep_until(due) => break,
                    question = self.questions.recv() => match question {
                        Some(reply) if asked_at.is_none_or(|at| at.elapsed() >= COOLDOWN) => {
                            asked_at = Some(Instant::now());
                            waiting.push(reply);
                            break;
                        }
                        // Dropped: not now.
                        Some(_) => {}
                        None => return,
                    },
                }
            }
        }
    }

    /// Fetches the set once, and says whether that was possible.
    async fn fetch(&self) -> bool {
        let fetched = self.read().await.and_then(|text| keys::from_jwks(&text));
        let before = self.state.load_full();
        let host = self.url.host_str().unwrap_or_default();
        match fetched {
            Ok((keys, left_out)) => {
                let ids = |keys: &[Key]| -> Vec<_> {
                    keys.iter().map(|key| key.id().map(str::to_owned)).collect()
                };
                let changed = before.keys.as_ref().map(|keys| ids(keys)) != Some(ids(&keys));
                JwksFetched {
                    host,
                    keys: keys.len(),
                    left_out: &left_out,
                    is_new: changed || before.fault.is_some(),
                }
                .emit(&self.metrics);
                self.state.store(Arc::new(State {
                    keys: Some(Arc::new(keys)),
                    fetched: Some(Instant::now()),
                    fault: None,
                }));
                true
            }
            Err(fault) => {
                let fault = format!("the JWK set of {host} {fault}");
                JwksNotFetched {
                    fault: &fault,
                    is_new: before.fault.as_ref() != Some(&fault),
                }
                .emit(&self.metrics);
                self.state.store(Arc::new(State {
                    fault: Some(fault),
                    ..State::clone(&before)
                }));
                false
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        // The path of the URL may hold what is nobody's business.
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            let mut text = format!("cannot be fetched: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text += &format!(": {cause}");
                source = cause.source();
            }
            text
        };
        let response = self
            .client
            .get(self.url.clone())
            .send()
            .await
            .map_err(failed)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(format!("cannot be fetched: the answer is {status}"));
        }
        let mut text = Vec::new();
        let mut parts = response.bytes_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(failed)?;
            if text.len() + part.len() > MAX_SET_BYTES {
                return Err(format!("has more than {MAX_SET_BYTES} bytes"));
            }
            text.extend_from_slice(&part);
        }
        Ok(text)
    }
}

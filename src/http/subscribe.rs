//! `GET /events/{channel}` and `GET /events?channel=…`: what a stream is asked for.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use super::answer::stream_headers;
use super::authority::{Caller, Refusal};
use super::decision::{BusyForm, Decision};
use super::error::Problem;
use super::ignored::{IGNORED_HEADER, IgnoredNames};
use super::state::RouterState;
use crate::hub::{Start, StreamRequest};
use crate::protocol::{ChannelName, ControlForm, Cursor};

/// The most kept events of a channel that a new stream may begin with; who asks for more gets
/// these.
const MOST_NEWEST: u32 = 10_000;

/// Opens a stream on the path's channel, and on those of the query.
pub(super) async fn by_path(
    State(state): State<Arc<RouterState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Path(channel) = path.map_err(|rejection| Problem::field("channel", rejection))?;
    answer(&state, Some(&channel), query.as_deref(), &headers).await
}

/// Opens a stream on the channels of the query.
pub(super) async fn by_query(
    State(state): State<Arc<RouterState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    answer(&state, None, query.as_deref(), &headers).await
}

async fn answer(
    state: &RouterState,
    path: Option<&str>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let mut asked = StreamQuery::parse(path, query, state.max_channels_per_connection)?;
    // What the browser itself sends wins over what the page began with. Not if it is empty: some
    // clients send the header with each request.
    if let Some(cursor) = headers.get("last-event-id") {
        asked.begin.after(cursor.to_str().unwrap_or(NO_CURSOR));
    }
    let ignored = asked.ignored.header();
    let form = BusyForm {
        control: asked.control,
        wants_cursor: asked.begin.start() == Start::Live,
        is_cut: asked.begin.is_whole(),
    };
    let mut response = stream_head(state, asked, headers).await.into_response();
    Decision::answer_in(form, &mut response);
    if let Some(names) = ignored {
        response.headers_mut().insert(IGNORED_HEADER, names);
    }
    Ok(response)
}

async fn stream_head(
    state: &RouterState,
    asked: StreamQuery,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let StreamQuery {
        mut channels,
        begin,
        control,
        heartbeat,
        tells_live,
        ticket,
        ignored: _,
    } = asked;
    let caller = state.authority.caller(headers, ticket.as_deref()).await?;
    let (reader, count) = (caller.session.clone(), channels.names.len());
    let refused = |problem| Refusal::OfStream(problem, reader.clone(), count);
    for channel in &channels.names {
        let checked = state.authority.check_read(&caller, channel);
        checked.map_err(refused)?;
    }
    let Caller {
        session,
        grants,
        ticket,
    } = caller;
    let asked_for = channels.names.len();
    for channel in grants.join {
        channels.add(channel).map_err(refused)?;
    }
    if channels.names.is_empty() {
        let rule = "name at least one: /events?channel=orders";
        return Err(refused(Problem::field("channel", rule)));
    }
    let is_whole = begin.is_whole();
    // Nothing that a token joins is a part of what was asked for.
    let counted = match channels.names.len() {
        _ if is_whole && asked_for > 0 => asked_for,
        all => all,
    };
    let mut response = StatusCode::OK.into_response();
    stream_headers(response.headers_mut());
    let stream = StreamRequest {
        channels: channels.names,
        start: begin.start(),
        control,
        heartbeat,
        session,
        counted,
        tells_live,
        is_whole,
        // The page of a ticket is an EventSource, which shows no status.
        sees_status: ticket.is_none(),
    };
    Ok(Decision::Open { stream, ticket }.with(response))
}

/// What the URL of a stream asks for.
pub(crate) struct StreamQuery {
    channels: Channels,
    begin: Begin,
    control: ControlForm,
    heartbeat: Option<Duration>,
    tells_live: bool,
    ticket: Option<String>,
    ignored: IgnoredNames,
}

impl StreamQuery {
    /// Reads the channel of the path, if there is one, and the query.
    ///
    /// # Errors
    /// With the first rule that is broken. Parameters that are not known are ignored, and noted.
    pub(crate) fn parse(
        path: Option<&str>,
        query: Option<&str>,
        max_channels: usize,
    ) -> Result<Self, Problem> {
        let mut asked = Self {
            channels: Channels {
                names: Vec::new(),
                most: max_channels,
            },
            begin: Begin::default(),
            control: ControlForm::default(),
            heartbeat: None,
            tells_live: false,
            ticket: None,
            ignored: IgnoredNames::default(),
        };
        let parse =
            |name: &str| ChannelName::parse(name).map_err(|rule| Problem::field("channel", rule));
        if let Some(name) = path {
            asked.channels.add(parse(name)?)?;
        }
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*key {
                "channel" => asked.channels.add(parse(&value)?)?,
                "ticket" if asked.ticket.is_some() => {
                    return Err(Problem::field("ticket", "is given twice"));
                }
                "ticket" => asked.ticket = Some(value.into_owned()),
                // The last three are what polyfills send, which cannot set the header.
                "last_event_id" | "lastEventId" | "lastEventID" | "Last-Event-ID" => {
                    asked.begin.after(&value);
                }
                "history" => asked.begin.newest = Some(newest(&value)?),
                "from" if value == "start" => asked.begin.from_start = true,
                "from" => return Err(Problem::field("from", "must be start")),
                "live" if value == "event" => asked.tells_live = true,
                "live" => return Err(Problem::field("live", "must be event")),
                "control" => {
                    let form = ControlForm::parse(&value);
                    let rule = || Problem::field("control", "must be event or comment");
                    asked.control = form.ok_or_else(rule)?;
                }
                "heartbeat" => asked.heartbeat = Some(heartbeat(&value)?),
                // What `control=event` was called once. Pages still send it.
                "cursor" => {}
                "token" | "jwt" => return Err(token_in_query()),
                unknown => asked.ignored.add(unknown),
            }
        }
        if asked.begin.from_start && asked.begin.newest.is_some() {
            let rule = "start is everything: leave history out";
            return Err(Problem::field("from", rule));
        }
        Ok(asked)
    }

    /// The channels, each once.
    pub(crate) fn channels(&self) -> &[ChannelName] {
        &self.channels.names
    }
}

/// The answer to a token in a URL.
pub(super) fn token_in_query() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "tokens must not be passed in the URL, where logs and histories keep them: send the token in the \
         Authorization header or in the cookie fanfare, or get a ticket from POST /tickets",
    )
}

/// The channels of one stream, each once.
struct Channels {
    names: Vec<ChannelName>,
    most: usize,
}

impl Channels {
    fn add(&mut self, name: ChannelName) -> Result<(), Problem> {
        if self.names.contains(&name) {
            return Ok(());
        }
        if self.names.len() >= self.most {
            let rule = format!(
                "a stream must have at most {} channels (FANFARE_MAX_CHANNELS_PER_CONNECTION)",
                self.most
            );
            return Err(Problem::field("channel", rule));
        }
        self.names.push(name);
        Ok(())
    }
}

/// Stands for a header that is not even text.
const NO_CURSOR: &str = "?";

/// Where a client asks to begin.
#[derive(Default)]
struct Begin {
    after: Option<Start>,
    newest: Option<u32>,
    from_start: bool,
}

impl Begin {
    /// Notes a cursor. The empty one is none: a client that has had no id sends it so.
    fn after(&mut self, cursor: &str) {
        if !cursor.is_empty() {
            self.after = Some(match cursor.parse() {
                // It has had nothing, and misses nothing before the first event.
                Ok(cursor) if cursor == Cursor::default() => Start::Beginning,
                cursor => cursor.map_or(Start::Unknown, Start::After),
            });
        }
    }

    /// Whether everything from the start is asked for.
    fn is_whole(&self) -> bool {
        self.from_start || self.after == Some(Start::Beginning)
    }

    /// A cursor says more than a number of events.
    fn start(&self) -> Start {
        match (self.after, self.newest) {
            (Some(after), _) => after,
            (None, _) if self.from_start => Start::Beginning,
            (None, Some(newest @ 1..)) => Start::Newest(newest.min(MOST_NEWEST)),
            (None, _) => Start::Live,
        }
    }
}

/// The heartbeat intervals that a stream may ask for. A shorter one costs more than it tells; a longer
/// one exceeds the timeouts of most proxies.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);

fn heartbeat(value: &str) -> Result<Duration, Problem> {
    let interval = humantime::parse_duration(value).ok();
    interval
        .filter(|interval| HEARTBEATS.contains(interval))
        .ok_or_else(|| Problem::field("heartbeat", "must be a duration of 2s to 60s, such as 4s"))
}

fn newest(value: &str) -> Result<u32, Problem> {
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(Problem::field(
            "history",
            "must be a whole number of events",
        ));
    }
    // Digits that do not fit are more than there can be.
    Ok(value.parse().unwrap_or(u32::MAX))
}

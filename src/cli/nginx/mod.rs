//! `fanfare check --nginx FILE`: whether nginx and the gateway agree.
//!
//! Each rule is one that costs somebody a cut stream, an event published twice, or a browser that
//! gives up. The files under `nginx/` mark the values with `[agrees: …]`.

mod syntax;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::auth::{FETCH_DEADLINE, MAX_TOKEN_BYTES};
use crate::bus::POOL_PATIENCE;
use crate::config::{Config, Fault};
use crate::http::{HEAD_DEADLINE, MAX_HEAD_BYTES};
use syntax::Directive;

/// Heartbeats that a proxy waits for before it gives a replica up: one may be late, one lost.
const HEARTBEATS: u32 = 3;

/// What nginx adds to a request's head, at most: the headers that it sets.
const ADDED_HEAD_BYTES: u64 = 1024;

/// What stands beside a token in its header, at most.
const BESIDE_TOKEN_BYTES: u64 = 64;

/// The longest that a request takes that is no stream: keys that have to be fetched, then Redis.
const ANSWER_DEADLINE: Duration = FETCH_DEADLINE.saturating_add(POOL_PATIENCE);

/// What of the nginx configuration in `file` does not fit the gateway's.
pub(super) fn faults(file: &Path, config: &Config) -> Vec<Fault> {
    let main = match syntax::read(file) {
        Ok(main) => main,
        Err(fault) => {
            return vec![Fault {
                setting: "nginx".to_owned(),
                rule: format!("cannot be read: {fault}"),
            }];
        }
    };
    let mut check = Check {
        config,
        proxies: 0,
        faults: Vec::new(),
    };
    check.block(&main, &mut Vec::new());
    if check.proxies == 0 {
        check.faults.push(Fault {
            setting: file.display().to_string(),
            rule: "passes nothing on: there is no proxy_pass".to_owned(),
        });
    }
    check.faults
}

struct Check<'a> {
    config: &'a Config,
    proxies: usize,
    faults: Vec<Fault>,
}

/// A block and those around it, the outermost first.
type Blocks<'a> = Vec<&'a [Directive]>;

impl Check<'_> {
    fn block<'a>(&mut self, block: &'a [Directive], around: &mut Blocks<'a>) {
        around.push(block);
        for directive in block {
            match directive.name.as_str() {
                "upstream" => self.upstream(directive),
                "map"
                    if directive
                        .words
                        .first()
                        .is_some_and(|of| of == "$http_origin") =>
                {
                    self.origins(directive);
                }
                "location" if own(&directive.block, "proxy_pass").is_some() => {
                    self.proxies += 1;
                    around.push(&directive.block);
                    self.location(directive, around);
                    around.pop();
                }
                // Of the stream module.
                "server" if own(&directive.block, "proxy_pass").is_some() => {
                    self.proxies += 1;
                    around.push(&directive.block);
                    self.silence("proxy_timeout", "10m", directive, around);
                    self.replicas(around);
                    around.pop();
                }
                _ => {}
            }
            self.block(&directive.block, around);
        }
        around.pop();
    }

    fn upstream(&mut self, upstream: &Directive) {
        if own(&upstream.block, "keepalive").is_none() {
            return;
        }
        let found = own(&upstream.block, "keepalive_timeout");
        if time(found, "60s").is_none_or(|kept| kept >= HEAD_DEADLINE) {
            self.fault(
                found.unwrap_or(upstream),
                "keepalive_timeout",
                format!(
                    "is shorter than {HEAD_DEADLINE:?}, when the gateway closes an idle connection: \
                     a POST that meets that is lost"
                ),
            );
        }
    }

    fn location(&mut self, location: &Directive, around: &Blocks<'_>) {
        let allowed = own(&location.block, "limit_except");
        let allows =
            |method: &str| allowed.is_none_or(|only| only.words.iter().any(|word| word == method));
        let path = location.words.last().map_or("", String::as_str);
        let of_events = "/events/".starts_with(path) || path.starts_with("/events");
        if of_events && allows("GET") {
            self.streams(location, around);
        }
        if allows("POST") {
            self.requests(location, of_events, around);
        }
        self.version(location, around);
        self.head(location, around);
        self.address(location, around);
    }

    /// nginx speaks HTTP/1.0 to replicas unless it is told.
    fn version(&mut self, location: &Directive, around: &Blocks<'_>) {
        let found = effective(around, "proxy_http_version");
        if only_word(found) != Some("1.1") {
            self.fault(
                found.unwrap_or(location),
                "proxy_http_version",
                "must be 1.1: in HTTP/1.0 no connection is kept, and the end of a stream looks like a \
                 connection that broke",
            );
        }
    }

    /// The pages that are answered by nginx itself have to be those that the gateway answers.
    fn origins(&mut self, map: &Directive) {
        let is_origin = |name: &&str| name.contains("://");
        let names = map.block.iter().map(|entry| entry.name.as_str());
        // A regular expression may be any of them.
        if names.clone().any(|name| name.starts_with('~')) {
            return;
        }
        let found: BTreeSet<_> = names.filter(is_origin).map(str::to_owned).collect();
        let allowed = &self.config.clients.allow_origins;
        let wanted: BTreeSet<_> = allowed.iter().map(ToString::to_string).collect();
        if found != wanted {
            let differing: Vec<_> = found.symmetric_difference(&wanted).cloned().collect();
            let rule = format!(
                "names the origins of FANFARE_ALLOW_ORIGINS; these stand in one of both only: {}",
                differing.join(", ")
            );
            self.fault(map, "map", rule);
        }
    }

    /// Whom the gateway takes for the client.
    fn address(&mut self, location: &Directive, around: &Blocks<'_>) {
        let rules = &self.config.clients;
        let name = rules.forwarded_header.name();
        let told = header(around, name.as_str()).unwrap_or_default();
        let is_limited =
            rules.max_connections_per_ip.is_some() || rules.connect_rate_per_ip.is_some();
        if rules.trusted_proxies.is_empty() {
            if is_limited {
                self.fault(
                    location,
                    "proxy_set_header",
                    "is believed only where FANFARE_TRUSTED_PROXIES names this nginx: the limits of \
                     an address would be those of nginx",
                );
            }
        } else if told.is_empty() || told.contains("$http_") {
            self.fault(
                location,
                "proxy_set_header",
                format!(
                    "sets {name} to the address that nginx sees: FANFARE_TRUSTED_PROXIES has the \
                     gateway believe it, so clients would say who they are"
                ),
            );
        }
    }

    /// A location that streams pass.
    fn streams(&mut self, location: &Directive, around: &Blocks<'_>) {
        self.silence("proxy_read_timeout", "60s", location, around);
        self.replicas(around);
        if let Some(found) = effective(around, "gzip")
            && found.words.iter().any(|word| word == "on")
        {
            self.fault(
                found,
                "gzip",
                "must be off for streams: it holds events back",
            );
        }
        let silence = time(effective(around, "proxy_read_timeout"), "60s");
        let found = effective(around, "proxy_next_upstream_timeout");
        let all = time(found, "0");
        // Zero is no bound.
        if all.is_none() || all.is_some_and(|all| !all.is_zero()) && all <= silence {
            self.fault(
                found.unwrap_or(location),
                "proxy_next_upstream_timeout",
                "must be longer than proxy_read_timeout: when a replica that hangs is given up, the next \
                 is to be tried",
            );
        }
        let asks_for_503 = header(around, "Fanfare-Busy").is_some_and(|value| value == "503");
        let next = effective(around, "proxy_next_upstream");
        let tries_next = next.is_some_and(|next| next.words.iter().any(|word| word == "http_503"));
        if asks_for_503 != tries_next {
            self.fault(
                next.unwrap_or(location),
                "proxy_next_upstream",
                "has http_503 if, and only if, the header Fanfare-Busy is set to 503",
            );
        }
        if !asks_for_503 {
            return;
        }
        let intercepts = effective(around, "proxy_intercept_errors")
            .is_some_and(|found| found.words.iter().any(|word| word == "on"));
        let answers = around
            .iter()
            .rev()
            .find_map(|block| own(block, "error_page"));
        let replaced = intercepts
            && answers.is_some_and(|page| {
                let has = |wanted: &&str| page.words.iter().any(|word| word == wanted);
                ["429", "500", "502", "503", "504", "="].iter().all(has)
            });
        if !replaced {
            self.fault(
                answers.unwrap_or(location),
                "error_page",
                "has 429 500 502 503 504 =, with proxy_intercept_errors on: a browser gives up for \
                 good on any status but 200",
            );
        }
    }

    /// The servers of the upstream that streams are passed to.
    fn replicas(&mut self, around: &Blocks<'_>) {
        let target = effective(around, "proxy_pass").and_then(|pass| pass.words.first());
        let name = target.map_or("", |target| target.trim_start_matches("http://"));
        let upstream = around.iter().find_map(|block| {
            block.iter().find(|directive| {
                directive.name == "upstream"
                    && directive.words.first().is_some_and(|own| own == name)
            })
        });
        for server in upstream.map_or(&[][..], |upstream| &upstream.block) {
            let remembers = server.words.iter().all(|word| word != "max_fails=0");
            if server.name == "server" && remembers {
                self.fault(
                    server,
                    "server",
                    "has max_fails=0: nginx trusts a replica again only when a request to it has \
                     ended, and streams do not end",
                );
            }
        }
    }

    /// A location that requests with a body pass.
    fn requests(&mut self, location: &Directive, publishes: bool, around: &Blocks<'_>) {
        if let Some(next) = effective(around, "proxy_next_upstream")
            && next.words.iter().any(|word| word == "non_idempotent")
        {
            self.fault(
                next,
                "proxy_next_upstream",
                "is without non_idempotent where POST is allowed: an event would be published twice",
            );
        }
        let found = effective(around, "proxy_read_timeout");
        if time(found, "60s").is_none_or(|waits| waits <= ANSWER_DEADLINE) {
            self.fault(
                found.unwrap_or(location),
                "proxy_read_timeout",
                format!(
                    "must be longer than {ANSWER_DEADLINE:?} where POST is allowed, in which the gateway \
                     answers"
                ),
            );
        }
        let found = effective(around, "client_max_body_size");
        let most = found.map_or(Some("1m"), |found| only_word(Some(found)));
        let most = most.and_then(size);
        let wanted = self.config.max_event_bytes as u64;
        // Zero is no bound.
        if publishes && most.is_none_or(|most| most != 0 && most < wanted) {
            self.fault(
                found.unwrap_or(location),
                "client_max_body_size",
                format!("must be at least FANFARE_MAX_EVENT_BYTES, {wanted} bytes"),
            );
        }
    }

    /// What nginx takes of a head, the gateway has to take too; and nginx the longest token.
    fn head(&mut self, location: &Directive, around: &Blocks<'_>) {
        let found = effective(around, "large_client_header_buffers");
        let large = match found.map(|found| found.words.as_slice()) {
            None => Some((4, 8 << 10)),
            Some([buffers, bytes]) => buffers.parse::<u64>().ok().zip(size(bytes)),
            Some(_) => None,
        };
        let first = effective(around, "client_header_buffer_size");
        let first = first.map_or(Some("1k"), |first| only_word(Some(first)));
        let most = MAX_HEAD_BYTES as u64 - ADDED_HEAD_BYTES;
        let fits = large
            .zip(first.and_then(size))
            .is_some_and(|((buffers, bytes), first)| {
                bytes.saturating_mul(buffers).saturating_add(first) <= most
            });
        if !fits {
            self.fault(
                found.unwrap_or(location),
                "large_client_header_buffers",
                format!(
                    "are, together with client_header_buffer_size, at most {most} bytes: the gateway \
                     takes heads of {MAX_HEAD_BYTES}"
                ),
            );
        }
        let least = MAX_TOKEN_BYTES as u64 + BESIDE_TOKEN_BYTES;
        if large.is_none_or(|(_, bytes)| bytes < least) {
            self.fault(
                found.unwrap_or(location),
                "large_client_header_buffers",
                format!(
                    "have at least {least} bytes each: a token has up to {MAX_TOKEN_BYTES}, and its \
                     header has to fit into one"
                ),
            );
        }
    }

    fn silence(&mut self, name: &str, default: &str, block: &Directive, around: &Blocks<'_>) {
        let least = self.config.heartbeat * HEARTBEATS;
        let found = effective(around, name);
        if time(found, default).is_none_or(|silence| silence < least) {
            self.fault(
                found.unwrap_or(block),
                name,
                format!("must be at least {least:?}, {HEARTBEATS} times FANFARE_HEARTBEAT"),
            );
        }
    }

    fn fault(&mut self, at: &Directive, name: &str, rule: impl Into<String>) {
        let fault = Fault {
            setting: format!("{}:{}: {name}", at.file.display(), at.line),
            rule: rule.into(),
        };
        // What stands outside is found from every location.
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

fn own<'a>(block: &'a [Directive], name: &str) -> Option<&'a Directive> {
    block.iter().find(|directive| directive.name == name)
}

/// The directive that holds in the innermost block: its own, or that of a block around it.
fn effective<'a>(around: &Blocks<'a>, name: &str) -> Option<&'a Directive> {
    around.iter().rev().find_map(|block| own(block, name))
}

/// What a header is set to. Headers of outer blocks count only where the inner one sets none.
fn header<'a>(around: &Blocks<'a>, name: &str) -> Option<&'a str> {
    let sets_headers = |block: &&&'a [Directive]| own(block, "proxy_set_header").is_some();
    let block = around.iter().rev().find(sets_headers)?;
    let set = block.iter().find(|directive| {
        directive.name == "proxy_set_header"
            && directive
                .words
                .first()
                .is_some_and(|header| header.eq_ignore_ascii_case(name))
    })?;
    set.words.get(1).map(String::as_str)
}

/// The word of a directive that has one. More are what a missing `;` makes of the next line.
fn only_word(found: Option<&Directive>) -> Option<&str> {
    match found?.words.as_slice() {
        [word] => Some(word),
        _ => None,
    }
}

/// A time as nginx writes it: `45s`, `1m30s`, `500ms`, `45`.
fn time(found: Option<&Directive>, default: &str) -> Option<Duration> {
    let text = found.map_or(Some(default), |found| only_word(Some(found)))?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).ok()
}

/// A size as nginx writes it: `16k`, `1m`, `1g`, `4096`.
fn size(word: &str) -> Option<u64> {
    let text = word.to_ascii_lowercase();
    let (digits, unit) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if text.ends_with('k') => (digits, 1 << 10),
        Some(digits) if text.ends_with('m') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text.as_str(), 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

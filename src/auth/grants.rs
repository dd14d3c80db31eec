//! What a token grants: the claim `fanfare`, and the rules that use the token's subject.

use std::fmt;

use serde_json::{Map, Value};

use crate::protocol::{ChannelName, ChannelPattern};

/// The claim that holds the grants.
pub(super) const CLAIM: &str = "fanfare";

/// What a token's bearer may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Channels that may be read.
    pub subscribe: Vec<ChannelPattern>,
    /// Channels that may be published to over HTTP.
    pub publish: Vec<ChannelPattern>,
    /// Channels that may be ended over HTTP.
    pub run: Vec<ChannelPattern>,
    /// Channels that are added to every stream unasked; they may be read.
    pub join: Vec<ChannelName>,
    /// Whether subjects and tokens may be revoked.
    pub admin: bool,
}

impl Grants {
    /// Reads the claim; without one nothing is granted. Members that are not known grant nothing
    /// (RFC 7519, section 4).
    ///
    /// # Errors
    /// When a member breaks its rule: half of a grant would be a riddle.
    pub fn read(claims: &Map<String, Value>) -> Result<Self, String> {
        let members = match claims.get(CLAIM) {
            None => return Ok(Self::default()),
            Some(Value::Object(members)) => members,
            Some(_) => return Err(format!("has a claim {CLAIM} that is no object")),
        };
        let admin = match members.get("admin") {
            None => false,
            Some(Value::Bool(admin)) => *admin,
            Some(_) => {
                return Err(format!(
                    "has a claim {CLAIM}.admin that is not true or false"
                ));
            }
        };
        Ok(Self {
            subscribe: list(members, "subscribe", |text| {
                ChannelPattern::parse(text).map_err(|rule| rule.to_string())
            })?,
            publish: list(members, "publish", |text| {
                ChannelPattern::parse(text).map_err(|rule| rule.to_string())
            })?,
            run: list(members, "run", |text| {
                ChannelPattern::parse(text).map_err(|rule| rule.to_string())
            })?,
            join: list(members, "join", |text| {
                ChannelName::parse(text).map_err(|rule| rule.to_string())
            })?,
            admin,
        })
    }

    /// Whether `channel` may be read.
    pub fn may_read(&self, channel: &ChannelName) -> bool {
        any_matches(&self.subscribe, channel) || self.join.contains(channel)
    }

    /// Whether `channel` may be ended.
    pub fn may_run(&self, channel: &ChannelName) -> bool {
        any_matches(&self.run, channel)
    }

    /// Whether `channel` may be published to.
    pub fn may_publish(&self, channel: &ChannelName) -> bool {
        any_matches(&self.publish, channel)
    }
}

/// Whether one of `patterns` names `channel`.
pub(crate) fn any_matches(patterns: &[ChannelPattern], channel: &ChannelName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(channel))
}

fn list<T>(
    members: &Map<String, Value>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let items = match members.get(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(format!("has a claim {CLAIM}.{name} that is no list")),
    };
    let parse = |item: &Value| {
        let text = item.as_str().ok_or("it holds what is no text")?;
        parse(text)
    };
    items
        .iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map_err(|rule| format!("has a claim {CLAIM}.{name} that breaks a rule: {rule}"))
}

/// A rule of the configuration for whoever has a token: a pattern in which `{sub}` stands for the
/// token's subject, as in `user.{sub}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenChannels {
    before: String,
    /// What follows `{sub}`; `None`: the rule does not use the subject.
    after: Option<String>,
}

const SUBJECT: &str = "{sub}";

impl TokenChannels {
    /// Checks a rule.
    ///
    /// # Errors
    /// When it is no pattern, or one under which a subject would reach channels of another.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_pattern = |text: &str| match ChannelPattern::parse(text) {
            Ok(_) => Ok(()),
            Err(rule) => Err(rule.to_string()),
        };
        let Some((before, after)) = text.split_once(SUBJECT) else {
            is_pattern(text)?;
            return Ok(Self {
                before: text.to_owned(),
                after: None,
            });
        };
        if after.starts_with('*') {
            return Err("{sub} is not followed by *: user.1* would be user.12 too".into());
        }
        is_pattern(&format!("{before}x{after}"))?;
        Ok(Self {
            before: before.to_owned(),
            after: Some(after.to_owned()),
        })
    }

    /// Whether it lets a token with this subject read `channel`.
    pub fn allows(&self, subject: Option<&str>, channel: &ChannelName) -> bool {
        let pattern = match (&self.after, subject) {
            (None, _) => self.before.clone(),
            (Some(_), None) => return false,
            (Some(after), Some(subject)) => {
                // With a * behind it, `user.a.*` would reach what belongs to the subject `a.b`.
                let parted_by = after.strip_suffix('*').and_then(|text| text.chars().next());
                let is_one_name = !subject.is_empty()
                    && !subject.contains('*')
                    && parted_by.is_none_or(|parting| !subject.contains(parting));
                if !is_one_name {
                    return false;
                }
                format!("{}{subject}{after}", self.before)
            }
        };
        // A subject that no channel's name can hold has no channel.
        ChannelPattern::parse(&pattern).is_ok_and(|pattern| pattern.matches(channel))
    }
}

impl fmt::Display for TokenChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        match &self.after {
            None => Ok(()),
            Some(after) => write!(f, "{SUBJECT}{after}"),
        }
    }
}

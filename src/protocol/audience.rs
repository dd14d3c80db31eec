//! Who may have an event: the member `to` of an event, held against the claims of a session.
//!
//! An event's audience is read once, however many sessions it is held against; a session's claims
//! are one text, so that ten thousands of sessions are cheap to keep and quick to search.

use std::fmt;

use memchr::memmem;
use serde_json::{Number, Value};

use super::json::{UniqueObject, is_repetition};

/// The longest `to`, in bytes: as much as a token in a header can claim.
pub const MAX_AUDIENCE_BYTES: usize = 16 * 1024;

/// Beyond it a JSON number that is no integer of 64 bits is not exact, so it equals nothing.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Why a text is no [`Audience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AudienceFault {
    /// It is something else, or nests deeper than 127 levels.
    #[error("must be a JSON object")]
    NotAnObject,
    /// An object in it names a member twice: readers could each take another for it.
    #[error("must not contain a member twice")]
    Repeated,
    /// It is longer than [`MAX_AUDIENCE_BYTES`].
    #[error("must have at most {MAX_AUDIENCE_BYTES} bytes")]
    TooLarge,
    /// One of its numbers cannot be compared.
    #[error("must not contain a number that needs more than 64 bits")]
    InexactNumber,
}

/// What a session's claims must hold for an event to reach it: every member, equal to the claim of
/// its name or contained in it, where that is an array.
#[derive(Clone, PartialEq, Eq)]
pub struct Audience {
    text: Box<str>,
    members: Box<[Member]>,
}

/// One member, in the spelling of [`Claims`].
#[derive(Clone, PartialEq, Eq)]
struct Member {
    /// How the claim of this name begins.
    name: Box<[u8]>,
    /// What follows the name where the claim is equal.
    equal: Box<[u8]>,
    /// How it stands in a claim that is an array and contains it.
    element: Box<[u8]>,
}

impl Audience {
    /// Reads `to`; the empty object restricts nothing and is `None`.
    ///
    /// # Errors
    /// When it is no JSON object, too large, names a member twice, or holds a number that cannot be
    /// compared.
    pub fn parse(to: &str) -> Result<Option<Self>, AudienceFault> {
        if to.len() > MAX_AUDIENCE_BYTES {
            return Err(AudienceFault::TooLarge);
        }
        let UniqueObject(members) = serde_json::from_str(to).map_err(|error| {
            if is_repetition(&error) {
                AudienceFault::Repeated
            } else {
                AudienceFault::NotAnObject
            }
        })?;
        if members.is_empty() {
            return Ok(None);
        }
        if !members.values().all(is_exact) {
            return Err(AudienceFault::InexactNumber);
        }
        let member = |(name, value): (&String, &Value)| {
            let mut member = Member {
                name: Box::default(),
                equal: Box::default(),
                element: Box::default(),
            };
            let mut out = vec![LINE];
            append_name(name, &mut out);
            member.name = std::mem::take(&mut out).into();
            append_claim(value, &mut out);
            out.push(LINE);
            member.equal = std::mem::take(&mut out).into();
            out.push(BETWEEN);
            append_value(value, &mut out);
            out.push(BETWEEN);
            member.element = out.into();
            member
        };
        Ok(Some(Self {
            text: to.into(),
            members: members.iter().map(member).collect(),
        }))
    }

    /// Whether a session with these claims belongs to it.
    pub fn admits(&self, claims: &Claims) -> bool {
        self.members
            .iter()
            .all(|member| claims.hold(member).unwrap_or_default())
    }

    /// The JSON object it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it takes in memory.
    pub fn cost_bytes(&self) -> usize {
        let texts = |member: &Member| {
            size_of::<Member>() + member.name.len() + member.equal.len() + member.element.len()
        };
        self.text.len() + self.members.iter().map(texts).sum::<usize>()
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Audience({})", self.text)
    }
}

/// Stands before and behind every claim. No JSON text holds it outside of white space.
const LINE: u8 = b'\n';

/// Stands before and behind every element of a claim that is an array. No JSON text holds it.
const BETWEEN: u8 = 0x1f;

/// The claims of a session.
///
/// One text, a line for each claim: its name and its value as compact JSON, in one spelling for
/// all that is equal. About as long as the claims are in their token.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Claims(Box<[u8]>);

impl Claims {
    /// Keeps these claims.
    pub fn new<'a>(claims: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Self {
        let mut text = vec![LINE];
        for (name, value) in claims {
            append_name(name, &mut text);
            append_claim(value, &mut text);
            text.push(LINE);
        }
        Self(text.into())
    }

    /// `None`: there is no such claim.
    fn hold(&self, member: &Member) -> Option<bool> {
        let at = memmem::find(&self.0, &member.name)?;
        let value = self.0.get(at + member.name.len()..)?;
        if value.starts_with(&member.equal) {
            return Some(true);
        }
        let length = memchr::memchr(LINE, value)?;
        let value = value.get(..length)?;
        Some(value.starts_with(b"[") && memmem::find(value, &member.element).is_some())
    }
}

/// Claims are about people: no log needs them.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claims({} bytes)", self.0.len())
    }
}

/// Whether every number in it can be told from all others.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let is_integer = number.is_i64() || number.is_u64();
            is_integer || number.as_f64().is_some_and(|number| number.abs() < EXACT)
        }
        Value::Array(elements) => elements.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

fn append_name(name: &str, out: &mut Vec<u8>) {
    append_string(name, out);
    out.push(b':');
}

/// A value as it stands behind its name: the elements of an array can be found by themselves.
fn append_claim(value: &Value, out: &mut Vec<u8>) {
    let Value::Array(elements) = value else {
        return append_value(value, out);
    };
    out.extend([b'[', BETWEEN]);
    for element in elements {
        append_value(element, out);
        out.push(BETWEEN);
    }
    out.push(b']');
}

/// Compact JSON. Equal values are written equally: the members of objects in order, and whole
/// numbers without a fraction.
fn append_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(value) => out.extend(value.to_string().as_bytes()),
        Value::Number(number) => append_number(number, out),
        Value::String(text) => append_string(text, out),
        Value::Array(elements) => {
            out.push(b'[');
            for (number, element) in elements.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                append_value(element, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (number, (name, value)) in members.into_iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                append_name(name, out);
                append_value(value, out);
            }
            out.push(b'}');
        }
    }
}

fn append_number(number: &Number, out: &mut Vec<u8>) {
    let text = match number.as_f64().filter(|_| number.is_f64()) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a whole number of less than 54 bits"
        )]
        Some(float) if float.fract() == 0.0 && float.abs() < EXACT => (float as i64).to_string(),
        Some(float) => float.to_string(),
        None => number.to_string(),
    };
    out.extend(text.as_bytes());
}

/// JSON escapes control characters, so neither [`LINE`] nor [`BETWEEN`] is in it.
fn append_string(text: &str, out: &mut Vec<u8>) {
    // Writing a string to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn claims(value: &Value) -> Claims {
        Claims::new(value.as_object().unwrap())
    }

    fn audience(to: &str) -> Audience {
        Audience::parse(to).unwrap().unwrap()
    }

    #[test]
    fn every_member_is_held_or_the_session_is_not_meant() {
        let session = claims(&json!({
            "sub": "alice", "role": "admin", "groups": ["a", "b", 7, ["x"], null, "c\u{1f}d\n"],
            "org": {"id": 5, "name": "o"}, "level": 3, "active": true, "none": null, "empty": [],
        }));
        for to in [
            r#"{"role":"admin"}"#,
            r#"{"role":"admin","sub":"alice"}"#,
            r#"{"groups":"a"}"#,
            r#"{"groups":"b","role":"admin"}"#,
            r#"{"groups":7}"#,
            r#"{"groups":7.0}"#,
            r#"{"groups":["x"]}"#,
            r#"{"groups":null}"#,
            r#"{"groups":"c\u001fd\n"}"#,
            r#"{"groups":["a","b",7,["x"],null,"c\u001Fd\u000a"]}"#,
            r#"{"org":{"name":"o","id":5}}"#,
            r#"{"org":{"id":5.0,"name":"o"}}"#,
            r#"{"level":3}"#,
            r#"{"level":30e-1}"#,
            r#"{"active":true}"#,
            r#"{"none":null}"#,
            r#"{"empty":[]}"#,
            r#" { "\u0072ole" : "admin" } "#,
        ] {
            assert!(audience(to).admits(&session), "{to}");
        }
        for to in [
            r#"{"role":"user"}"#,
            r#"{"role":"admi"}"#,
            r#"{"role":"admin "}"#,
            r#"{"role":["admin"]}"#,
            r#"{"ole":"admin"}"#,
            r#"{"Role":"admin"}"#,
            r#"{"role":"admin","other":1}"#,
            r#"{"other":null}"#,
            r#"{"groups":"c"}"#,
            r#"{"groups":"c\u001fd"}"#,
            r#"{"groups":"7"}"#,
            r#"{"groups":"x"}"#,
            r#"{"groups":["a"]}"#,
            r#"{"groups":["b","a",7,["x"],null,"c\u001fd\n"]}"#,
            r#"{"org":{"id":5}}"#,
            r#"{"org":"o"}"#,
            r#"{"level":"3"}"#,
            r#"{"active":"true"}"#,
            r#"{"none":false}"#,
            r#"{"empty":null}"#,
            r#"{"empty":""}"#,
            r#"{"sub":"alice\",\"role\":\"admin"}"#,
        ] {
            assert!(!audience(to).admits(&session), "{to}");
            assert!(!audience(to).admits(&Claims::default()), "{to}");
        }
    }

    /// What a claim says must not pass for another claim.
    #[test]
    fn a_claim_cannot_be_forged_inside_another() {
        let session = claims(&json!({
            "name": "x\n\"role\":\"admin\"\n", "list": ["\u{1f}\"b\"\u{1f}", "[\u{1f}1\u{1f}]"],
            "object": {"role": "admin"}, "\n\"role\":\"admin\"": 1,
        }));
        for to in [r#"{"role":"admin"}"#, r#"{"list":"b"}"#, r#"{"list":1}"#] {
            assert!(!audience(to).admits(&session), "{to}");
        }
    }

    #[test]
    fn bounds() {
        let long = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(Audience::parse(&long(MAX_AUDIENCE_BYTES)).is_ok());
        assert_eq!(
            Audience::parse(&long(MAX_AUDIENCE_BYTES + 1)),
            Err(AudienceFault::TooLarge)
        );
        assert_eq!(Audience::parse(" { } "), Ok(None));
        let deep = |levels: usize| {
            let inside = levels - 1;
            format!("{{\"a\":{}1{}}}", "[".repeat(inside), "]".repeat(inside))
        };
        assert!(Audience::parse(&deep(127)).is_ok());
        for text in ["", "[]", "1", "{", "{}{}", "{\"a\":NaN}", &deep(128)] {
            let fault = Audience::parse(text);
            assert_eq!(fault, Err(AudienceFault::NotAnObject), "{text}");
        }
        for text in [
            r#"{"sub":"a","sub":"b"}"#,
            r#"{"sub":"a","\u0073ub":"a"}"#,
            r#"{"org":{"id":1,"id":2}}"#,
            r#"{"org":[{"id":1,"id":2}]}"#,
        ] {
            let fault = Audience::parse(text);
            assert_eq!(fault, Err(AudienceFault::Repeated), "{text}");
        }
    }

    /// Otherwise two large ids that differ in their last digits would be the same.
    #[test]
    fn numbers_are_compared_exactly_or_not_at_all() {
        let session = claims(&json!({"id": u64::MAX, "low": i64::MIN, "half": 0.5}));
        for to in [
            r#"{"id":18446744073709551615}"#,
            r#"{"low":-9223372036854775808}"#,
            r#"{"half":5e-1}"#,
        ] {
            assert!(audience(to).admits(&session), "{to}");
        }
        assert!(!audience(r#"{"id":18446744073709551614}"#).admits(&session));
        for to in [
            r#"{"id":18446744073709551616}"#,
            r#"{"id":[{"n":1e300}]}"#,
            r#"{"id":9007199254740993.0}"#,
        ] {
            let fault = Audience::parse(to);
            assert_eq!(fault, Err(AudienceFault::InexactNumber), "{to}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2..3i64).prop_map(Value::from),
            (-4..4i32).prop_map(|half| Value::from(f64::from(half) / 2.0)),
            "[ab\"\\\\\n\u{1f}\\[\\]:,é]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inside| {
            prop_oneof![
                vec(inside.clone(), 0..3).prop_map(Value::from),
                btree_map("[ab]", inside, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Equality as JSON has it: one and one point nought are the same number.
    fn equal(one: &Value, other: &Value) -> bool {
        match (one, other) {
            (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
            (Value::Array(one), Value::Array(other)) => {
                one.len() == other.len()
                    && one.iter().zip(other).all(|(one, other)| equal(one, other))
            }
            (Value::Object(one), Value::Object(other)) => {
                let held = |(name, value): (&String, &Value)| {
                    other.get(name).is_some_and(|other| equal(value, other))
                };
                one.len() == other.len() && one.iter().all(held)
            }
            (one, other) => one == other,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn it_is_what_the_rule_says(
            session in btree_map("[ab\n\"]{1,2}", value(), 0..4),
            to in btree_map("[ab\n\"]{1,2}", value(), 1..3),
        ) {
            let session: Map<_, _> = session.into_iter().collect();
            let to: Map<_, _> = to.into_iter().collect();
            let expected = to.iter().all(|(name, wanted)| match session.get(name) {
                None => false,
                Some(Value::Array(elements))
                    if elements.iter().any(|element| equal(element, wanted)) => true,
                Some(claim) => equal(claim, wanted),
            });
            let read = audience(&Value::Object(to).to_string());
            prop_assert_eq!(read.admits(&Claims::new(&session)), expected);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Audience::parse(&text);
            let _ = Audience::parse(&format!("{{\"a\":{text}}}"));
        }
    }
}

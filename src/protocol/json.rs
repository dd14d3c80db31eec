//! JSON that means the same to whoever reads it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What an object says that names a member twice, at any depth: RFC 8259, section 4, leaves open
/// which of the two counts, so a signer, a publisher and the gateway could each read another.
const REPEATED: &str = "a member is given twice";

/// Whether a text was not read because an object in it names a member twice.
pub fn is_repetition(error: &serde_json::Error) -> bool {
    error.to_string().starts_with(REPEATED)
}

/// A JSON object in which every member stands once, those of the objects inside it included.
#[derive(Clone, Debug, PartialEq)]
pub struct UniqueObject(pub Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor).map(Self)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom(REPEATED));
            }
        }
        Ok(object)
    }
}

/// A value whose objects are all [`UniqueObject`]s.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is out of range"));
        number.map(Value::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(element)) = elements.next_element()? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Value, A::Error> {
        ObjectVisitor.visit_map(members).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> serde_json::Result<UniqueObject> {
        serde_json::from_str(text)
    }

    #[test]
    fn members_that_stand_twice_are_refused_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":3}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[1,{"b":[{"c":1,"c":2}]}]}"#,
        ] {
            let fault = read(text).unwrap_err();
            assert!(is_repetition(&fault), "{text}: {fault}");
        }
        assert!(read(r#"{"a":{"a":{"a":1}},"A":[{"a":1},{"a":1}]}"#).is_ok());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["[]", "1", "null", "\"{}\"", "", "{", "{}{}", r#"{"a":NaN}"#] {
            assert!(!is_repetition(&read(text).unwrap_err()), "{text}");
        }
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(128), "]".repeat(128));
        assert!(read(&deep).is_err());
    }

    proptest! {
        #[test]
        fn everything_else_is_read_as_ever(
            text in r#"\{("[ab]":(\{"c":[01]\}|\[1,"x",null\]|-?[0-9]\.5e1|18446744073709551615|true),){0,3}"z":1\}"#,
        ) {
            let expected: Map<String, Value> = serde_json::from_str(&text).unwrap();
            match read(&text) {
                Ok(UniqueObject(read)) => prop_assert_eq!(read, expected),
                Err(fault) => prop_assert!(is_repetition(&fault), "{}: {}", text, fault),
            }
        }
    }
}

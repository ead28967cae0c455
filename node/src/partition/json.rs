//! JSON values with one form of bytes: object keys sorted, whatever features other crates turn on.
//!
//! `serde_json::Value` would change with its features (`preserve_order`), and reads some of its own
//! private keys as numbers or raw JSON.
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    pub fn parse(data: &[u8]) -> Result<Json, serde_json::Error> {
        serde_json::from_slice(data)
    }

    /// Compact, keys in byte order.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Bytes that `to_bytes` would give.
    pub fn bytes(&self) -> Result<usize, serde_json::Error> {
        struct Count(usize);
        impl std::io::Write for Count {
            fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
                self.0 += data.len();
                Ok(data.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut count = Count(0);
        serde_json::to_writer(&mut count, self)?;
        Ok(count.0)
    }

    /// RFC 7386: what `self` becomes.
    pub fn merge(&mut self, patch: Json) {
        let Json::Object(patch) = patch else {
            *self = patch;
            return;
        };
        if !matches!(self, Json::Object(_)) {
            *self = Json::Object(BTreeMap::new());
        }
        let Json::Object(target) = self else { return };
        for (key, value) in patch {
            match value {
                Json::Null => {
                    target.remove(&key);
                }
                value @ Json::Object(_) => target.entry(key).or_insert(Json::Null).merge(value),
                value => {
                    target.insert(key, value);
                }
            }
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => s.serialize_unit(),
            Json::Bool(v) => s.serialize_bool(*v),
            Json::Unsigned(v) => s.serialize_u64(*v),
            Json::Negative(v) => s.serialize_i64(*v),
            Json::Float(v) => s.serialize_f64(*v),
            Json::String(v) => s.serialize_str(v),
            Json::Array(v) => s.collect_seq(v),
            Json::Object(v) => s.collect_map(v),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Json, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E: Error>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E: Error>(self, v: bool) -> Result<Json, E> {
                Ok(Json::Bool(v))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Json, E> {
                Ok(Json::Unsigned(v))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Json, E> {
                Ok(u64::try_from(v).map_or(Json::Negative(v), Json::Unsigned))
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Json, E> {
                Ok(Json::Float(v))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Json, E> {
                Ok(Json::String(v.to_owned()))
            }
            fn visit_string<E: Error>(self, v: String) -> Result<Json, E> {
                Ok(Json::String(v))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut a: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = a.next_element()? {
                    items.push(item);
                }
                Ok(Json::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut a: A) -> Result<Json, A::Error> {
                let mut items = BTreeMap::new();
                // A key twice: the last one counts.
                while let Some((key, value)) = a.next_entry()? {
                    items.insert(key, value);
                }
                Ok(Json::Object(items))
            }
        }
        d.deserialize_any(Any)
    }
}

#[cfg(test)]
pub(crate) mod tests;

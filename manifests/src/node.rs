//! A document as it stands in the file: a tree that knows its lines.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Nobody reads it, and in what a cluster prints it is half of the text.
const BOOKKEEPING: &str = "managedFields";

/// A value and its line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// From 1; 0 when it is not known (JSON).
    pub(crate) line: u64,
    /// What is there.
    pub(crate) data: Data,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

struct DataVisitor;

// === impl Node ===

impl Node {
    /// A field of an object.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        match &self.data {
            Data::Object(fields) => {
                fields.iter().find(|(key, _)| key == name).map(|(_, node)| node)
            }
            _ => None,
        }
    }

    /// The text of a field of an object.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name).map(|node| &node.data) {
            Some(Data::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The line of the field at `path` (`spec.ingress[0].ports`), or of the nearest ancestor that exists.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        let path = path.trim_start_matches('.');
        if path.is_empty() {
            return self.line;
        }
        let next = match &self.data {
            Data::List(items) => {
                index(path).and_then(|(index, rest)| items.get(index).map(|item| (item, rest)))
            }
            // The longest, because keys of labels have dots of their own.
            Data::Object(fields) => fields
                .iter()
                .filter_map(|(key, node)| rest_of(path, key).map(|rest| (node, rest)))
                .min_by_key(|(_, rest)| rest.len()),
            _ => None,
        };
        next.map_or(self.line, |(node, rest)| node.line_of(rest))
    }

    /// The items of a list object.
    pub(crate) fn into_items(self) -> Vec<Self> {
        let Data::Object(fields) = self.data else { return Vec::new() };
        match fields.into_iter().find(|(key, _)| key == "items").map(|(_, node)| node.data) {
            Some(Data::List(items)) => items,
            _ => Vec::new(),
        }
    }

    /// Adds a field to an object that lacks it.
    pub(crate) fn default_text(&mut self, name: &str, text: &str) {
        let line = self.line;
        if self.get(name).is_none()
            && let Data::Object(fields) = &mut self.data
        {
            fields.push((name.to_owned(), Self { line, data: Data::Text(text.to_owned()) }));
        }
    }

    /// Without the lines.
    pub(crate) fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(value) => Value::Bool(*value),
            Data::Number(value) => Value::Number(value.clone()),
            Data::Text(value) => Value::String(value.clone()),
            Data::List(items) => items.iter().map(Self::to_value).collect(),
            Data::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, node)| (key.clone(), node.to_value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// `[3].rest` → 3 and `.rest`.
fn index(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// What of `path` comes after `key`, when it begins with it.
fn rest_of<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    path.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(value) => Data::Bool(value),
            Value::Number(value) => Data::Number(value),
            Value::String(value) => Data::Text(value),
            Value::Array(items) => Data::List(items.into_iter().map(Self::from).collect()),
            Value::Object(fields) => Data::Object(
                fields
                    .into_iter()
                    .filter(|(key, _)| key != BOOKKEEPING)
                    .map(|(key, value)| (key, Self::from(value)))
                    .collect(),
            ),
        };
        Self { line: 0, data }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Data>::deserialize(deserializer)?;
        Ok(Self { line: referenced.line(), data: value })
    }
}

// === impl Data ===

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        Ok(Data::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Data, E> {
        Number::from_f64(value)
            .map(Data::Number)
            .ok_or_else(|| E::custom(format_args!("{value} is no number that JSON knows")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Data, E> {
        Ok(Data::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Data, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Data::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Data, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == BOOKKEEPING {
                entries.next_value::<IgnoredAny>()?;
            } else {
                fields.push((key, entries.next_value()?));
            }
        }
        Ok(Data::Object(fields))
    }
}

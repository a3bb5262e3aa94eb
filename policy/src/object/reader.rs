//! Reading a value with the path of what is read, so that a diagnostic can name it.

use std::cell::RefCell;

use serde_json::Value;

use super::{Diagnostic, Key, Labels};

/// A field that cannot be read.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) field: String,
    pub(super) message: String,
}

/// Result of reading a field.
pub(super) type Read<T> = Result<T, Invalid>;

/// Collects an object's diagnostics.
pub(super) struct Sink {
    key: Key,
    found: RefCell<Vec<Diagnostic>>,
}

/// A value and where it is. An absent field and `null` read alike, as the API server has it; an item of a list and a
/// value of a map of texts that is `null` is none, and invalid where something opens without it.
pub(super) struct Reader<'a> {
    value: &'a Value,
    path: String,
    sink: &'a Sink,
}

impl Sink {
    pub(super) fn new(key: Key) -> Self {
        Self { key, found: RefCell::default() }
    }

    pub(super) fn diagnostic(&self, field: String, message: String) -> Diagnostic {
        Diagnostic { key: self.key.clone(), field, message }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn root(value: &'a Value, sink: &'a Sink) -> Self {
        Self { value, path: String::new(), sink }
    }

    pub(super) fn key(&self) -> &Key {
        &self.sink.key
    }

    pub(super) fn invalid(&self, message: impl Into<String>) -> Invalid {
        Invalid { field: self.path.clone(), message: message.into() }
    }

    /// Notes what is wrong; reading goes on.
    pub(super) fn note(&self, invalid: Invalid) {
        self.sink.found.borrow_mut().push(self.sink.diagnostic(invalid.field, invalid.message));
    }

    /// The value, or `None` and a note.
    pub(super) fn noted<T>(&self, read: Read<T>) -> Option<T> {
        read.map_err(|invalid| self.note(invalid)).ok()
    }

    /// The value, or none and a note.
    pub(super) fn sound<T: Default>(&self, read: Read<T>) -> T {
        self.noted(read).unwrap_or_default()
    }

    /// What was read, unless something was noted: then all of that.
    pub(super) fn unless_noted<T>(&self, read: T) -> Result<T, Vec<Diagnostic>> {
        let noted = self.taken();
        if noted.is_empty() { Ok(read) } else { Err(noted) }
    }

    /// Everything noted so far.
    pub(super) fn taken(&self) -> Vec<Diagnostic> {
        self.sink.found.take()
    }

    pub(super) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    /// Whether there is a field of that name, be it `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value.get(name).is_some()
    }

    /// That it is not `null`: in YAML a dash or a key with nothing after it.
    pub(super) fn present(&self) -> Read<()> {
        if self.is_absent() { Err(self.invalid("is null")) } else { Ok(()) }
    }

    /// The field of that name; absent when there is none or this is no map.
    pub(super) fn get(&self, name: &str) -> Self {
        let path =
            if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { value: self.value.get(name).unwrap_or(&Value::Null), path, sink: self.sink }
    }

    /// Names of the fields that are set.
    pub(super) fn fields(&self) -> Read<Vec<&'a str>> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Object(map) => {
                Ok(map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect())
            }
            _ => Err(self.invalid(format!("{} is no map", self.shown()))),
        }
    }

    /// That this is a map with no other fields than these.
    pub(super) fn only(&self, known: &[&str]) -> Read<()> {
        match self.fields()?.iter().find(|name| !known.contains(name)) {
            Some(name) => Err(self.get(name).invalid("is not a known field")),
            None => Ok(()),
        }
    }

    /// The items; `None` when absent.
    pub(super) fn items(&self) -> Read<Option<Vec<Self>>> {
        match self.value {
            Value::Null => Ok(None),
            Value::Array(items) => Ok(Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, value)| Self {
                        value,
                        path: format!("{}[{index}]", self.path),
                        sink: self.sink,
                    })
                    .collect(),
            )),
            _ => Err(self.invalid(format!("{} is no list", self.shown()))),
        }
    }

    pub(super) fn list(&self) -> Read<Vec<Self>> {
        Ok(self.items()?.unwrap_or_default())
    }

    pub(super) fn text(&self) -> Read<Option<&'a str>> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.invalid(format!("{} is no text", self.shown()))),
        }
    }

    pub(super) fn string(&self) -> Read<Option<String>> {
        Ok(self.text()?.map(str::to_owned))
    }

    pub(super) fn flag(&self) -> Read<Option<bool>> {
        match self.value {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            _ => Err(self.invalid(format!("{} is neither true nor false", self.shown()))),
        }
    }

    /// A whole number within the bounds, included.
    pub(super) fn number(&self, first: u32, last: u32) -> Read<Option<u32>> {
        if self.is_absent() {
            return Ok(None);
        }
        self.value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (first..=last).contains(number))
            .map(Some)
            .ok_or_else(|| {
                self.invalid(format!("{} is not a number from {first} to {last}", self.shown()))
            })
    }

    /// A port, 1 to 65535.
    pub(super) fn port(&self) -> Read<Option<u16>> {
        let port = self.number(1, u32::from(u16::MAX))?;
        Ok(port.map(|port| u16::try_from(port).expect("the bounds are a port's")))
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_number()
    }

    /// Text parsed as `T`; `expected` completes "is not …".
    pub(super) fn parsed<T: std::str::FromStr>(&self, expected: &str) -> Read<Option<T>> {
        let Some(text) = self.text()? else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| self.invalid(format!("{} is not {expected}", self.shown())))
    }

    /// The values of a map of texts, also those that are `null`.
    fn values(&self) -> Read<Vec<(&'a str, Self)>> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Object(map) => {
                Ok(map.keys().map(|name| (name.as_str(), self.get(name))).collect())
            }
            _ => Err(self.invalid(format!("{} is no map", self.shown()))),
        }
    }

    /// Text that has to be there; it may be empty.
    pub(super) fn given_text(&self) -> Read<&'a str> {
        self.text()?.ok_or_else(|| self.invalid("is null; write \"\" for an empty value"))
    }

    pub(super) fn labels(&self) -> Read<Labels> {
        let values = self.values()?.into_iter();
        values.map(|(name, at)| Ok((name.to_owned(), at.given_text()?.to_owned()))).collect()
    }

    /// The labels that can be read; a note for each that cannot.
    pub(super) fn sound_labels(&self) -> Labels {
        let values = self.noted(self.values()).unwrap_or_default().into_iter();
        let sound = values.filter_map(|(name, at)| {
            let value = self.noted(at.given_text())?;
            Some((name.to_owned(), value.to_owned()))
        });
        sound.collect()
    }

    /// The items; none and a note when it is no list.
    pub(super) fn sound_list(&self) -> Vec<Self> {
        self.noted(self.list()).unwrap_or_default()
    }

    /// The value as it stands in a message.
    pub(super) fn shown(&self) -> String {
        let mut text = self.value.to_string();
        if text.len() > 64 {
            let end = (0..=64).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        text
    }
}

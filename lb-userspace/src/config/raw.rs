//! The file as written: tables of keys and values, each with its position. A [`Table`] is asked for
//! every key it may have; a key that was never asked for is unknown. Nothing stops at the first
//! mistake: a wrong value is noted and left out.
//!
//! Serde is not used for reading because it stops at the first error and loses positions; the types
//! are in the model.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Findings, Source, SourcePos};
use crate::words::did_you_mean;

/// A value and its position.
#[derive(Clone, Copy)]
pub struct At<'a, T> {
    pub value: T,
    pub pos: SourcePos<'a>,
}

/// The values of a list, without their positions.
pub fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

/// A value that has not been interpreted yet.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub pos: SourcePos<'a>,
    pub toml: &'a DeValue<'a>,
}

/// One table of a file.
pub struct Table<'a> {
    /// Where it starts.
    pub pos: SourcePos<'a>,
    /// Its name in messages, as in the file: `[[service]]`.
    title: String,
    entries: &'a DeTable<'a>,
    known: Vec<&'static str>,
    pub findings: &'a Findings,
}

impl<'a> Table<'a> {
    /// The top-level table of a file.
    pub fn root(source: &'a Source, entries: &'a DeTable<'a>, findings: &'a Findings) -> Table<'a> {
        Table { pos: source.at(0), title: "the top of the file".into(), entries, known: Vec::new(), findings }
    }

    fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        Some(Value { pos: self.pos.source.at(value.span().start), toml: value.get_ref() })
    }

    fn understood<T>(&self, key: &str, value: Value<'a>, result: Result<T, String>) -> Option<At<'a, T>> {
        match result {
            Ok(understood) => Some(At { value: understood, pos: value.pos }),
            Err(what) => {
                self.findings.error(value.pos.problem(format!("{key}: {what}")));
                None
            }
        }
    }

    /// An optional key; `None` also if its value is wrong.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(Value<'a>) -> Result<T, String>,
    ) -> Option<At<'a, T>> {
        let value = self.value(key)?;
        self.understood(key, value, read(value))
    }

    /// A key with a default, which also replaces a wrong value.
    pub fn or<T>(&mut self, key: &'static str, default: T, read: impl Fn(Value<'a>) -> Result<T, String>) -> T {
        self.optional(key, read).map_or(default, |at| at.value)
    }

    /// A key that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(Value<'a>) -> Result<T, String>,
    ) -> Option<At<'a, T>> {
        if !self.entries.contains_key(key) {
            self.known.push(key);
            self.findings.error(self.pos.problem(format!("{} lacks `{key}`: {key} = {example}", self.title)));
            return None;
        }
        self.optional(key, read)
    }

    /// A key with one value or a list of values; `None` if it is left out.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(Value<'a>) -> Result<T, String>,
    ) -> Option<Vec<At<'a, T>>> {
        let value = self.value(key)?;
        let DeValue::Array(items) = value.toml else {
            return Some(self.understood(key, value, read(value)).into_iter().collect());
        };
        let source = self.pos.source;
        let values = items.iter().map(|item| Value { pos: source.at(item.span().start), toml: item.get_ref() });
        Some(values.filter_map(|item| self.understood(key, item, read(item))).collect())
    }

    /// Whether the key is there with an empty list.
    pub fn is_empty_list(&self, key: &str) -> bool {
        matches!(self.entries.get(key).map(Spanned::get_ref), Some(DeValue::Array(items)) if items.is_empty())
    }

    /// A key that must be there, with one value or a list of at least one. Wrong values are left
    /// out.
    pub fn required_list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl Fn(Value<'a>) -> Result<T, String>,
    ) -> Vec<At<'a, T>> {
        if self.entries.contains_key(key) && !self.is_empty_list(key) {
            return self.list(key, read).unwrap_or_default();
        }
        self.known.push(key);
        self.findings.error(self.pos.problem(format!("{} lacks `{key}`: {key} = [{example}]", self.title)));
        Vec::new()
    }

    /// The table `[key]`, if there is one.
    pub fn table(&mut self, key: &'static str, title: &str) -> Option<Table<'a>> {
        let value = self.value(key)?;
        self.as_table(key, title, value)
    }

    /// The tables `[[key]]`.
    pub fn tables(&mut self, key: &'static str, title: &str) -> Vec<Table<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.toml else {
            self.findings.error(value.pos.problem(format!("{key}: write {title}; there may be several")));
            return Vec::new();
        };
        let source = self.pos.source;
        let values = items.iter().map(|item| Value { pos: source.at(item.span().start), toml: item.get_ref() });
        values.filter_map(|item| self.as_table(key, title, item)).collect()
    }

    fn as_table(&self, key: &str, title: &str, value: Value<'a>) -> Option<Table<'a>> {
        let DeValue::Table(entries) = value.toml else {
            let what = format!("{key}: found {}, expected a table {title}", describe(value.toml));
            self.findings.error(value.pos.problem(what));
            return None;
        };
        Some(Table { pos: value.pos, title: title.into(), entries, known: Vec::new(), findings: self.findings })
    }

    /// Reports every key that was never asked for.
    pub fn finish(self) {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let pos = self.pos.source.at(key.span().start);
                let what = match did_you_mean(name, self.known.iter().copied()) {
                    Some(near) => format!("unknown key `{name}` in {}: did you mean `{near}`?", self.title),
                    None => format!("unknown key `{name}` in {}: known keys are {}", self.title, self.known.join(", ")),
                };
                self.findings.error(pos.problem(what));
            }
        }
    }
}

/// A value in words, for "found ..., expected a string".
pub fn describe(value: &DeValue) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

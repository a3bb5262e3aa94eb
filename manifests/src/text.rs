//! Text → documents. YAML, of which JSON is a part; what only JSON allows (documents without a separator, tabs) too.
//!
//! Scalars are read as YAML 1.2 does: `y`, `no` and `on` are text (a namespace may be called `y`), as is `007`. A key
//! that is there twice is an error, because which of the two would be meant?

use serde_json::Value;
use serde_saphyr::options::NonFiniteFloatPolicy;

use crate::node::Node;

/// Bytes of one file: about 20,000 pods as a cluster prints them.
pub(crate) const MAX_BYTES: u64 = 256 << 20;
/// Documents of one file.
const MAX_DOCUMENTS: usize = 1 << 17;
/// Nodes of one file, so that what it becomes in memory is bounded.
const MAX_NODES: usize = 1 << 25;
/// Nodes that aliases may repeat: nobody needs more, and "a billion laughs" does.
const MAX_REPEATED: usize = 1 << 17;
/// Nesting.
const MAX_DEPTH: usize = 64;

/// What is wrong with a text.
#[derive(Debug)]
pub(crate) struct Flaw {
    /// From 1, when it is known.
    pub(crate) line: Option<u64>,
    /// In the parser's words.
    pub(crate) message: String,
}

/// The documents of a text that are not empty.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, Flaw> {
    let text = text.trim_start_matches('\u{feff}');
    match serde_saphyr::from_multiple_with_options::<Node>(text, options()) {
        Ok(documents) => Ok(documents),
        Err(error) => match json(text) {
            Some(Ok(documents)) => Ok(documents),
            Some(Err(flaw)) if !text.contains("\n---") => Err(flaw),
            _ => Err(Flaw::from(&error)),
        },
    }
}

/// As JSON, when that is what it begins like.
fn json(text: &str) -> Option<Result<Vec<Node>, Flaw>> {
    text.trim_start().starts_with('{').then(|| {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        documents
            .take(MAX_DOCUMENTS)
            .filter(|value| !matches!(value, Ok(Value::Null)))
            .map(|value| value.map(Node::from).map_err(|error| Flaw::from(&error)))
            .collect()
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED },
        budget: serde_saphyr::budget! {
            max_events: 2 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_documents: MAX_DOCUMENTS,
            max_depth: MAX_DEPTH,
            max_recorded_anchor_events: MAX_REPEATED,
            max_total_scalar_bytes: usize::try_from(MAX_BYTES).unwrap_or(usize::MAX),
        },
    }
}

// === impl Flaw ===

impl From<&serde_saphyr::Error> for Flaw {
    fn from(error: &serde_saphyr::Error) -> Self {
        let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
        Self { line, message: error.without_snippet().to_string() }
    }
}

impl From<&serde_json::Error> for Flaw {
    fn from(error: &serde_json::Error) -> Self {
        let line = u64::try_from(error.line()).ok().filter(|line| *line > 0);
        Self { line, message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<Value> {
        documents(text)
            .unwrap_or_else(|flaw| panic!("{flaw:?}"))
            .iter()
            .map(Node::to_value)
            .collect()
    }

    #[test]
    fn a_scalar_is_what_the_author_meant() {
        for (text, expect) in [
            ("a: y", r#"[{"a":"y"}]"#),
            ("a: on", r#"[{"a":"on"}]"#),
            ("a: true", r#"[{"a":true}]"#),
            ("a: 007", r#"[{"a":"007"}]"#),
            ("a: 80", r#"[{"a":80}]"#),
            ("a: -1", r#"[{"a":-1}]"#),
            ("a: '80'", r#"[{"a":"80"}]"#),
            ("a: 1_000", r#"[{"a":"1_000"}]"#),
            ("a: ~", r#"[{"a":null}]"#),
            ("a:", r#"[{"a":null}]"#),
            ("a: {}", r#"[{"a":{}}]"#),
            ("a: 10.0.0.0/8", r#"[{"a":"10.0.0.0/8"}]"#),
            ("a: fd00::1", r#"[{"a":"fd00::1"}]"#),
            ("80: x", r#"[{"80":"x"}]"#),
            ("a: {managedFields: [1], b: 2}", r#"[{"a":{"b":2}}]"#),
            ("x: &x {b: 1}\na: *x", r#"[{"x":{"b":1},"a":{"b":1}}]"#),
            ("x: &x {b: 1}\na: {<<: *x, c: 2}", r#"[{"x":{"b":1},"a":{"b":1,"c":2}}]"#),
            ("---\n# nothing\n---\na: 1\n---\n", r#"[{"a":1}]"#),
            ("", "[]"),
            ("{\"a\": 1}\n{\"b\": \"\\ud83d\\ude00\"}", r#"[{"a":1},{"b":"😀"}]"#),
            ("{\n\t\"a\": [\n\t\t1\n\t]\n}\n", r#"[{"a":[1]}]"#),
            ("\u{feff}a: 1\r\nb: 2\r\n", r#"[{"a":1,"b":2}]"#),
        ] {
            let expect: Value = serde_json::from_str(expect).unwrap();
            assert_eq!(Value::from(values(text)), expect, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_names_its_line() {
        for (text, line) in [
            ("a: 1\nb: [", 2),
            ("a: 1\na: 2", 2),
            ("a: b: c", 1),
            ("a: *nowhere", 1),
            ("{\"a\": 1,\n \"b\": }\"", 2),
        ] {
            let flaw = documents(text).unwrap_err();
            assert_eq!(flaw.line, Some(line), "{text}: {flaw:?}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 8].join(", ");
            laughs += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        let deep = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
        let storm = "---\na: 1\n".repeat(MAX_DOCUMENTS + 1);
        for text in [laughs, deep, storm] {
            documents(&text).unwrap_err();
        }
    }

    #[test]
    fn a_path_leads_to_its_line() {
        let text = "kind: X\nmetadata:\n  labels:\n    app: a\n    app.io/b: 1\nspec:\n  ports:\n  - port: 1\n  - port: x\n";
        let node = &documents(text).unwrap()[0];
        for (path, line) in [
            ("spec.ports[1].port", 9),
            ("spec.ports[1].protocol", 9),
            ("spec.ports[7]", 8),
            ("metadata.labels.app", 4),
            ("metadata.labels.app.io/b", 5),
            ("metadata.name", 3),
            ("", 1),
        ] {
            assert_eq!(node.line_of(path), line, "{path}");
        }
    }
}

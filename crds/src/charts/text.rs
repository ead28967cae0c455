//! `values.yaml` and the tables of `docs/values.md`, from the schema.
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Chart, schema::is_foreign};
use crate::{
    generate::COMMAND,
    reference::{allowed, kind, text},
};

const WIDTH: usize = 100;
/// What comes first in whatever has it.
const FIRST: &[&str] = &["enabled", "create", "registry", "repository", "tag", "digest"];

fn ordered<'a>(properties: &'a Map<String, Value>, order: &[&str]) -> Vec<(&'a String, &'a Value)> {
    let mut fields: Vec<_> = properties.iter().collect();
    let place = |name: &str| order.iter().position(|o| *o == name).unwrap_or(order.len());
    // The map's own order is by name, and the sort keeps it.
    fields.sort_by_key(|(name, _)| place(name));
    fields
}

fn nested(name: &str, field: &Value) -> bool {
    field["properties"].is_object() && !is_foreign(name)
}

/// Every value with its default and what it is about.
pub fn yaml(chart: &Chart) -> String {
    let mut out = format!(
        "# Values of the chart {}. Made from crds/src/charts by `{COMMAND}`; unknown names are refused.\n",
        chart.name
    );
    lines(&mut out, 0, &chart.schema, chart.order);
    out
}

fn lines(out: &mut String, depth: usize, schema: &Value, order: &[&str]) {
    let indent = "  ".repeat(depth);
    for (name, field) in
        schema["properties"].as_object().map(|p| ordered(p, order)).unwrap_or_default()
    {
        if depth == 0 {
            out.push('\n');
        }
        let said = field["description"].as_str().unwrap_or_default();
        for line in wrapped(said, WIDTH.saturating_sub(indent.len() + 2)) {
            let _ = writeln!(out, "{indent}# {line}");
        }
        if nested(name, field) {
            let _ = writeln!(out, "{indent}{name}:");
            lines(out, depth + 1, field, FIRST);
        } else {
            value(out, &indent, name, &field["default"]);
        }
    }
}

/// JSON is YAML; maps that hold something are spread out, so that one can copy from them.
fn value(out: &mut String, indent: &str, name: &str, default: &Value) {
    match default.as_object().filter(|map| !map.is_empty()) {
        Some(map) => {
            let _ = writeln!(out, "{indent}{name}:");
            let deeper = format!("{indent}  ");
            map.iter().for_each(|(name, default)| value(out, &deeper, name, default));
        }
        None => {
            let _ = writeln!(out, "{indent}{name}: {}", scalar(default));
        }
    }
}

/// Without quotes where none are needed.
fn scalar(value: &Value) -> String {
    let bare = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
            && !["true", "false", "null", "yes", "no", "on", "off"]
                .contains(&s.to_lowercase().as_str())
    };
    match value.as_str() {
        Some(s) if bare(s) => s.to_owned(),
        _ => value.to_string().replace(',', ", "),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|l| !l.is_empty() && l.len() + 1 + word.len() > width) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// A table for each chart, a row for each value.
pub fn markdown(charts: &[Chart]) -> String {
    let mut out = String::from(
        "# Values of the charts\n\n\
         Both charts refuse names that are not here, at every level: a value that is misspelt does \
         not get lost. `null` takes a default away.\n\n",
    );
    for chart in charts {
        let _ = writeln!(
            out,
            "## {}\n\n| value | type | default | allowed | |\n|---|---|---|---|---|",
            chart.name
        );
        rows(&mut out, "", &chart.schema, chart.order);
        out.push('\n');
    }
    let _ = writeln!(out, "<!-- Made from crds/src/charts: {COMMAND} -->");
    out
}

fn rows(out: &mut String, path: &str, schema: &Value, order: &[&str]) {
    for (name, field) in
        schema["properties"].as_object().map(|p| ordered(p, order)).unwrap_or_default()
    {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let said = text(&field["description"]);
        if nested(name, field) {
            let _ = writeln!(out, "| `{path}` | object | | | {said} |");
            rows(out, &path, field, FIRST);
            continue;
        }
        let default = text(&Value::String(field["default"].to_string()));
        let _ = writeln!(
            out,
            "| `{path}` | {} | `{default}` | {} | {said} |",
            kind(field),
            allowed(field)
        );
    }
}

//! Bodies with substitution commands (`config.core.v3.SubstitutionFormatString`).

use super::format::parse;
use super::notes::ignored;
use super::value::inline;
use super::{Invalid, Notes};
use amesh_model::header::Format;
use amesh_model::route::{BodyFormat, BodyPart};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{value::Kind, Struct, Value};

/// A body's format; `None` when it has a command that is not expanded here (noted): the body is sent as it stands.
pub(super) fn format(
    f: &core::SubstitutionFormatString,
    body: &[u8],
    notes: &mut Notes,
) -> Result<Option<BodyFormat>, Invalid> {
    use core::substitution_format_string::Format as F;
    let core::SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options, format } = f;
    ignored!(notes, "commands of extensions are not known"; formatters);
    ignored!(notes, "the keys of an object are in order"; json_format_options);
    if content_type.bytes().any(|b| b.is_ascii_control()) {
        return Err(notes.invalid("content_type", "has a control character in it"));
    }
    let Ok(body) = std::str::from_utf8(body) else {
        return Err(notes.invalid("", "is for a body that is a text, and this one is no UTF-8"));
    };
    let mut parts = Vec::new();
    let (default_type, known) = match format {
        None => return Err(notes.invalid("format", "is not set: text_format_source or json_format")),
        Some(F::TextFormat(text)) => ("text/plain", self::text("text_format", text, body, &mut parts, notes)?),
        Some(F::TextFormatSource(source)) => {
            let source = notes.within("text_format_source", |n| inline(source, n))?;
            let source = String::from_utf8_lossy(&source);
            ("text/plain", self::text("text_format_source", &source, body, &mut parts, notes)?)
        }
        Some(F::JsonFormat(object)) => {
            let mut json = Json { body, parts: &mut parts, known: true };
            json.object(object, notes)?;
            json.text("\n");
            ("application/json", json.known)
        }
    };
    let content_type = match content_type.as_str() {
        "" => default_type.to_owned(),
        other => other.to_owned(),
    };
    Ok(known.then_some(BodyFormat { parts, omit_empty_values: *omit_empty_values, content_type }))
}

fn text(field: &str, text: &str, body: &str, parts: &mut Vec<BodyPart>, notes: &mut Notes) -> Result<bool, Invalid> {
    let parsed = parse(text, field, Some(body), notes)?;
    let known = parsed.is_some();
    parts.extend(parsed.map(BodyPart::Text));
    Ok(known)
}

/// Takes an object apart into literal text and values.
struct Json<'a> {
    body: &'a str,
    parts: &'a mut Vec<BodyPart>,
    /// All commands can be expanded.
    known: bool,
}

impl Json<'_> {
    fn text(&mut self, text: &str) {
        if let Some(BodyPart::Text(formats)) = self.parts.last_mut() {
            if let Some(Format::Text(before)) = formats.last_mut() {
                before.push_str(text);
                return;
            }
        }
        self.parts.push(BodyPart::Text(vec![Format::Text(text.to_owned())]));
    }

    fn object(&mut self, object: &Struct, notes: &mut Notes) -> Result<(), Invalid> {
        let mut fields: Vec<_> = object.fields.iter().collect();
        fields.sort_by_key(|(name, _)| *name);
        self.text("{");
        for (i, (name, value)) in fields.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            self.text(&format!("{comma}{}:", serde_json::Value::from(name.as_str())));
            self.value(value, notes)?;
        }
        self.text("}");
        Ok(())
    }

    fn value(&mut self, value: &Value, notes: &mut Notes) -> Result<(), Invalid> {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => self.text("null"),
            Some(Kind::BoolValue(b)) => self.text(if *b { "true" } else { "false" }),
            // An integer has no point in it, as protobuf writes numbers.
            Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 1e15 => self.text(&format!("{n:.0}")),
            Some(Kind::NumberValue(n)) => self.text(&serde_json::Value::from(*n).to_string()),
            Some(Kind::StringValue(s)) => match parse(s, "json_format", Some(self.body), notes)? {
                Some(parts) => self.parts.push(BodyPart::Json(parts)),
                None => self.known = false,
            },
            Some(Kind::StructValue(object)) => self.object(object, notes)?,
            Some(Kind::ListValue(list)) => {
                self.text("[");
                for (i, value) in list.values.iter().enumerate() {
                    if i > 0 {
                        self.text(",");
                    }
                    self.value(value, notes)?;
                }
                self.text("]");
            }
        }
        Ok(())
    }
}

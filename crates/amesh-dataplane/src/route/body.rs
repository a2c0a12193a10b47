//! Texts and bodies that are made for a request, before there is a response.

use super::{pseudo, RequestHead};
use crate::format::{expand, json_escaped, Source};
use crate::header::Command;
use amesh_model::header::ArchivedFormat;
use amesh_model::route::{ArchivedBodyFormat, ArchivedBodyPart};
use std::borrow::Cow;

/// What a text with substitution commands comes out as; `missing` takes the place of what is not known.
pub(super) fn text(parts: &[ArchivedFormat], head: &impl RequestHead, missing: &str) -> String {
    let mut out = Vec::new();
    expand(parts, &OfHead(head), missing, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The body of a direct response that is made for each request (`SubstitutionFormatUtils`).
pub(super) fn body(format: &ArchivedBodyFormat, head: &impl RequestHead) -> Vec<u8> {
    let missing = if format.omit_empty_values { "" } else { "-" };
    let mut out = Vec::new();
    for part in format.parts.iter() {
        match part {
            ArchivedBodyPart::Text(parts) => expand(parts, &OfHead(head), missing, &mut out),
            ArchivedBodyPart::Json(parts) => json(parts, head, missing, &mut out),
        }
    }
    out
}

/// A JSON value: a command alone keeps its type, and is `null` where there is nothing.
fn json(parts: &[ArchivedFormat], head: &impl RequestHead, missing: &str, out: &mut Vec<u8>) {
    let alone = matches!(parts, [part] if !matches!(part, ArchivedFormat::Text(_)));
    let number = matches!(parts, [ArchivedFormat::ResponseCode]);
    let mut value = Vec::new();
    expand(parts, &OfHead(head), if alone { "" } else { missing }, &mut value);
    match (alone, number, value.is_empty()) {
        // There is no response yet, and to Envoy that is 0.
        (true, true, true) => out.push(b'0'),
        (true, true, false) => out.extend_from_slice(&value),
        (true, false, true) => out.extend_from_slice(b"null"),
        _ => {
            out.push(b'"');
            json_escaped(&value, out);
            out.push(b'"');
        }
    }
}

/// A request's head.
struct OfHead<'h, H>(&'h H);

impl<H: RequestHead> Source for OfHead<'_, H> {
    fn request(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match pseudo(self.0, name) {
            Some(value) => Some(Cow::Borrowed(value.as_bytes())),
            // The name does not live as long as the value may.
            None => self.0.header_values(name).next().map(|value| Cow::Owned(value.to_owned())),
        }
    }

    fn response(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn command(&self, command: Command, out: &mut Vec<u8>) {
        self.0.write(command, out);
    }
}

//! Ids and names of objects, within the bounds of APISIX's schema.

use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Longest `name` (`rule_name_def`), in characters.
const NAME: usize = 100;
/// Longest `desc` (`desc_def`), in characters.
const DESC: usize = 256;

/// The id of what these parts name together: what kind it is, and a hash of 128 bits. Parts are told apart: `a`, `bc` is
/// another thing than `ab`, `c`.
pub(crate) fn id(kind: &str, parts: &[&str]) -> Arc<str> {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    format!("{kind}-{:032x}", hash.digest128()).into()
}

/// A text as `name`; none for the empty text.
pub(crate) fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| cut(text, NAME))
}

/// A text as `desc`.
pub(crate) fn desc(text: &str) -> String {
    cut(text, DESC)
}

fn cut(text: &str, longest: usize) -> String {
    // A regular expression that a schema has may not take line breaks for characters.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.char_indices().nth(longest) {
        None => text,
        Some(_) => text.chars().take(longest - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_what_apisix_accepts() {
        let id = id("r", &["outbound|80||web.default.svc.cluster.local", "ü"]);
        assert!(id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)), "{id}");
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(id("r", &["a", "bc"]), id("r", &["ab", "c"]));
        assert_ne!(id("r", &["a", ""]), id("r", &["a"]));
        assert_eq!(id("r", &["a", "b"]), id("r", &["a", "b"]));
    }

    #[test]
    fn names_are_cut_to_the_schema() {
        assert_eq!(name(""), None);
        let long = name(&"é".repeat(300)).unwrap();
        assert_eq!(long.chars().count(), NAME);
        assert_eq!(desc("a\nb"), "a b");
        assert_eq!(desc(&"x".repeat(256)).len(), 256);
    }
}

//! Patterns of texts.

use serde::Serialize;

/// A pattern in which `*` stands for any run of characters, none included; every other character for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Glob(String);

impl Glob {
    /// Takes a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == text;
        };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut text) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else {
            return false;
        };
        // The first place where a piece fits leaves the most for those after it.
        for piece in middle.split('*') {
            let Some((_, after)) = text.split_once(piece) else {
                return false;
            };
            text = after;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_texts() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything\n", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b", "ab", true),
            ("*b", "abc", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*aba*ba", "ababa", true),
            ("*aba*bab", "ababa", false),
            ("**", "x", true),
            ("a?", "ab", false),
            ("[ab]", "a", false),
            ("https://*.example/", "https://a.example/", true),
            ("https://*.example/", "https://example/", false),
            ("https://pubsub.googleapis.com/", "https://pubsubXgoogleapis.com/", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern:?} {text:?}");
        }
    }
}

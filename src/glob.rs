//! Matching of names against patterns, by the crate `globset`, whose running time no pattern can inflate.
//!
//! The crate works on bytes, and its `?` matches one of them. So non-ASCII characters are replaced, in order, by
//! control characters that neither the pattern nor the name contains. If there are not enough of those, the pattern
//! matches only the identical name.

use globset::GlobBuilder;

/// Whether a name contains characters that make it a pattern.
pub(crate) fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Whether a name matches a shell pattern: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`; a backslash escapes the next
/// character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    // Braces have no meaning in shell patterns.
    let escaped: String = pattern
        .chars()
        .flat_map(|character| matches!(character, '{' | '}').then_some('\\').into_iter().chain([character]))
        .collect();
    matches_glob(&escaped, name).unwrap_or(pattern == name)
}

/// Whether a name matches a pattern in which only `*` and `?` are special.
pub(crate) fn matches_wildcards(pattern: &str, name: &str) -> bool {
    let special = |character: char| matches!(character, '[' | ']' | '{' | '}' | '\\');
    let escaped: String = pattern
        .chars()
        .flat_map(|character| special(character).then_some('\\').into_iter().chain([character]))
        .collect();
    matches_glob(&escaped, name).unwrap_or(pattern == name)
}

/// Returns None if the pattern is invalid.
fn matches_glob(pattern: &str, name: &str) -> Option<bool> {
    let stand_ins = StandIns::for_texts(pattern, name)?;
    let glob = GlobBuilder::new(&stand_ins.exchange(pattern))
        .literal_separator(false)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .ok()?;
    Some(glob.compile_matcher().is_match(stand_ins.exchange(name)))
}

/// Replacements for non-ASCII characters.
struct StandIns(Vec<(char, char)>);

impl StandIns {
    fn for_texts(pattern: &str, name: &str) -> Option<StandIns> {
        let all = || pattern.chars().chain(name.chars());
        let mut beyond: Vec<char> = all().filter(|character| !character.is_ascii()).collect();
        beyond.sort_unstable();
        beyond.dedup();
        let mut free = ('\u{1}'..='\u{1f}').filter(|control| all().all(|character| character != *control));
        let pairs = beyond.into_iter().map(|character| Some((character, free.next()?)));
        pairs.collect::<Option<Vec<_>>>().map(StandIns)
    }

    fn exchange(&self, text: &str) -> String {
        let stand_in =
            |character| self.0.iter().find(|(known, _)| *known == character).map_or(character, |pair| pair.1);
        text.chars().map(stand_in).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("web*", "web1", true),
            ("web*", "aweb1", false),
            ("*", "", true),
            ("?", "ä", true),
            ("??", "ä", false),
            ("[ä-ö]", "å", true),
            ("w*b?", "web本", true),
            ("?", "", false),
            ("w[a-e]b", "web", true),
            ("w[!a-e]b", "web", false),
            ("w[!a-e]b", "wzb", true),
            ("a[]]b", "a]b", true),
            ("a[b", "a[b", true),
            ("*.prod.*", "db.prod.eu.prod.x", true),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("a**c", "a/b/c", true),
            ("**/c", "a/b/c", true),
            ("{a,b}*", "a1", false),
            ("{a,b}*", "{a,b}1", true),
            ("a*", "a\nb", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn wildcards_treat_brackets_literally() {
        assert!(matches_wildcards("[10.0.0.?]:22*", "[10.0.0.1]:2222"));
        assert!(!matches_wildcards("[a-z].example.com", "b.example.com"));
        assert!(matches_wildcards("*.example.com", "a.b.example.com"));
    }

    #[test]
    fn pathological_patterns_match_quickly() {
        let begun = Instant::now();
        assert!(!matches_wildcards(&"*a".repeat(50), &"a".repeat(49).repeat(20).replace('a', "b")));
        assert!(!matches(&format!("{}b", "*a".repeat(30)), &"a".repeat(2000)));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

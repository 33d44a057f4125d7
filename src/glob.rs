//! Names that a pattern matches, by the crate `globset`, which takes no longer for any pattern.
//!
//! That crate works on bytes, and `?` is one of them. So characters beyond ASCII are exchanged for control characters
//! that neither the pattern nor the name has, in their order; a pattern with more than there are of those matches only
//! what equals it.

use globset::GlobBuilder;

/// Whether a name has a character that makes it a pattern.
pub(crate) fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Whether a name matches a shell pattern: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`; a backslash takes the next character
/// as it is.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    // Braces mean nothing in a shell's patterns.
    let escaped: String = pattern
        .chars()
        .flat_map(|character| matches!(character, '{' | '}').then_some('\\').into_iter().chain([character]))
        .collect();
    matches_glob(&escaped, name).unwrap_or(pattern == name)
}

/// Whether a name matches a pattern in which only `*` and `?` mean something.
pub(crate) fn matches_wildcards(pattern: &str, name: &str) -> bool {
    let special = |character: char| matches!(character, '[' | ']' | '{' | '}' | '\\');
    let escaped: String = pattern
        .chars()
        .flat_map(|character| special(character).then_some('\\').into_iter().chain([character]))
        .collect();
    matches_glob(&escaped, name).unwrap_or(pattern == name)
}

/// None where the pattern is none.
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

/// What stands for the characters beyond ASCII.
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
    fn only_stars_and_question_marks_are_wildcards_where_that_is_so() {
        assert!(matches_wildcards("[10.0.0.?]:22*", "[10.0.0.1]:2222"));
        assert!(!matches_wildcards("[a-z].example.com", "b.example.com"));
        assert!(matches_wildcards("*.example.com", "a.b.example.com"));
    }

    #[test]
    fn no_pattern_takes_long() {
        let begun = Instant::now();
        assert!(!matches_wildcards(&"*a".repeat(50), &"a".repeat(49).repeat(20).replace('a', "b")));
        assert!(!matches(&format!("{}b", "*a".repeat(30)), &"a".repeat(2000)));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

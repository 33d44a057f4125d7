//! Suggestions for misspelled words: "did you mean".

/// Similarity at which an unknown word is taken for one of a few known words.
const WORD_LIKENESS: f64 = 0.7;

/// Similarity at which a name out of any number of names is suggested.
const NAME_LIKENESS: f64 = 0.8;

/// Maximum number of suggested names.
const MOST_NAMES: usize = 3;

/// Returns the known words that were probably meant, likeliest first. Ignores case, and the difference between `-` and
/// `_`.
pub(crate) fn similar_words<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    ranked(wrong, known, WORD_LIKENESS)
}

/// Returns the known word that was probably meant.
pub(crate) fn nearest_word<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    similar_words(wrong, known).into_iter().next()
}

/// Returns the names that were probably meant by `name`, likeliest first.
pub(crate) fn similar_names<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    ranked(name, names, NAME_LIKENESS).into_iter().take(MOST_NAMES).map(str::to_owned).collect()
}

/// Formats the names that may have been meant, for the end of a message.
pub(crate) fn suggestion(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; similar: {}", near.join(", ")),
    }
}

fn ranked<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>, least: f64) -> Vec<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wrong = plain(wrong);
    let likeness = |word: &str| strsim::jaro_winkler(&wrong, &plain(word));
    let known = known.into_iter().map(|word| (likeness(word), word));
    let mut near: Vec<(f64, &str)> = known.filter(|(like, _)| *like > least).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_come_first_and_distant_ones_are_omitted() {
        let names = ["web-1", "web-2", "db"];
        assert_eq!(similar_names("wbe-1", names)[0], "web-1");
        assert_eq!(similar_names("WEB-2", names)[0], "web-2");
        assert_eq!(suggestion(&similar_names("mail", names)), "");
        assert_eq!(suggestion(&["web-1".into(), "web-2".into()]), "; similar: web-1, web-2");
        assert_eq!(nearest_word("Backup-Host", ["backup_path", "backup_host"]), Some("backup_host"));
        assert_eq!(nearest_word("zzz", ["backup_path", "backup_host"]), None);
    }
}

//! Names that were meant by one that nobody has.

/// What somebody who wrote `name` may have meant, the likeliest first.
pub fn similar_names<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let likeness = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    let mut near: Vec<(f64, &str)> =
        names.map(|other| (likeness(other), other)).filter(|(like, _)| *like > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// The names that may have been meant, for the end of a message.
pub fn suggestion(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; similar: {}", near.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_comes_first_and_what_is_far_off_not_at_all() {
        let names = ["web-1", "web-2", "db"];
        assert_eq!(similar_names("wbe-1", names.into_iter())[0], "web-1");
        assert_eq!(similar_names("WEB-2", names.into_iter())[0], "web-2");
        assert_eq!(suggestion(&similar_names("mail", names.into_iter())), "");
        assert_eq!(suggestion(&["web-1".into(), "web-2".into()]), "; similar: web-1, web-2");
    }
}

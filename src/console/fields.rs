//! The fields of forms and queries.

use percent_encoding::percent_decode_str;

/// The fields of a form or of a query, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

/// The maximum number of fields.
const MOST_FIELDS: usize = 2000;

impl Fields {
    /// Parses `a=1&b=2`.
    pub(super) fn parse(text: &str) -> Fields {
        let decoded = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let fields = text.split('&').filter(|field| !field.is_empty()).take(MOST_FIELDS).map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            (decoded(name), decoded(value))
        });
        Fields(fields.collect())
    }

    /// Like `parse`; None if there are too many fields.
    pub(super) fn parse_all(text: &str) -> Option<Fields> {
        let count = text.split('&').filter(|field| !field.is_empty()).count();
        (count <= MOST_FIELDS).then(|| Fields::parse(text))
    }

    /// Returns the value of a field; None if it is missing or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a checkbox is ticked.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns all values of a field.
    pub(super) fn all<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the fields whose names match.
    pub(super) fn only(&self, is_wanted: impl Fn(&str) -> bool) -> Fields {
        Fields(self.0.iter().filter(|(name, _)| is_wanted(name)).cloned().collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_encoded_fields_are_decoded() {
        let fields = Fields::parse("m=a+b&m=%C3%A9%26&empty=&x&=y&%ff=1");
        assert_eq!(fields.all("m").collect::<Vec<_>>(), ["a b", "é&"]);
        let many = "m=a&".repeat(MOST_FIELDS);
        assert_eq!(Fields::parse_all(&many), Some(Fields::parse(&many)));
        assert_eq!(Fields::parse_all(&(many + "m=b")), None);
        assert_eq!((fields.get("empty"), fields.get("x"), fields.get("none")), (None, None, None));
    }
}

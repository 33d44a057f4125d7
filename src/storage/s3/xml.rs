//! Listings and errors of the server: small XML documents, whose namespace not every server declares.

use roxmltree::{Document, Node};

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListingPage {
    /// Keys with their sizes.
    pub(super) files: Vec<(String, u64)>,
    /// The token for the next page; `None` on the last page.
    pub(super) next: Option<String>,
}

/// An error message of a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The error code, such as `NoSuchKey`.
    pub(super) code: String,
    pub(super) message: String,
}

fn child<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| child.tag_name().name() == name).and_then(|child| child.text())
}

/// Parses a page of a listing. The error says why it is invalid.
pub(super) fn page(body: &[u8]) -> Result<ListingPage, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let root = document.root_element();
    if root.tag_name().name() != "ListBucketResult" {
        return Err(format!("<{}> is not a listing", root.tag_name().name()));
    }
    let mut page = ListingPage::default();
    for entry in root.children().filter(|node| node.tag_name().name() == "Contents") {
        let key = child(entry, "Key").ok_or("an entry without a key")?;
        let size = child(entry, "Size").and_then(|size| size.trim().parse().ok()).ok_or("an entry without a size")?;
        page.files.push((key.to_owned(), size));
    }
    if child(root, "IsTruncated").is_some_and(|truncated| truncated.trim() == "true") {
        page.next = child(root, "NextContinuationToken").map(str::to_owned);
        if page.next.is_none() {
            return Err("a page without the next one's token".to_owned());
        }
    }
    Ok(page)
}

/// Parses an error message. Returns `None` if the body has another form.
pub(super) fn complaint(body: &[u8]) -> Option<Complaint> {
    let document = Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let root = document.root_element();
    (root.tag_name().name() == "Error").then(|| Complaint {
        code: child(root, "Code").unwrap_or_default().trim().to_owned(),
        message: child(root, "Message").unwrap_or_default().trim().to_owned(),
    })
}

/// Returns whether a server refused a request because of a header.
pub(super) fn refuses_header(status: u16, body: &[u8], name: &str) -> bool {
    let names_it = |complaint: Complaint| complaint.message.to_ascii_lowercase().contains(name);
    matches!(status, 400 | 501) && complaint(body).is_some_and(names_it)
}

/// Parses the keys that a request could not remove, and why. Returns `None` if this is not a response to a removal.
pub(super) fn refused_keys(body: &[u8]) -> Option<Vec<(String, Complaint)>> {
    let document = Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let root = document.root_element();
    let errors = root.children().filter(|node| node.tag_name().name() == "Error");
    let complaint = |error: Node| {
        let text = |name| child(error, name).unwrap_or_default().trim().to_owned();
        (text("Key"), Complaint { code: text("Code"), message: text("Message") })
    };
    (root.tag_name().name() == "DeleteResult").then(|| errors.map(complaint).collect())
}

/// Formats an error message like a server.
pub(super) fn complaint_text(complaint: &Complaint) -> String {
    let Complaint { code, message } = complaint;
    format!("<Error><Code>{}</Code><Message>{}</Message></Error>", escaped(code), escaped(message))
}

/// Escapes text for an element.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the text of the first element with this name, at any depth.
pub(super) fn text_of(body: &[u8], name: &str) -> Option<String> {
    let document = Document::parse(std::str::from_utf8(body).ok()?).ok()?;
    let found = document.descendants().find(|node| node.tag_name().name() == name)?;
    found.text().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_and_errors_are_parsed() {
        let first = br#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Contents><Key>a/b</Key><Size>5</Size></Contents><IsTruncated>true</IsTruncated>
            <NextContinuationToken>x=</NextContinuationToken></ListBucketResult>"#;
        let wanted = ListingPage { files: vec![("a/b".to_owned(), 5)], next: Some("x=".to_owned()) };
        assert_eq!(page(first).unwrap(), wanted);
        let last = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert_eq!(page(last).unwrap(), ListingPage::default());
        let endless = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
        for bad in [endless.as_slice(), b"", b"\xff", b"<Error/>", b"<ListBucketResult><Contents/></ListBucketResult>"]
        {
            assert!(page(bad).is_err(), "{bad:?}");
        }
        let error = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>";
        assert_eq!(complaint(error).unwrap().code, "NoSuchKey");
        assert_eq!(complaint(b"<html/>"), None);
        let refused = b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error><Deleted/></DeleteResult>";
        let (key, complaint_of_key) = refused_keys(refused).unwrap().remove(0);
        assert_eq!((key.as_str(), complaint_of_key.code.as_str()), ("a", "AccessDenied"));
        assert_eq!((refused_keys(b"<DeleteResult/>"), refused_keys(error)), (Some(Vec::new()), None));
        let odd = Complaint { code: "A&B".to_owned(), message: "<no>".to_owned() };
        assert_eq!(complaint(complaint_text(&odd).as_bytes()), Some(odd));
        assert_eq!(text_of(b"<R><UploadId>7</UploadId></R>", "UploadId").unwrap(), "7");
    }
}

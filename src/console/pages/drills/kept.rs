//! Files that a drill has kept. They are read up to a size limit, and only if they still belong to that drill.

use crate::record::{Time, plain_text};
use chrono::{DateTime, Local, TimeDelta};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Maximum size of a file: a screenshot, or the kept ends of sixteen serial ports.
const LARGEST_BYTES: u64 = 32 << 20;

/// How much of the end of a console a page shows.
const SHOWN_BYTES: usize = 48 << 10;

/// The beginning of an image that browsers can show.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A file that a record refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'p> {
    pub(super) path: &'p Path,
    /// The end of the drill. A file that was written later belongs to another drill.
    pub(super) not_after: Time,
}

impl Kept<'_> {
    /// Returns its content; None if it is missing or belongs to another drill.
    pub(super) async fn bytes(self) -> Option<Vec<u8>> {
        let (path, not_after) = (self.path.to_owned(), self.not_after);
        tokio::task::spawn_blocking(move || read(&path, not_after)).await.ok().flatten()
    }

    /// Returns its content, if it is an image that browsers can show.
    pub(super) async fn picture(self) -> Option<Vec<u8>> {
        self.bytes().await.filter(|bytes| bytes.starts_with(PNG))
    }
}

/// Whether a drill may have written this path: records may come from elsewhere.
fn is_of_drills(path: &Path) -> bool {
    let text = |name: Option<&OsStr>| name.and_then(OsStr::to_str).map(str::to_owned);
    let is_uuid = |name: &str| name.len() == 36 && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let is_kind = text(path.extension()).is_some_and(|kind| ["log", "png"].contains(&kind.as_str()));
    let is_in_folder = text(path.parent().and_then(Path::file_name)).as_deref() == Some("drills");
    is_kind && is_in_folder && text(path.file_stem()).is_some_and(|name| is_uuid(&name))
}

fn read(path: &Path, not_after: Time) -> Option<Vec<u8>> {
    if !is_of_drills(path) {
        return None;
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.try_into().ok()?).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let written: DateTime<Local> = metadata.modified().ok()?.into();
    let is_of_drill = written <= not_after + TimeDelta::seconds(1);
    let mut bytes = Vec::new();
    if !metadata.is_file() || !is_of_drill || metadata.len() > LARGEST_BYTES {
        return None;
    }
    file.take(LARGEST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Returns the end of a console as plain text, and whether there was more.
pub(super) fn end_of(console: &[u8]) -> (String, bool) {
    let start = console.len().saturating_sub(SHOWN_BYTES);
    let text = String::from_utf8_lossy(&console[start..]);
    // Drop the rest of the truncated line.
    let whole = if start == 0 { &text[..] } else { text.split_once('\n').map_or(&text[..], |(_, rest)| rest) };
    (plain_text(whole).trim().to_owned(), start > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn console_end_is_shown_as_plain_text_from_a_full_line() {
        let (text, is_cut) = end_of(b"\x1b[2J\x1b[31mred\x1b[0m\r\n\x07<b>\xff\xe2\x80\xaeabc\n\n");
        assert_eq!((text.as_str(), is_cut), ("red\n<b>\u{fffd}abc", false));
        let lines: String = (0..20_000).map(|number| format!("line {number:06}\n")).collect();
        let (text, is_cut) = end_of(lines.as_bytes());
        assert!(is_cut && text.starts_with("line ") && text.ends_with("line 019999"), "{}", &text[..40]);
        assert!(text.len() <= SHOWN_BYTES);
    }

    #[test]
    fn only_kept_regular_files_older_than_the_drill_are_read() {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().join("drills");
        let uuid = "8f5a3c0e-0000-4000-8000-00000000000";
        let [file, link, inner] = ["1", "2", "3"].map(|digit| folder.join(format!("{uuid}{digit}.log")));
        std::fs::create_dir_all(&inner).expect("folders");
        std::fs::write(&file, "text").expect("written");
        symlink(&file, &link).expect("a link");
        let others = [folder.join("other.log"), folder.join(format!("{uuid}1.txt")), outer.path().join("a.log")];
        others.iter().for_each(|path| std::fs::write(path, "text").expect("written"));
        let now = Local::now().fixed_offset();
        assert_eq!(read(&file, now).as_deref(), Some(&b"text"[..]));
        assert_eq!(read(&file, now - TimeDelta::minutes(1)), None);
        for path in [&link, &inner, &folder.join(format!("{uuid}4.log"))].into_iter().chain(&others) {
            assert_eq!(read(path, now), None, "{}", path.display());
        }
    }
}

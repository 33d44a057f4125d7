//! Downloads files of a point as attachments, or copies them into a folder of this host.

use super::place::{chosen, name_of};
use super::{page_of, words};
use crate::console::answers::refused;
use crate::console::pages::launch;
use crate::console::pages::points::lookup::{find, missing};
use crate::console::reading::{End, OutputPart, Reading};
use crate::console::state::Console;
use crate::console::visit::Visit;
use crate::record::{Point, steers_terminal};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::Version;
use axum::http::header::{self, HeaderValue};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// This much output is held back until it is clear that the command works: smaller downloads arrive whole or not at
/// all.
const HELD_BACK_BYTES: usize = 256 << 10;

/// `POST /points/ID/download`
pub(in crate::console) async fn download(
    version: Version,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let (command, paths) = wanted(&visit);
    let Some(first) = paths.first() else { return none_ticked(&visit, &point).await };
    let words = words(&known.repos, &point, command, &[], &paths);
    let name = file_name(&point, command, first, paths.len());
    let title = visit.say("Not downloaded", "Non téléchargé");
    let refuse = async |reason: &str| refused(&visit, title, reason, &page_of(&point)).await;
    let mut reading = match visit.console.toolbox.download(&words) {
        Some(Ok(reading)) => reading,
        Some(Err(error)) => return refuse(&error.to_string()).await,
        None => {
            let reason = visit.say(
                "Several downloads are under way. Wait until one has ended.",
                "Plusieurs téléchargements sont en cours. Attendez la fin de l’un d’eux.",
            );
            return refuse(reason).await;
        }
    };
    let (mut held, mut count, mut has_ended) = (VecDeque::new(), 0, false);
    while count < HELD_BACK_BYTES && !has_ended {
        match reading.next().await {
            Some(OutputPart::Bytes(bytes)) => {
                count += bytes.len();
                held.push_back(bytes);
            }
            Some(OutputPart::End(End { exit_code: Some(0), .. })) => has_ended = true,
            Some(OutputPart::End(end)) => return refuse(&end.errors.join("; ")).await,
            None => return refuse(visit.say("The console is ending.", "La console se ferme.")).await,
        }
    }
    // In HTTP/1.0, the end of the connection is the end of the file, so an aborted download would look complete.
    if !has_ended && version < Version::HTTP_11 {
        let reason = visit.say(
            "A large download needs HTTP/1.1, which shows whether it is complete. A proxy in between uses HTTP/1.0; \
             configure it for HTTP/1.1.",
            "Un grand téléchargement demande HTTP/1.1, dont la fin est reconnaissable. Un serveur mandataire utilise \
             HTTP/1.0\u{a0}; configurez-le pour HTTP/1.1.",
        );
        return refuse(reason).await;
    }
    let body = match has_ended {
        true => Body::from(held.into_iter().flatten().collect::<Vec<u8>>()),
        false => {
            let line = visit.console.toolbox.command_line(&words);
            Body::new(Download { held, reading, console: Arc::clone(&visit.console), line })
        }
    };
    let kind = if command == "tar" { "application/x-tar" } else { "application/octet-stream" };
    let mut response = ([(header::CONTENT_TYPE, kind)], body).into_response();
    if let Ok(disposition) = HeaderValue::from_str(&disposition(&name)) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}

/// Returns the command that the form requests, and the paths.
fn wanted(visit: &Visit) -> (&'static str, Vec<String>) {
    let form = &visit.form;
    match () {
        () if form.is_set("file") => ("cat", chosen(form, "file").into_iter().take(1).collect()),
        () if form.is_set("tree") => ("tar", chosen(form, "tree").into_iter().take(1).collect()),
        () if form.is_set("whole") => ("tar", chosen(form, "path").into_iter().take(1).collect()),
        () => ("tar", chosen(form, "f")),
    }
}

async fn none_ticked(visit: &Visit, point: &Point) -> Response {
    let title = visit.say("Nothing was ticked", "Rien n’est coché");
    let reason = visit.say("Tick at least one file or folder.", "Cochez au moins un fichier ou dossier.");
    refused(visit, title, reason, &page_of(point)).await
}

/// Returns the file name for the browser.
fn file_name(point: &Point, command: &str, first: &str, count: usize) -> String {
    let name = match (name_of(first), count) {
        ("", _) | (_, 2..) => "files",
        (name, _) => name,
    };
    if command == "cat" { name.to_owned() } else { format!("{}-{name}.tar", point.machine) }
}

/// Returns the header that makes the browser save the file; with an ASCII name for old browsers, and the full name.
fn disposition(name: &str) -> String {
    let name: String = name.replace(steers_terminal, "_").replace(['/', '\\'], "_");
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || " -_.()+,".contains(sign);
    let plain: String = name.chars().map(|sign| if is_plain(sign) { sign } else { '_' }).collect();
    let exact = utf8_percent_encode(&name, NON_ALPHANUMERIC);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

/// The bytes of a download. If its command fails, the connection is aborted, so that a partial file is not taken for a
/// complete one.
struct Download {
    held: VecDeque<Bytes>,
    reading: Reading,
    console: Arc<Console>,
    line: String,
}

impl hyper::body::Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.console.touch();
        if let Some(bytes) = self.held.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        Poll::Ready(match ready!(self.reading.poll_next(cx)) {
            Some(OutputPart::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(OutputPart::End(End { exit_code: Some(0), .. })) => None,
            Some(OutputPart::End(end)) => {
                tracing::warn!("console: a download failed: {}: {}", self.line, end.errors.join("; "));
                Some(Err(io::Error::other("the download is not complete")))
            }
            None => Some(Err(io::Error::other("the console is ending"))),
        })
    }
}

/// `POST /points/ID/copy-files`
pub(in crate::console) async fn copy(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let paths = chosen(&visit.form, "f");
    if paths.is_empty() {
        return none_ticked(&visit, &point).await;
    }
    let Some(to) = visit.form.get("to").map(str::trim).filter(|to| !to.is_empty()) else {
        let title = visit.say("Not copied", "Non copié");
        return refused(&visit, title, visit.say("A folder is needed.", "Il faut un dossier."), &page_of(&point)).await;
    };
    let mut options = vec![format!("--to={to}")];
    options.extend(visit.form.is_set("overwrite").then(|| "--overwrite".to_owned()));
    let words = words(&known.repos, &point, "cp", &options, &paths);
    launch::start(&visit, &words, &page_of(&point)).await
}

#[cfg(test)]
mod tests {
    use super::disposition;

    #[test]
    fn download_header_contains_only_a_safe_file_name() {
        assert_eq!(disposition("a b.txt"), "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b%2Etxt");
        let hostile = "../x\";\r\nSet-Cookie: a=b\u{202e}fdp.exe";
        let header = disposition(hostile);
        assert!(header.starts_with("attachment; filename=\".._x__"), "{header}");
        assert!(!header.contains(['\r', '\n', '\u{202e}']) && header.matches('"').count() == 2, "{header}");
        assert!(header.is_ascii() && !header.contains("%0D") && !header.contains("%2F"), "{header}");
    }
}

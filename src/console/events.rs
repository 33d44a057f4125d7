//! Live updates: a stream of a page's parts, rendered by the same functions as the page itself.
//!
//! An event `part` has the id of an element and the HTML that replaces it. A part is sent when it has changed, at most
//! once per second.

use super::html;
use super::pages::{jobs, overview, target};
use super::visit::Visit;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::json;
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Interval at which changes are checked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which an empty line checks whether the reader is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The maximum number of concurrent streams; a page without a stream shows that.
const MOST_STREAMS: usize = 32;

/// `GET /events?page=PATH`
pub(super) async fn stream(Extension(visit): Extension<Visit>) -> Response {
    let console = visit.console.clone();
    if console.streams.fetch_add(1, Ordering::Relaxed) >= MOST_STREAMS {
        console.streams.fetch_sub(1, Ordering::Relaxed);
        return axum::http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    tokio::spawn(async move {
        follow(&visit, &sender).await;
        console.streams.fetch_sub(1, Ordering::Relaxed);
        console.touch();
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream")];
    (headers, Body::new(EventBody(receiver))).into_response()
}

/// Sends parts until the reader has disconnected.
async fn follow(visit: &Visit, sender: &mpsc::Sender<Bytes>) {
    let page = visit.query.get("page").unwrap_or_default().to_owned();
    let mut sent = HashMap::<String, String>::new();
    // These pages change only when a job changes.
    let is_of_jobs = page == "/" || page == "/jobs" || page.starts_with("/jobs/");
    let mut changes = visit.console.toolbox.job_changes();
    loop {
        // An open page uses its session; a session that was ended ends its streams.
        let is_open = visit.console.sessions().form_token(&visit.cookie).is_some();
        if !is_open || visit.console.options.stop.load(Ordering::Relaxed) {
            return;
        }
        let mut parts = jobs::live_parts(visit, &page).await;
        if is_of_jobs {
            let running = visit.console.toolbox.jobs().await.iter().filter(|job| job.status == "running").count();
            parts.push(("live-count".to_owned(), html::running_count(visit, running).into_string()));
        }
        if page == "/" {
            parts.extend(overview::live_parts(visit).await);
        }
        parts.extend(target::live_parts(visit, &page));
        for (id, html) in parts {
            if sent.get(&id) != Some(&html) {
                let data = json!({ "id": id, "html": html });
                if sender.send(format!("event: part\ndata: {data}\n\n").into()).await.is_err() {
                    return;
                }
                sent.insert(id, html);
            }
        }
        if sender.send(Bytes::from_static(b": \n\n")).await.is_err() {
            return;
        }
        let next = async {
            tokio::time::sleep(INTERVAL).await;
            if is_of_jobs {
                // Time-limited, because the console may end meanwhile, or the reader may have silently disconnected.
                let _ = tokio::time::timeout(KEEP_ALIVE, changes.changed()).await;
            }
        };
        tokio::select! {
            () = sender.closed() => return,
            () = next => {}
        }
    }
}

struct EventBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

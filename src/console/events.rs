//! Live updates: one stream of a page's parts, from the same functions as the page itself.
//!
//! An event `part` has the id of an element and the HTML that takes its place. A part is sent when it has changed, at
//! most once a second.

use super::pages::jobs;
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

/// How often it is looked whether something has changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// So often an empty line shows whether the reader is still there.
const KEEP_ALIVE_INTERVALS: u32 = 15;

/// So many streams at a time; a page without one says so.
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

/// Sends parts until the reader is gone.
async fn follow(visit: &Visit, sender: &mpsc::Sender<Bytes>) {
    let page = visit.query.get("page").unwrap_or_default().to_owned();
    let mut sent = HashMap::<String, String>::new();
    for round in 0u32.. {
        if visit.console.options.stop.load(Ordering::Relaxed) {
            return;
        }
        for (id, html) in jobs::live_parts(visit, &page).await {
            if sent.get(&id) != Some(&html) {
                let data = json!({ "id": id, "html": html });
                if sender.send(format!("event: part\ndata: {data}\n\n").into()).await.is_err() {
                    return;
                }
                sent.insert(id, html);
            }
        }
        if round % KEEP_ALIVE_INTERVALS == 0 && sender.send(Bytes::from_static(b": \n\n")).await.is_err() {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(INTERVAL) => {}
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

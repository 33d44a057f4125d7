//! The server loop: listens, accepts connections, and ends.

use super::access;
use super::links;
use super::pages;
use super::state::Console;
use super::{Error, Given, Listen, Options};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};

/// The maximum number of open connections; others wait.
const MOST_CONNECTIONS: usize = 128;

/// How long a client may take to send the head of a request, and stay silent between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may take to read a part of the response.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Maximum size of the head of a request.
const LARGEST_HEAD_BYTES: usize = 32 << 10;

/// Interval at which the stop flag and the idle time are checked.
const INTERVAL: Duration = Duration::from_millis(200);

enum Listener {
    Address(TcpListener),
    Socket(UnixListener),
}

/// Runs the console until it is stopped or idle.
pub(crate) fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let result = runtime.block_on(serve(options));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn serve(options: Options) -> Result<(), Error> {
    let Listening { pages: listener, links, address } = listen(&options.listen).await?;
    let console = Arc::new(Console::new(options, address));
    match links {
        Some(links) => drop(tokio::spawn(links::hand_out(Arc::clone(&console), links))),
        None => console.announce(),
    }
    let router = access::guarded(pages::router(), Arc::clone(&console));
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while !console.options.stop.load(Ordering::Relaxed) && !console.is_idle() {
        let Ok(Ok(permit)) = tokio::time::timeout(INTERVAL, Arc::clone(&connections).acquire_owned()).await else {
            continue;
        };
        match &listener {
            Listener::Address(listener) => match tokio::time::timeout(INTERVAL, listener.accept()).await {
                Ok(Ok((stream, _))) => spawn(stream, router.clone(), permit),
                // Possibly out of file descriptors, which other connections will free soon.
                Ok(Err(_)) => sleep(INTERVAL).await,
                Err(_) => {}
            },
            Listener::Socket(listener) => match tokio::time::timeout(INTERVAL, listener.accept()).await {
                Ok(Ok((stream, _))) => spawn(stream, router.clone(), permit),
                Ok(Err(_)) => sleep(INTERVAL).await,
                Err(_) => {}
            },
        }
    }
    if let Listen::Socket(path) = &console.options.listen {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// The open sockets.
struct Listening {
    pages: Listener,
    links: Option<UnixListener>,
    /// The beginning of the login links.
    address: String,
}

impl Listening {
    fn of(pages: Listener, address: String) -> Listening {
        Listening { pages, links: None, address }
    }
}

async fn listen(listen: &Listen) -> Result<Listening, Error> {
    match listen {
        Listen::Address(address) => {
            if !address.ip().is_loopback() {
                return Err(Error::NotLoopback { address: *address });
            }
            let failed = |source| Error::Listen { place: address.to_string(), source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            // With port 0, the system chooses a free port.
            let address = listener.local_addr().map_err(failed)?;
            Ok(Listening::of(Listener::Address(listener), format!("http://{address}")))
        }
        Listen::Socket(path) => {
            let failed = |source| Error::Listen { place: path.display().to_string(), source };
            remove_stale(path)?;
            // Set the umask first, so that nobody else can ever use the socket.
            let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
            let bound = UnixListener::bind(path);
            rustix::process::umask(umask);
            Ok(Listening::of(Listener::Socket(bound.map_err(failed)?), "http://localhost".to_owned()))
        }
        Listen::Given(given) => given_by_systemd(given),
    }
}

fn given_by_systemd(given: &Given) -> Result<Listening, Error> {
    let failed = |source| Error::Listen { place: "the socket of systemd".to_owned(), source };
    let address = given.pages.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback { address });
    }
    let (pages, links) = (given.pages.try_clone().map_err(failed)?, given.links.try_clone().map_err(failed)?);
    pages.set_nonblocking(true).and_then(|()| links.set_nonblocking(true)).map_err(failed)?;
    let pages = Listener::Address(TcpListener::from_std(pages).map_err(failed)?);
    let links = Some(UnixListener::from_std(links).map_err(failed)?);
    Ok(Listening { pages, links, address: format!("http://{address}") })
}

/// Removes a socket without a listening program.
fn remove_stale(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    match StdUnixStream::connect(path) {
        Ok(_) => Err(Error::SocketInUse { path: path.to_owned() }),
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => {
            let place = path.display().to_string();
            std::fs::remove_file(path).map_err(|source| Error::Listen { place, source })
        }
        Err(_) => Ok(()),
    }
}

fn spawn<S>(stream: S, router: Router, permit: tokio::sync::OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let stream = TokioIo::new(Impatient { stream, stalled: None });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(LARGEST_HEAD_BYTES);
        // A client that disconnects or is too slow is not an error.
        let _ = server.serve_connection(stream, TowerToHyperService::new(router)).await;
        drop(permit);
    });
}

/// A connection whose client must read the response in time.
struct Impatient<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    /// Passes on the result of a write, or an error if it has been blocked for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_LIMIT)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, ended)
    }
}

//! Login links for root, on the socket of a console that systemd has started. Access is limited by the mode of the
//! socket, and by the peer credentials that the kernel reports.

use super::state::Console;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

/// How long a client may take to read a link.
const LIMIT: Duration = Duration::from_secs(5);

/// Writes a new link to each client that connects, one after the other.
pub(super) async fn hand_out(console: Arc<Console>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A client that does not read gets no link.
                let _ = tokio::time::timeout(LIMIT, hand_over(&console, stream)).await;
            }
            // Possibly out of file descriptors, which other connections will free soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn hand_over(console: &Console, mut stream: UnixStream) -> std::io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        tracing::warn!("console: user {user} was refused a link");
        return Ok(());
    }
    tracing::info!("console: user {user} got a link");
    console.touch();
    stream.write_all(format!("{}\n", console.new_link()).as_bytes()).await?;
    stream.shutdown().await
}

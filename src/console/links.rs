//! Links for whoever may open the socket of a console that systemd has started: root, by the mode of that socket, and
//! by what the kernel says of the other side.

use super::state::Console;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

/// How long somebody may take to read a link.
const LIMIT: Duration = Duration::from_secs(5);

/// Writes a new link to everybody who connects, one after the other.
pub(super) async fn hand_out(console: Arc<Console>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Somebody who does not read gets none.
                let _ = tokio::time::timeout(LIMIT, hand_over(&console, stream)).await;
            }
            // Out of descriptors perhaps: others end soon.
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
